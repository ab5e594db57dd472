"""The loop that GRPO and RLOO share: a group of answers to each prompt, scored and compared.

Leaves out: sampling while training, which large models need to keep their processors busy.
"""

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.engine import AnswerScorer
from rlhf_minimal.history import History, progress
from rlhf_minimal.rollouts import sample_rollouts, score_rollouts
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    optimizer_step,
    set_learning_rate,
)

__all__ = ["train_on_groups"]


def train_on_groups(
    policy,
    reference,
    score,
    prompts,
    shaped,
    advantages,
    group_loss,
    *,
    steps: int,
    max_new_tokens: int,
    end_id: int,
    pad_id: int = 0,
    group_size: int = 8,
    prompts_a_step: int = 8,
    epochs: int = 1,
    lr: float = 1e-3,
    schedule: str = "linear",
    seed: int = 0,
    share_prompts: bool = False,
    watch=None,
    history: History | None = None,
    show_progress: bool = True,
    label: str = "groups",
) -> History:
    """Train ``policy`` in place on groups of sampled answers.

    Args:
        shaped: ``shaped(scores, log_ratio) -> (B,)``: rewards, from the scores and each answer's
            log π − log π_ref.
        group_loss: ``group_loss(log_probs, old, ref, advantages, mask) -> scalar``.
        epochs: descent steps on each batch of rollouts.
        lr, schedule: learning rate and how it falls ("constant", "linear", "cosine").
        share_prompts: compute a prompt once for its group's answers, see
            :mod:`~rlhf_minimal.shared_prompts`.
        watch: called as ``watch(rollouts) -> dict`` each step; its numbers go into the history.

    Returns:
        The history: a row a step with score, kl (nats an answer), length and loss.
    """
    check_positive(steps=steps, prompts_a_step=prompts_a_step, epochs=epochs, lr=lr)
    check_positive(prompts=len(prompts), group_size=group_size)
    history = history if history is not None else History()
    optimizer = adamw(policy, lr)
    log_probs_of = AnswerScorer(policy, share_prompts=share_prompts)
    ref_log_probs_of = AnswerScorer(reference, share_prompts=share_prompts)
    generator = torch.Generator().manual_seed(seed)
    sampling = dict(max_new_tokens=max_new_tokens, end_id=end_id, pad_id=pad_id)
    with history:
        for step in progress(steps, label, show_progress):
            set_learning_rate(optimizer, lr * learning_rate_factor(step, steps, 0, schedule))
            rows = torch.randint(len(prompts), (prompts_a_step,), generator=generator)
            repeated = [prompts[i] for i in rows for _ in range(group_size)]
            rollouts = sample_rollouts(policy, repeated, generator=generator, **sampling)
            mask = rollouts.mask[:, 1:]
            log_probs = log_probs_of(*rollouts)  # the first epoch's, and the old ones
            old_log_probs = log_probs.detach()
            with torch.no_grad():
                ref_log_probs = ref_log_probs_of(*rollouts)
                log_ratio = (old_log_probs - ref_log_probs).sum(-1)
                scores = score_rollouts(score, rollouts)
            rewards = shaped(scores, log_ratio).view(prompts_a_step, group_size)
            advantage = advantages(rewards).flatten()
            for epoch in range(epochs):
                if epoch:
                    log_probs = log_probs_of(*rollouts)
                value = group_loss(log_probs, old_log_probs, ref_log_probs, advantage, mask)
                optimizer_step(optimizer, value)
            history.record(
                step=step,
                score=scores.mean(),
                kl=log_ratio.mean(),
                length=mask.sum(-1).float().mean(),
                loss=value.detach(),
                **(watch(rollouts) if watch else {}),
            )
    return history
