"""A reward model from 0.86 million weights and a scalar head, on pairs, float32."""

import tempfile

from common import (
    SMALL,
    Aim,
    Clock,
    Variant,
    as_our_gpt,
    forward_flop,
    gpt2,
    gpt2_config,
    in_our_order,
    now_mib,
    pair_rows,
    parameters,
    quieten,
    random_pairs,
    run_variant,
    ticking,
    tokenizer,
    training_bytes,
    trl_settings,
)

TITLE = "Reward model, 0.86 M parameters, pairs of 48 tokens, batch 32, fp32"
LR, WARM_UP, BATCH, STEPS = 1e-4, 3, 32, 20


def classifier():
    """Transformers' reward model: a trunk and a head without bias at the last token."""
    import torch
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = gpt2_config(SMALL)
    config.num_labels = 1
    return GPT2ForSequenceClassification(config)


def ours(quick, turn, name, own, share=False) -> dict:
    import torch

    from rlhf_minimal.reward_model import RewardModel, train_reward_model

    before, steps = now_mib(), 2 if quick else STEPS
    start, trunk = classifier(), gpt2(SMALL)
    trunk.transformer.load_state_dict(start.transformer.state_dict())
    model = RewardModel(as_our_gpt(trunk, SMALL) if own else trunk)
    with torch.no_grad():
        model.head.weight.copy_(start.score.weight)
    del start, trunk
    pairs, clock = random_pairs(SMALL, BATCH * (WARM_UP + steps)), Clock(WARM_UP)
    train_reward_model(model, pairs, steps=WARM_UP + steps, batch_size=BATCH, lr=LR, warmup=0,
                       schedule="constant", history=clock, show_progress=False,
                       share_prompts=share)
    return result(name, model, steps, before, clock.mean("loss"), clock, share)


def theirs(quick, turn, name, tuned) -> dict:
    import datasets
    from trl import RewardConfig, RewardTrainer

    before, steps = now_mib(), 2 if quick else STEPS if tuned else 2
    warm_up = WARM_UP if tuned else 1
    quieten()
    pairs = random_pairs(SMALL, BATCH * (warm_up + steps))
    pairs = in_our_order(pairs, BATCH, warm_up + steps)
    clock, model = Clock(warm_up), classifier()
    options = dict(learning_rate=LR, per_device_train_batch_size=BATCH,
                   max_steps=warm_up + steps, train_sampling_strategy="sequential")
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model, trl_settings(RewardConfig, tuned, folder, **options),
            train_dataset=datasets.Dataset.from_list(pair_rows(pairs)),
            processing_class=tokenizer(SMALL), callbacks=[ticking(clock)],
        )
        loss = trainer.train().training_loss
    return result(name, model, steps, before, loss, clock)


def result(name, model, steps, before, loss, clock, share=False) -> dict:
    rows, answers = (1, 2) if share else (2, 1)  # a pair: a prompt with two answers, or twice one
    step_bytes = training_bytes(SMALL, rows * BATCH, parameters(model), answers)
    return {
        "rates": {name: BATCH / clock.per_step}, "unit": "pairs/s", "after_imports_mib": before,
        "loss": loss, "parameters": parameters(model),
        "tokens_per_step": BATCH * rows * (SMALL.prompt + answers * SMALL.answer),
        "flop": {name: 3 * rows * forward_flop(SMALL, with_logits=False, answers=answers)},
        "bytes": {name: step_bytes / BATCH},
        "steps": steps, **clock.columns(),
    }


VARIANTS = {
    "TRL, its defaults": Variant(theirs, dict(tuned=False), once=True),
    "TRL tuned": Variant(theirs, dict(tuned=True)),
    "ours, same model": Variant(ours, dict(own=False)),
    "ours, same model, prompts shared": Variant(ours, dict(own=False, share=True)),
    "ours, our GPT": Variant(ours, dict(own=True)),
    "ours, our GPT, prompts shared": Variant(ours, dict(own=True, share=True)),
}
AIMS = [Aim(name, "TRL tuned", 1.6) for name in VARIANTS if name.startswith("ours")]

if __name__ == "__main__":
    run_variant(VARIANTS)
