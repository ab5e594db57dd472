"""Preference pairs as token ids: batches of them, and the training loop that all losses share.

Several answers to one prompt make more pairs than answers: four make six. Such pairs stay in one
batch, where each answer is computed once (Ouyang et al. 2022, arXiv 2203.02155, section 3.4, for
reward models).

Leaves out: losses, each in its method's file, and answers without an opponent.
"""

import math
from functools import partial
from typing import NamedTuple

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.engine import Engine
from rlhf_minimal.history import History, progress
from rlhf_minimal.log_probs import answer_log_probs, pad_sequences, response_mask
from rlhf_minimal.training import learning_rate_factor, minibatches

__all__ = [
    "DistinctAnswers",
    "PairLogProbs",
    "TokenPair",
    "collate_answers",
    "distinct_answers",
    "number_answers",
    "pair_batches",
    "pair_log_probs",
    "train_on_pairs",
]


class TokenPair(NamedTuple):
    """One comparison as token ids; each answer ends with its end token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class PairLogProbs(NamedTuple):
    """Summed answer log-probabilities of ``B`` pairs and the tokens in each sum, ``(B,)``."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor


def collate_answers(prompts, answers, pad_id: int, device=None):
    """Prompts with their answers behind them, padded on the right.

    Args:
        prompts, answers: ``B`` lists of token ids each; no prompt and no answer is empty.

    Returns:
        ``tokens``, ``attention_mask`` and the answers' ``mask``, each ``(B, T)``.
    """
    for name, sequences in (("prompt", prompts), ("answer", answers)):
        empty = [row for row, sequence in enumerate(sequences) if len(sequence) == 0]
        if empty:
            raise ValueError(f"the {name} of row {empty[0]} is empty; drop such rows beforehand")
    together = [list(p) + list(a) for p, a in zip(prompts, answers, strict=True)]
    tokens, attention_mask = pad_sequences(together, pad_id)
    mask = response_mask(attention_mask, torch.tensor([len(p) for p in prompts]))
    return tokens.to(device), attention_mask.to(device), mask.to(device)


class DistinctAnswers(NamedTuple):
    """The ``N`` different answers of ``B`` pairs, as a batch, and which of them each pair compares.

    ``tokens``, ``attention_mask`` and the answers' ``mask`` are ``(N, T)``; ``chosen`` and
    ``rejected`` are row numbers ``(B,)``.
    """

    tokens: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor


def distinct_answers(pairs, pad_id: int, device=None) -> DistinctAnswers:
    """Each different answer of some pairs once: what the model has to compute.

    >>> pairs = [TokenPair([5], [6], [7]), TokenPair([5], [6], [8])]
    >>> batch = distinct_answers(pairs, pad_id=0)
    >>> batch.tokens.tolist(), batch.chosen.tolist(), batch.rejected.tolist()
    ([[5, 6], [5, 7], [5, 8]], [0, 0], [1, 2])
    """
    answers, numbers = number_answers(pairs)
    chosen, rejected = numbers.to(device).unbind(-1)
    batch = collate_answers(*zip(*answers, strict=True), pad_id, device)
    return DistinctAnswers(*batch, chosen, rejected)


def number_answers(pairs):
    """The ``N`` different (prompt, answer) of some pairs, and their numbers in each, ``(B, 2)``."""
    rows: dict[tuple, int] = {}
    numbers = [
        rows.setdefault((tuple(prompt), tuple(answer)), len(rows))
        for prompt, chosen, rejected in pairs
        for answer in (chosen, rejected)
    ]
    return list(rows), torch.tensor(numbers).view(-1, 2)


def pair_log_probs(model, pairs, pad_id: int, score=None) -> PairLogProbs:
    """Log π(answer | prompt) of both answers of each pair, in one forward pass.

    Args:
        score: called with tokens, attention mask and answer mask, in place of the model's
            :func:`~rlhf_minimal.log_probs.answer_log_probs`.
    """
    device = next(model.parameters()).device
    *batch, chosen, rejected = distinct_answers(pairs, pad_id, device)
    sums = (score or partial(answer_log_probs, model))(*batch).sum(-1)  # (N,)
    lengths = batch[2][:, 1:].sum(-1)
    return PairLogProbs(sums[chosen], sums[rejected], lengths[chosen], lengths[rejected])


