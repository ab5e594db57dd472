"""Sampling 24 tokens after a prompt of 24, batches of 64 and of 256, float32.

No model can produce the end token, so every answer has full length.
"""

import time

from common import (
    PAD,
    SMALL,
    Aim,
    Variant,
    forward_flop,
    gpt2,
    now_mib,
    our_gpt,
    parameters,
    run_variant,
    warmed_up,
)

TITLE = "Sampling, 0.86 M parameters, 24 new tokens, fp32"
BATCHES = (64, 256)


def ours(quick, turn, name, build, use_cache=None) -> dict:
    from rlhf_minimal.sampling import generate

    before, model = now_mib(), build(SMALL).eval()

    def sample(prompts):
        return generate(model, prompts, max_new_tokens=SMALL.answer, end_id=SMALL.vocab,
                        pad_id=PAD, use_cache=use_cache)[0]

    return measured(quick, name, before, model, sample)


def theirs(quick, turn, name, use_cache=True) -> dict:
    import torch

    before, model = now_mib(), gpt2(SMALL).eval()
    model.generation_config.eos_token_id = SMALL.vocab

    def sample(prompts):
        with torch.inference_mode():
            return model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
                max_new_tokens=SMALL.answer, pad_token_id=PAD, use_cache=use_cache,
            )

    return measured(quick, name, before, model, sample)


def measured(quick, name, before, model, sample) -> dict:
    import torch

    rates, seconds, cpu = {}, [], {}
    for batch in BATCHES:
        prompts = torch.randint(2, SMALL.vocab, (batch, SMALL.prompt))
        times, spent = [], []
        for _ in range(2 if quick else 8):
            started_cpu = time.process_time()
            started = time.perf_counter()
            tokens = sample(prompts)
            times.append(time.perf_counter() - started)
            spent.append(time.process_time() - started_cpu)
            if tokens.shape != (batch, SMALL.length):
                raise RuntimeError(f"sampled {tuple(tokens.shape)}")
            warmed_up()
        rates[f"{name}, batch {batch}"] = batch * (len(times) - 1) / sum(times[1:])
        cpu[f"batch {batch}"] = sum(spent[1:]) / (len(spent) - 1)
        seconds += [round(s, 4) for s in times]
    weights = 4 * parameters(model) * SMALL.answer  # read again for each token
    return {
        "rates": rates, "unit": "completions/s", "after_imports_mib": before,
        "parameters": parameters(model), "seconds": seconds, "cpu_per_step": cpu,
        "flop": dict.fromkeys(rates, forward_flop(SMALL)),
        "bytes": {f"{name}, batch {batch}": weights / batch for batch in BATCHES},
    }


VARIANTS = {
    "transformers": Variant(theirs),
    "transformers, no cache": Variant(theirs, dict(use_cache=False), once=True),
    "ours, our GPT": Variant(ours, dict(build=our_gpt)),
    "ours, our GPT, no cache": Variant(ours, dict(build=our_gpt, use_cache=False), once=True),
    "ours, same model": Variant(ours, dict(build=gpt2), once=True),
}
AIMS = [
    Aim("ours, our GPT, batch 64", "transformers, batch 64", 2.5),
    Aim("ours, our GPT, batch 256", "transformers, batch 256", 2.0),
]

if __name__ == "__main__":
    run_variant(VARIANTS)
