"""RLHF with PPO: raise a learned reward while staying close to the SFT model.

Maximises E[r(x, y)] − β·KL(π‖π_ref): the KL enters token by token as a reward of −β·log(π/π_ref),
the score at the last token. Follows Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022,
arXiv 2203.02155; and for the details that matter, Huang et al. 2024, arXiv 2403.17031.

Departures: the value function is a linear head on the policy's features, and its gradient stays
out of them, because it disturbs a model this small (pass ``value_model`` for a model of its own);
no pretraining mix ("ptx").

Leaves out: several devices, and rewards for parts of an answer.
"""

import torch
from torch import nn

from rlhf_minimal.checks import check_finite, check_mask, check_nonnegative, check_positive
from rlhf_minimal.history import History, progress
from rlhf_minimal.log_probs import answer_log_probs, hidden_states
from rlhf_minimal.ppo import clip_fraction, clipped_policy_loss, gae, value_loss
from rlhf_minimal.rollouts import Rollouts, sample_rollouts, score_rollouts
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    optimizer_step,
    set_learning_rate,
)

__all__ = ["PolicyWithValue", "kl_shaped_rewards", "token_advantages", "train_rlhf", "whiten"]


def kl_shaped_rewards(scores, log_probs, ref_log_probs, mask, beta: float):
    """A reward a token: −β·(log π − log π_ref), and the score on top at the last answer token.

    Summed over an answer this is r(x, y) − β·log(π(y|x)/π_ref(y|x)), whose mean over samples of π
    is the objective E[r] − β·KL(π‖π_ref).

    Args:
        scores: one a sequence, ``(B,)``.
        log_probs, ref_log_probs: of the sampled tokens, ``(B, T)``.
        mask: 1 on answer tokens, ``(B, T)``.
        beta: at least 0; larger keeps the policy closer to the reference.

    Returns:
        ``(B, T)``, zeros outside the answers.

    Raises:
        ValueError: shapes do not fit, a score is not finite, beta < 0, an answer has no token.

    >>> kl_shaped_rewards(torch.tensor([1.0]), torch.tensor([[-1.0, -2.0, 0.0]]),
    ...     torch.tensor([[-1.5, -1.0, 0.0]]), torch.tensor([[1, 1, 0]]), beta=0.5)
    tensor([[-0.2500,  1.5000,  0.0000]])
    """
    check_mask(mask, log_probs, "log_probs")
    check_mask(mask, ref_log_probs, "ref_log_probs")
    check_nonnegative(beta=beta)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, not {tuple(mask.shape[:1])}")
    check_finite("scores", scores)
    counts = mask != 0
    empty = ~counts.any(-1)
    if bool(empty.any()):
        raise ValueError(f"row {int(empty.nonzero()[0])} of mask has no answer token to reward")
    rewards = torch.where(counts, -beta * (log_probs - ref_log_probs), 0.0)
    last = (torch.arange(mask.shape[1], device=mask.device) * counts).argmax(-1)  # (B,)
    return rewards.scatter_add(-1, last[:, None], scores[:, None].to(rewards.dtype))


def whiten(values, mask):
    """Shift and scale the masked values to mean 0 and variance 1; zeros elsewhere.

    Whiten advantages, not rewards: returns computed from shifted rewards are those of another task.
    The variance is the population's (1/n), so that a single token becomes 0 and not NaN.

    >>> whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]]))
    tensor([[-1.,  1.,  0.]])
    """
    check_mask(mask, values)
    counts = mask != 0
    variance, mean = torch.var_mean(values[counts], correction=0)
    return torch.where(counts, (values - mean) * (variance + 1e-8).rsqrt(), 0.0)


def token_advantages(rewards, values, mask, gamma: float = 1.0, lam: float = 0.95):
    """Generalised advantage estimates over an answer's tokens, and the returns they imply.

    Args:
        rewards, values: a number a token, ``(B, T)``; ``values[:, t]`` is that of the context
            *before* token t.
        mask: 1 on answer tokens, one run a row, ``(B, T)``; its last token ends the episode.

    Returns:
        ``advantages`` and ``returns = advantages + values``, ``(B, T)``, zeros outside the answers.
    """
    check_mask(mask, rewards, "rewards")
    counts = mask != 0
    following = torch.cat([counts[:, 1:], torch.zeros_like(counts[:, :1])], -1)
    last = (counts & ~following).float()
    values = values.masked_fill(~counts, 0.0)
    rewards = rewards.masked_fill(~counts, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], -1)
    by_time = (tensor.T for tensor in (rewards, values, next_values, last, last))
    advantages = gae(*by_time, gamma, lam).T.masked_fill(~counts, 0.0)  # (T, B) -> (B, T)
    return advantages, advantages + values


