"""Reward models: a language model with a scalar head, taught by comparisons or by ratings.

Follows Ouyang et al. 2022, arXiv 2203.02155, section 3.5: the SFT model without its output layer, a
linear head on the last token, −log σ(r_chosen − r_rejected).

Departure: ``pooling="mean"`` reads the head at every token and averages: a short way from a fault
to the reward, which a model of 100,000 weights learns sooner than to gather all in its last token.

Leaves out: ensembles, and uncertainty of the reward.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from rlhf_minimal.checks import check_finite, check_positive, check_same_shape
from rlhf_minimal.history import History, progress
from rlhf_minimal.log_probs import hidden_states
from rlhf_minimal.pairs import collate_answers, distinct_answers, pair_batches
from rlhf_minimal.shared_prompts import shared_hidden_states
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    minibatches,
    optimizer_step,
    set_learning_rate,
)

__all__ = [
    "RewardModel",
    "last_token_reward",
    "pairwise_loss",
    "rating_loss",
    "train_on_ratings",
    "train_reward_model",
]


def pairwise_loss(chosen, rejected, margin=0.0):
    """−log σ(r_chosen − r_rejected − margin), the mean over pairs: Bradley–Terry's likelihood.

    The −log matters: without it the "loss" σ(r_w − r_l) falls as the model gets worse.

    Args:
        chosen, rejected: rewards, ``(B,)`` each.
        margin: by how much chosen should win; a number, or ``(B,)`` where graders said how sure.

    Returns:
        A scalar in nats; log 2 = 0.6931 where the model cannot tell.

    >>> pairwise_loss(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """
    check_same_shape(chosen=chosen, rejected=rejected)
    if isinstance(margin, torch.Tensor) and margin.dim() > 0:
        check_same_shape(chosen=chosen, margin=margin)
    return -F.logsigmoid(chosen - rejected - margin).mean()


def rating_loss(predicted, ratings):
    """Mean squared error between predicted rewards and human ratings.

    What remains when people score single answers; it inherits every rater's private scale.

    Args:
        predicted: rewards given by the model, ``(B,)``.
        ratings: what people gave, ``(B,)``, on one common scale.

    Returns:
        A scalar, in squared rating units.

    >>> rating_loss(torch.tensor([7.0, 2.0]), torch.tensor([8.0, 2.0]))
    tensor(0.5000)
    """
    check_same_shape(predicted=predicted, ratings=ratings)
    check_finite("ratings", ratings)
    return (predicted - ratings).square().mean()


def _check_rows(attention_mask) -> None:
    if not bool(attention_mask.any(-1).all()):
        raise ValueError("a row of attention_mask has no real token: nothing to score")


def last_token_reward(values, attention_mask):
    """The value at each row's last real token, whichever side is padded.

    Args:
        values: a number a token, ``(B, T)``.
        attention_mask: 1 for real tokens, ``(B, T)``.

    Returns:
        ``(B,)``.

    >>> last_token_reward(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]]))
    tensor([2.])
    """
    check_same_shape(values=values, attention_mask=attention_mask)
    _check_rows(attention_mask)
    positions = torch.arange(values.shape[1], device=values.device)
    last = (positions * (attention_mask != 0)).argmax(-1)  # (B,)
    return values.gather(-1, last[:, None]).squeeze(-1)


class RewardModel(nn.Module):
    """A language model's trunk and a linear head: one number for a prompt with its answer.

    Args:
        model: the causal language model to start from; pass a copy, its weights will be trained.
        pooling: "last" reads the head at the last real token, as the literature does; "mean" is
            its mean over all real tokens.

    The head starts at N(0, 1/D) for hidden states of width D (Huang et al. 2024): from zero, small
    models take long to leave "all rewards are equal". ``offset`` is subtracted from each reward and
    is set by :meth:`centre`, because comparisons leave the zero of the scale open.
    """

    def __init__(self, model, pooling: str = "last"):
        super().__init__()
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling is {pooling!r}; it must be 'last' or 'mean'")
        self.trunk, self.pooling = model, pooling
        self.head = nn.Linear(model.get_output_embeddings().in_features, 1)
        nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("offset", torch.zeros(()))

    def token_values(self, tokens, attention_mask, hidden=None):
        """A number at every token, ``(B, T)``; ``hidden`` where the trunk's states are known."""
        hidden = hidden_states(self.trunk, tokens, attention_mask) if hidden is None else hidden
        return self.head(hidden).squeeze(-1) - self.offset

    def forward(self, tokens, attention_mask, hidden=None):
        """Rewards ``(B,)`` of prompts with their answers."""
        values = self.token_values(tokens, attention_mask, hidden)
        if self.pooling == "last":
            return last_token_reward(values, attention_mask)
        real = attention_mask != 0
        _check_rows(attention_mask)
        return values.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)

    def critic(self) -> "RewardModel":
        """A copy whose frozen features a new head, starting at zero, reads as a value function.

        InstructGPT starts its value function from the reward model too (Ouyang et al. 2022,
        appendix C.4), and trains all of it.
        """
        copied = copy.deepcopy(self)
        copied.trunk.requires_grad_(False)
        nn.init.zeros_(copied.head.weight)
        nn.init.zeros_(copied.head.bias)
        copied.offset.zero_()
        return copied

    @torch.no_grad()
    def centre(self, rewards) -> None:
        """Move the scale's zero to the mean of ``rewards`` that this model gave."""
        self.offset += rewards.mean()


