"""PPO for language models: 64 sampled answers of 24 tokens a step, four epochs, float32.

TRL (1.9.2, the last but few that had it) trains a value model as large as the policy and asks a
reward model as large for the score. Ours runs like that too ("like for like"), and as it does by
default: a linear value head on the policy, and here a reward that counts a word.
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
    gpt2_config,
    now_mib,
    our_gpt,
    parameters,
    quieten,
    random_prompts,
    run_variant,
    ticking,
    tokenizer,
    training_bytes,
    trl_settings,
)

TITLE = "PPO, 0.86 M parameters, 24 new tokens, 64 completions a step, 4 epochs, fp32"
LR, WARM_UP, STEPS, BATCH, EPOCHS, BETA, WORD = 1e-4, 1, 5, 64, 4, 0.1, 7


def ours(quick, turn, name, build, like_for_like) -> dict:
    from rlhf_minimal.reward_model import RewardModel
    from rlhf_minimal.rlhf import train_rlhf

    before, steps = now_mib(), 1 if quick else STEPS
    model, clock = build(SMALL), Clock(WARM_UP)
    reference, value_model = copy.deepcopy(model), None
    if like_for_like:
        value_model, reward_model = (RewardModel(copy.deepcopy(model)) for _ in range(2))

    def score(rollouts):
        if like_for_like:
            return reward_model(rollouts.tokens, rollouts.attention_mask)
        return ((rollouts.tokens == WORD) & (rollouts.mask == 1)).sum(-1)

    train_rlhf(
        model, reference, score, random_prompts(SMALL, 256), steps=WARM_UP + steps, beta=BETA,
        max_new_tokens=SMALL.answer, end_id=SMALL.vocab, pad_id=PAD, batch_size=BATCH,
        epochs=EPOCHS, minibatch_size=BATCH, lr=LR, value_lr=LR, schedule="constant",
        value_model=value_model, history=clock, show_progress=False,
    )
    return result(name, model, steps, before, clock, like_for_like)


def theirs(quick, turn, name, tuned) -> dict:
    import datasets
    import torch
    from transformers import GPT2ForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    before, steps = now_mib(), 1 if quick else STEPS if tuned else 1
    quieten()
    torch.manual_seed(0)
    config, clock, model = gpt2_config(SMALL), Clock(WARM_UP), gpt2(SMALL)
    config.num_labels = 1
    value_model, reward_model = (GPT2ForSequenceClassification(config) for _ in range(2))
    options = dict(
        learning_rate=LR, per_device_train_batch_size=BATCH, num_ppo_epochs=EPOCHS, kl_coef=BETA,
        num_mini_batches=1, response_length=SMALL.answer, temperature=1.0,
        local_rollout_forward_batch_size=BATCH, num_sample_generations=0,
        total_episodes=BATCH * (WARM_UP + steps),
    )
    prompts = datasets.Dataset.from_list([{"input_ids": p} for p in random_prompts(SMALL, 256)])
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=trl_settings(PPOConfig, tuned, folder, **options), model=model,
            processing_class=tokenizer(SMALL, ends=False), ref_model=gpt2(SMALL),
            reward_model=reward_model, value_model=value_model, train_dataset=prompts,
            callbacks=[ticking(clock)],
        )
        trainer.train()
    return result(name, model, steps, before, clock, like_for_like=True)


def result(name, model, steps, before, clock, like_for_like) -> dict:
    """Forward passes: to sample, as old, the reference's, and three an epoch; the value model's and
    the reward model's on top."""
    passes = 3 + 3 * EPOCHS
    flop = passes * forward_flop(SMALL)
    if like_for_like:
        flop += (2 + 3 * EPOCHS) * forward_flop(SMALL, with_logits=False)
    moved = EPOCHS * training_bytes(SMALL, BATCH, parameters(model)) * (2 if like_for_like else 1)
    return {
        "rates": {name: BATCH / clock.per_step}, "unit": "completions/s",
        "after_imports_mib": before, "parameters": parameters(model),
        "tokens_per_step": BATCH * SMALL.length, "flop": {name: flop},
        "bytes": {name: moved / BATCH},
        "steps": steps, **clock.columns(),
    }


VARIANTS = {
    "TRL 1.9.2, its defaults": Variant(theirs, dict(tuned=False), "ppo", once=True),
    "TRL 1.9.2 tuned": Variant(theirs, dict(tuned=True), "ppo"),
    "ours like for like, our GPT": Variant(ours, dict(build=our_gpt, like_for_like=True), "ppo"),
    "ours like for like, same model": Variant(ours, dict(build=gpt2, like_for_like=True), "ppo"),
    "ours, our GPT": Variant(ours, dict(build=our_gpt, like_for_like=False), "ppo"),
}
AIMS = [
    Aim("ours, our GPT", "TRL 1.9.2 tuned", 4.0),
    Aim("ours like for like, our GPT", "TRL 1.9.2 tuned", 2.0),
]

if __name__ == "__main__":
    run_variant(VARIANTS)