class PolicyWithValue(nn.Module):
    """A policy and a value head on its trunk, or a value model of its own beside it.

    Args:
        policy: a causal language model.
        value_model: anything with ``token_values(tokens, attention_mask) -> (B, T)``, say a copy of
            the reward model, as InstructGPT does; ``None`` puts a linear head on the policy.
    """

    def __init__(self, policy, value_model=None):
        super().__init__()
        self.policy, self.has_value_model = policy, value_model is not None
        self.critic = value_model
        if value_model is None:
            self.critic = nn.Linear(policy.get_output_embeddings().in_features, 1)
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)

    def forward(self, rollouts: Rollouts):
        """Log-probabilities of answer tokens and values of their contexts, ``(B, T - 1)`` each."""
        if self.has_value_model:
            values = self.critic.token_values(rollouts.tokens, rollouts.attention_mask)
            return answer_log_probs(self.policy, *rollouts), values[:, :-1]
        hidden = hidden_states(self.policy, rollouts.tokens, rollouts.attention_mask)
        log_probs = answer_log_probs(self.policy, *rollouts, hidden=hidden)
        return log_probs, self.critic(hidden[:, :-1].detach()).squeeze(-1)


def train_rlhf(
    policy,
    reference,
    score,
    prompts,
    *,
    steps: int,
    beta: float,
    max_new_tokens: int,
    end_id: int,
    pad_id: int = 0,
    batch_size: int = 64,
    epochs: int = 2,
    minibatch_size: int = 64,
    lr: float = 1e-3,
    schedule: str = "linear",
    value_lr: float = 1e-2,
    clip: float = 0.2,
    lam: float = 0.95,
    seed: int = 0,
    value_model=None,
    shaped_rewards=kl_shaped_rewards,
    advantages=token_advantages,
    whitening=whiten,
    policy_loss=clipped_policy_loss,
    critic_loss=value_loss,
    watch=None,
    history: History | None = None,
    show_progress: bool = True,
) -> History:
    """Train ``policy`` in place by PPO against ``score``, with a KL penalty towards ``reference``.

    Args:
        score: called as ``score(rollouts) -> (B,)``, say a reward model's.
        prompts: lists of token ids, from which each step draws ``batch_size``.
        beta: price of a nat of KL, at least 0.
        epochs, minibatch_size: passes over each batch of rollouts, and rows a descent step.
        lr, schedule: learning rate and how it falls ("constant", "linear", "cosine").
        value_lr: learning rate of the critic. 0.01 suits a linear head, which starts from nothing;
            a ``value_model`` all of whose weights learn wants one near ``lr``.
        watch: called as ``watch(rollouts) -> dict`` each step; its numbers go into the history.

    Returns:
        The history: a row a step with score, kl (nats an answer), length, losses, clip fraction.
    """
    check_positive(steps=steps, batch_size=batch_size, epochs=epochs, lr=lr)
    check_positive(minibatch_size=minibatch_size, prompts=len(prompts))
    check_positive(value_lr=value_lr)
    check_nonnegative(beta=beta)
    history = history if history is not None else History()
    model = PolicyWithValue(policy, value_model)
    optimizer = adamw(policy, lr)
    critic_optimizer = adamw(model.critic, value_lr)
    generator = torch.Generator().manual_seed(seed)
    with history:
        for step in progress(steps, f"PPO β={beta:g}", show_progress):
            factor = learning_rate_factor(step, steps, 0, schedule)
            set_learning_rate(optimizer, lr * factor)
            set_learning_rate(critic_optimizer, value_lr * factor)
            rows = torch.randint(len(prompts), (batch_size,), generator=generator)
            rollouts = sample_rollouts(
                policy,
                [prompts[i] for i in rows],
                max_new_tokens=max_new_tokens,
                end_id=end_id,
                pad_id=pad_id,
                generator=generator,
            )
            with torch.no_grad():
                old_log_probs, values = model(rollouts)
                ref_log_probs = answer_log_probs(reference, *rollouts)
                scores = score_rollouts(score, rollouts)
            mask = rollouts.mask[:, 1:]
            rewards = shaped_rewards(scores, old_log_probs, ref_log_probs, mask, beta)
            advantage, returns = advantages(rewards, values, mask, lam=lam)
            advantage = whitening(advantage, mask)

            for part in _parts(batch_size, epochs, minibatch_size, generator):
                log_probs, new_values = model(rollouts.rows(part))
                where = mask[part]
                policy_term = policy_loss(
                    log_probs, old_log_probs[part], advantage[part], clip, where
                )
                value_term = critic_loss(new_values, returns[part], where)
                optimizer_step(optimizer, policy_term)
                optimizer_step(critic_optimizer, value_term)

            history.record(
                step=step,
                score=scores.mean(),
                kl=(old_log_probs - ref_log_probs).sum(-1).mean(),
                length=mask.sum(-1).float().mean(),
                policy_loss=policy_term.detach(),
                value_loss=value_term.detach(),
                clip_fraction=clip_fraction(log_probs.detach(), old_log_probs[part], clip, where),
                **(watch(rollouts) if watch else {}),
            )
    return history


def _parts(size: int, epochs: int, part_size: int, generator):
    """Index tensors that cover ``size`` rows ``epochs`` times, in a new order each time."""
    for _ in range(epochs):
        yield from torch.randperm(size, generator=generator).split(part_size)