def train_reward_model(
    model: RewardModel,
    pairs,
    *,
    steps: int,
    loss=pairwise_loss,
    pad_id: int = 0,
    share_prompts: bool = False,
    **options,
) -> History:
    """Train ``model`` in place on comparisons; a row a step with loss and accuracy comes back.

    Args:
        pairs: :class:`~rlhf_minimal.pairs.TokenPair`, as many as there are.
        loss: called as ``loss(chosen, rejected)``, ``(B,)`` each.
        share_prompts: compute a prompt once for its answers.
        options: batch_size, lr, warmup, schedule, seed, history, show_progress.
    """
    device = next(model.parameters()).device

    def batch_loss(rows):
        batch = distinct_answers([pairs[i] for i in rows], pad_id, device)
        known = [shared_hidden_states(model.trunk, *batch[:3])] if share_prompts else []
        rewards = model(batch.tokens, batch.attention_mask, *known)  # (N,), each answer once
        chosen, rejected = rewards[batch.chosen], rewards[batch.rejected]
        return loss(chosen, rejected), {"accuracy": (chosen > rejected).float().mean()}

    return _train(model, partial(pair_batches, pairs), batch_loss, steps, **options)


def train_on_ratings(
    model: RewardModel,
    examples,
    ratings,
    *,
    steps: int,
    loss=rating_loss,
    pad_id: int = 0,
    **options,
) -> History:
    """Train ``model`` in place on single answers with a rating each.

    Args:
        examples, ratings: ``N`` pairs of token-id lists, prompt and answer; and ``(N,)``.
        loss: called as ``loss(predicted, ratings)``, ``(B,)`` each.
    """
    ratings = torch.as_tensor(ratings, dtype=torch.float32)
    if len(ratings) != len(examples):
        raise ValueError(f"there are {len(examples)} examples but {len(ratings)} ratings")
    check_finite("ratings", ratings)
    device = next(model.parameters()).device

    def batch_loss(rows):
        prompts, answers = zip(*(examples[i] for i in rows), strict=True)
        tokens, attention_mask, _ = collate_answers(prompts, answers, pad_id, device)
        return loss(model(tokens, attention_mask), ratings[rows].to(tokens.device)), {}

    batches = partial(minibatches, len(examples), lengths=[len(p) + len(a) for p, a in examples])
    return _train(model, batches, batch_loss, steps, **options)


def _train(
    model,
    batches,
    batch_loss,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    warmup: int = 10,
    schedule: str = "cosine",
    seed: int = 0,
    history: History | None = None,
    show_progress: bool = True,
) -> History:
    """The loop that both share; ``batches(batch_size, steps, generator=…)`` yields row numbers."""
    check_positive(steps=steps, batch_size=batch_size, lr=lr)
    history = history if history is not None else History()
    optimizer = adamw(model, lr)
    generator = torch.Generator().manual_seed(seed)
    rows = batches(batch_size, steps, generator=generator)
    with history:
        for step in progress(steps, "reward model", show_progress):
            value, watched = batch_loss(next(rows).tolist())
            set_learning_rate(optimizer, lr * learning_rate_factor(step, steps, warmup, schedule))
            optimizer_step(optimizer, value)
            history.record(step=step, loss=value, **watched)
    return history
