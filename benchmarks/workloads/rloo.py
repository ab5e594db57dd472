"""RLOO: 64 sampled completions of 24 tokens a step, eight to a prompt, with a reference, float32.

The reward counts a word. No model can produce the end token, so every completion has full length.
"""

import copy
import tempfile

from common import (
    PAD,
    SMALL,
    Aim,
    Clock,
    Variant,
    forward_flop,
    gpt2,
    now_mib,
    our_gpt,
    parameters,
    quieten,
    random_prompts,
    run_variant,
    text,
    ticking,
    tokenizer,
    training_bytes,
    trl_settings,
)

TITLE = "RLOO, 0.86 M parameters, 24 new tokens, 64 completions a step, fp32"
LR, WARM_UP, STEPS, PROMPTS, GROUP, BETA, WORD = 1e-4, 2, 8, 8, 8, 0.1, 7
BATCH = PROMPTS * GROUP


def ours(quick, turn, name, build, share=False) -> dict:
    from rlhf_minimal.grpo import train_rloo

    before, steps = now_mib(), 1 if quick else STEPS
    model, clock = build(SMALL), Clock(WARM_UP)
    reference = copy.deepcopy(model)

    def score(rollouts):
        return ((rollouts.tokens == WORD) & (rollouts.mask == 1)).sum(-1)

    train_rloo(
        model, reference, score, random_prompts(SMALL, 256), beta=BETA, steps=WARM_UP + steps,
        max_new_tokens=SMALL.answer, end_id=SMALL.vocab, pad_id=PAD, group_size=GROUP,
        prompts_a_step=PROMPTS, lr=LR, schedule="constant", history=clock, show_progress=False,
        share_prompts=share,
    )
    return result(name, model, steps, before, clock.mean("length"), clock, share)


def theirs(quick, turn, name, kind, tuned, beta=BETA) -> dict:
    import datasets
    import trl

    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    before, steps = now_mib(), 1 if quick else STEPS if tuned else 1
    quieten()
    clock, model, lengths = Clock(WARM_UP), gpt2(SMALL), []

    def reward(completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return [float(sum(token == WORD for token in tokens)) for tokens in completion_ids]

    options = dict(
        learning_rate=LR, per_device_train_batch_size=BATCH, num_generations=GROUP, beta=beta,
        max_completion_length=SMALL.answer, max_steps=WARM_UP + steps, temperature=1.0,
    )
    prompts = [{"prompt": text(prompt)} for prompt in random_prompts(SMALL, 256)]
    with tempfile.TemporaryDirectory() as folder:
        model.config.eos_token_id = model.generation_config.eos_token_id = SMALL.vocab
        model.save_pretrained(f"{folder}/start")  # the trainer reads its reference from a path
        model.config._name_or_path = f"{folder}/start"
        trainer = trainer_class(
            model, reward, trl_settings(config_class, tuned, folder, **options),
            train_dataset=datasets.Dataset.from_list(prompts),
            processing_class=tokenizer(SMALL, ends=False), callbacks=[ticking(clock)],
        )
        trainer.train()
    if lengths != [SMALL.answer] * BATCH * (WARM_UP + steps):
        raise RuntimeError(f"{len(lengths)} completions, {sum(lengths)} tokens in them")
    return result(name, model, steps, before, sum(lengths) / len(lengths), clock)


def result(name, model, steps, before, length, clock, share=False) -> dict:
    """A completion is computed once to be sampled, once under the reference, and then trained.

    Shared prompts are computed once for four answers, see ``shared_prompts.py``.
    """
    answers = 4 if share else 1
    flop = forward_flop(SMALL, answers=answers) / answers
    step_bytes = training_bytes(SMALL, BATCH // answers, parameters(model), answers)
    return {
        "rates": {name: BATCH / clock.per_step}, "unit": "completions/s",
        "after_imports_mib": before, "parameters": parameters(model), "mean_length": length,
        "tokens_per_step": BATCH * SMALL.length,
        "flop": {name: forward_flop(SMALL) + 4 * flop},
        "bytes": {name: step_bytes / BATCH},
        "steps": steps, **clock.columns(),
    }


VARIANTS = {
    "TRL, its defaults": Variant(theirs, dict(kind="RLOO", tuned=False), once=True),
    "TRL tuned": Variant(theirs, dict(kind="RLOO", tuned=True)),
    "TRL GRPO tuned, no reference": Variant(theirs, dict(kind="GRPO", tuned=True, beta=0.0)),
    "ours, same model": Variant(ours, dict(build=gpt2)),
    "ours, our GPT": Variant(ours, dict(build=our_gpt)),
    "ours, our GPT, prompts shared": Variant(ours, dict(build=our_gpt, share=True)),
}
AIMS = [
    Aim("ours, our GPT", "TRL tuned", 2.2),
    Aim("ours, our GPT, prompts shared", "TRL tuned", 2.2),
]

if __name__ == "__main__":
    run_variant(VARIANTS)