def pair_batches(pairs, batch_size: int, steps: int, generator):
    """``steps`` index tensors of about ``batch_size`` pairs, reshuffled every epoch.

    Consecutive pairs that share an answer come together, up to a batch of them; exactly
    ``batch_size`` pairs a batch where no two do.
    """
    check_positive(batch_size=batch_size)
    groups: list[list[int]] = []
    last: tuple = ()
    for i, (prompt, chosen, rejected) in enumerate(pairs):
        pair = (tuple(prompt), tuple(chosen)), (tuple(prompt), tuple(rejected))
        if not set(pair).isdisjoint(last) and len(groups[-1]) < batch_size:
            groups[-1].append(i)
        else:
            groups.append([i])
            last = ()
        last += pair
    lengths = [max(pairs[i].longest for i in group) for group in groups]
    size = max(1, round(batch_size * len(groups) / max(len(pairs), 1)))
    for batch in minibatches(len(groups), size, steps, generator, lengths):
        yield torch.tensor([i for number in batch.tolist() for i in groups[number]])


def train_on_pairs(
    policy,
    pairs,
    pair_loss,
    *,
    steps: int,
    batch_size: int = 32,
    micro_batch: int | None = None,
    lr: float = 1e-4,
    warmup: int = 0,
    schedule: str = "constant",
    seed: int = 0,
    pad_id: int = 0,
    history: History | None = None,
    show_progress: bool = True,
    label: str = "pairs",
    after_step=None,
    share_prompts: bool = False,
    engine: Engine | None = None,
) -> History:
    """The loop that all losses on pairs share.

    Args:
        pair_loss: ``pair_loss(PairLogProbs, rows) -> (scalar, dict of numbers to watch)``.
        steps: optimizer steps, each on ``batch_size`` pairs; about so many where pairs share
            answers, which then stay together: see :func:`pair_batches`.
        micro_batch: pairs that go through the model at once; the gradients of a batch's parts add
            up to the whole's. ``None``: the whole batch.
        history: where to record; a :class:`History` with a path survives Ctrl-C on disk.
        after_step: called with the number of steps done, after each: save the model there.
        share_prompts: compute a prompt once for its answers: the same numbers but for rounding,
            and about a quarter less work where prompts are as long as answers.
        engine: how a step is carried out (its own ``share_prompts`` then counts); by default in
            this process alone. One that has done steps before goes on from there, with the batches
            that it would have had.
    """
    check_positive(steps=steps, batch_size=batch_size, lr=lr)
    if micro_batch is not None:
        check_positive(micro_batch=micro_batch)
    history = history if history is not None else History()
    engine = engine if engine is not None else Engine(policy, lr, share_prompts=share_prompts)
    generator = torch.Generator().manual_seed(seed)
    batches = list(pair_batches(pairs, batch_size, steps, generator))
    with history:
        for step in progress(range(engine.steps_done, steps), label, show_progress):
            rate = lr * learning_rate_factor(step, steps, warmup, schedule)
            watched = _accumulate(engine, pairs, batches[step], pair_loss, micro_batch, pad_id)
            norm = engine.step(rate)
            history.record(step=step, **watched, grad_norm=norm, lr=rate)
            if after_step is not None:
                after_step(step + 1)
    return history


def _accumulate(engine, pairs, rows, pair_loss, micro_batch, pad_id) -> dict:
    """Backward through one batch, part by part; returns its loss and watched numbers."""
    totals: dict[str, float] = {}
    whole, rows = len(rows), engine.processes.share(rows)
    if micro_batch:  # pairs of like length share a part, which saves padding
        rows = torch.tensor(sorted(rows.tolist(), key=lambda i: pairs[i].longest))
    parts = rows.split(micro_batch or len(rows))
    for index, part in enumerate(parts, start=1):
        with engine.part(last=index == len(parts)):
            chosen_pairs = [pairs[i] for i in part.tolist()]
            log_probs = pair_log_probs(engine.policy, chosen_pairs, pad_id, engine.score)
            value, watched = pair_loss(log_probs, part)
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"the loss is {value.item()} on pairs {part.tolist()}: a learning rate too "
                    "high, or a bad pair"
                )
            share = len(part) / whole
            engine.backward(value * share)
        for name, number in {"loss": value.detach(), **watched}.items():
            totals[name] = totals.get(name, 0.0) + share * float(number)
    return engine.processes.total(totals)
