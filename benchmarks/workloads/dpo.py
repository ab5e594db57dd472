"""DPO on the same model, pairs, order of pairs and optimizer: what both sizes share.

Leaves out: the sizes, in ``dpo_small.py`` and ``dpo_large.py``.
"""

import tempfile
import time

from common import (
    Aim,
    Clock,
    Variant,
    forward_flop,
    gpt2,
    in_our_order,
    now_mib,
    our_gpt,
    pair_rows,
    parameters,
    quieten,
    random_pairs,
    ticking,
    tokenizer,
    training_bytes,
    trl_settings,
)

BETA, LR, WARM_UP = 0.1, 1e-4, 3
PRECOMPUTED, SHARED = ", reference precomputed", ", prompts shared"


def variants(shape, batch_size: int, steps: int, default_steps: int) -> dict:
    sizes = dict(shape=shape, batch_size=batch_size)
    full = sizes | dict(steps=steps)
    return {
        "TRL, its defaults": Variant(
            theirs, sizes | dict(steps=default_steps, tuned=False, warm_up=1), once=True),
        "TRL tuned": Variant(theirs, full | dict(tuned=True)),
        "TRL tuned" + PRECOMPUTED: Variant(theirs, full | dict(tuned=True, precompute=True)),
        "ours, same model": Variant(ours, full | dict(build=gpt2)),
        "ours, same model" + SHARED: Variant(ours, full | dict(build=gpt2, share=True)),
        "ours, our GPT": Variant(ours, full | dict(build=our_gpt)),
        "ours, our GPT" + SHARED: Variant(ours, full | dict(build=our_gpt, share=True)),
    }


def aims(same: float, own: float, memory: float) -> list[Aim]:
    return [
        aim
        for way in ("", SHARED)
        for aim in (
            Aim("ours, same model" + way, "TRL tuned", same),
            Aim("ours, our GPT" + way, "TRL tuned", own),
            Aim("ours, same model" + way, "TRL tuned", memory, "peak_mib"),
        )
    ]


def ours(quick, turn, name, shape, batch_size, steps, build, share=False) -> dict:
    """Both rows from one run: with the reference's time, and without."""
    from rlhf_minimal.dpo import reference_log_probs, train_dpo

    before, steps = now_mib(), 2 if quick else steps
    pairs = random_pairs(shape, batch_size * (WARM_UP + steps))
    model = build(shape)
    reference_log_probs(model, pairs[:batch_size], 0, share_prompts=share)
    started = time.perf_counter()
    reference = reference_log_probs(model, pairs, 0, share_prompts=share)
    scoring = (time.perf_counter() - started) / len(pairs)
    clock = Clock(WARM_UP)
    train_dpo(model, reference, pairs, beta=BETA, steps=WARM_UP + steps, batch_size=batch_size,
              lr=LR, history=clock, show_progress=False, share_prompts=share)
    training = clock.per_step / batch_size
    rates = {name: 1 / (scoring + training), name + PRECOMPUTED: 1 / training}
    loss = clock.mean("loss")
    return result(shape, model, rates, batch_size, steps, before, loss, clock, share)


def theirs(quick, turn, name, shape, batch_size, steps, tuned, precompute=False,
           warm_up=WARM_UP) -> dict:
    import datasets
    from trl import DPOConfig, DPOTrainer

    before, steps = now_mib(), 2 if quick else steps
    quieten()
    pairs = random_pairs(shape, batch_size * (warm_up + steps))
    pairs = in_our_order(pairs, batch_size, warm_up + steps)
    clock, model = Clock(warm_up), gpt2(shape)
    options = dict(beta=BETA, learning_rate=LR, per_device_train_batch_size=batch_size,
                   max_steps=warm_up + steps, train_sampling_strategy="sequential")
    if tuned:
        options["precompute_ref_log_probs"] = precompute
    with tempfile.TemporaryDirectory() as folder:
        reference = None if precompute else gpt2(shape)
        trainer = DPOTrainer(
            model, reference, trl_settings(DPOConfig, tuned, folder, **options),
            train_dataset=datasets.Dataset.from_list(pair_rows(pairs)),
            processing_class=tokenizer(shape), callbacks=[ticking(clock)],
        )
        loss = trainer.train().training_loss
    tokens = trainer._total_train_tokens / (warm_up + steps)
    if tokens != 2 * batch_size * shape.length:
        raise RuntimeError(f"TRL saw {tokens} tokens a step, not {2 * batch_size * shape.length}")
    rates = {name: batch_size / clock.per_step}
    found = result(shape, model, rates, batch_size, steps, before, loss, clock)
    return found | {"bf16": trainer.args.bf16, "checkpointing": trainer.args.gradient_checkpointing,
                    "optimizer": str(trainer.args.optim)}


def result(shape, model, rates, batch_size, steps, before, loss, clock, share=False) -> dict:
    """``flop`` and ``bytes`` of one pair: two answers there and back, and under the reference."""
    rows, answers = (1, 2) if share else (2, 1)  # a pair: a prompt with two answers, or twice one
    step_bytes = training_bytes(shape, rows * batch_size, parameters(model), answers)
    flop = rows * forward_flop(shape, answers=answers)
    return {
        "rates": rates, "unit": "pairs/s", "after_imports_mib": before, "loss": loss,
        "parameters": parameters(model),
        "tokens_per_step": batch_size * rows * (shape.prompt + answers * shape.answer),
        "flop": {name: flop * (3 if PRECOMPUTED in name else 4) for name in rates},
        "bytes": dict.fromkeys(rates, step_bytes / batch_size),
        "steps": steps, **clock.columns(),
    }
