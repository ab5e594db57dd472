"""A pairwise ranker: one model that reads both answers at once, against one reward an answer.

Follows Jiang, Ren & Lin 2023, "LLM-Blender", arXiv 2306.02561 (PairRM). A reward model gives every
answer a number, so its preferences can never go round in a circle; a ranker is free to, as people
are (Tversky 1969, "Intransitivity of preferences"). The price: N answers cost N(N − 1) readings.

Departures: a causal language model in place of their bidirectional encoder, so that only the answer
that stands second sees the other; one comparison a pair in place of several metrics.

Leaves out: GenFuser, which then writes an answer out of the best.
"""

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import nn

from rlhf_minimal.checks import check_positive, check_same_shape
from rlhf_minimal.history import History, progress
from rlhf_minimal.log_probs import hidden_states, pad_sequences, response_mask
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    minibatches,
    optimizer_step,
    set_learning_rate,
)

__all__ = [
    "PairRanker",
    "confidences",
    "max_logits",
    "pair_ranker_loss",
    "train_pair_ranker",
]


def pair_ranker_loss(first_scores, second_scores, first_is_better):
    """Binary cross-entropy of both scores: the better answer's towards 1, the other's towards 0.

    −[z·log σ(s₁) + (1 − z)·log(1 − σ(s₁))] − [(1 − z)·log σ(s₂) + z·log(1 − σ(s₂))], the mean over
    pairs. z says which answer is better *as they stand*: with both orders in training, the place
    has nothing to teach.

    Args:
        first_scores, second_scores: the ranker's scores of the answer that stands first and of the
            one that stands second, ``(B,)`` each.
        first_is_better: z, 1 or True where the first one was preferred, ``(B,)``; a share between
            0 and 1 is a soft label.

    Returns:
        A scalar in nats; 2·log 2 = 1.3863 where the model cannot tell.

    >>> z = torch.tensor([1.0, 0.0])
    >>> pair_ranker_loss(torch.zeros(2), torch.zeros(2), z)
    tensor(1.3863)
    >>> pair_ranker_loss(torch.tensor([5.0, -5.0]), torch.tensor([-5.0, 5.0]), z)
    tensor(0.0134)
    """
    target = torch.as_tensor(first_is_better).to(first_scores.dtype)
    check_same_shape(first_scores=first_scores, second_scores=second_scores, target=target)
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("first_is_better must lie between 0 and 1")
    first = F.binary_cross_entropy_with_logits(first_scores, target)
    return first + F.binary_cross_entropy_with_logits(second_scores, 1 - target)


class PairRanker(nn.Module):
    """A language model's trunk that reads prompt, first answer, second answer; a score for each.

    Averages of a head's channels over an answer's tokens: of channel 0 over the first answer, and
    of channel 1 over the second one, which sees the first, make the first one's score; channel 2
    over the second answer makes its own.

    Args:
        model: the trunk to start from; pass a copy, its weights will be trained. Its context must
            hold a prompt and *two* answers: see :func:`rlhf_minimal.toy_judge.widen`.
    """

    def __init__(self, model):
        super().__init__()
        self.trunk = model
        self.head = nn.Linear(model.get_output_embeddings().in_features, 3)
        nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens, attention_mask, first, second):
        """Scores ``(B, 2)``; ``first`` and ``second`` are 1 on that answer's tokens, ``(B, T)``."""
        values = self.head(hidden_states(self.trunk, tokens, attention_mask))  # (B, T, 3)
        over_first, over_second = (
            (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (B, 3)
            for mask in (first, second)
        )
        return torch.stack([over_first[:, 0] + over_second[:, 1], over_second[:, 2]], -1)

    def compare(self, prompts, firsts, seconds, pad_id: int = 0):
        """The same for lists of token ids, ``B`` of each; none of them empty."""
        rows = list(zip(prompts, firsts, seconds, strict=True))
        tokens, mask = pad_sequences([[*p, *a, *b] for p, a, b in rows], pad_id)
        begin = torch.tensor([len(p) for p, _, _ in rows])
        middle = torch.tensor([len(p) + len(a) for p, a, _ in rows])
        both, second = response_mask(mask, begin), response_mask(mask, middle)
        device = self.head.weight.device
        return self(*(tensor.to(device) for tensor in (tokens, mask, both - second, second)))


def train_pair_ranker(
    ranker: PairRanker,
    pairs,
    *,
    steps: int,
    loss=pair_ranker_loss,
    batch_size: int = 24,
    lr: float = 2e-3,
    warmup: int = 10,
    schedule: str = "cosine",
    seed: int = 0,
    pad_id: int = 0,
    history: History | None = None,
    show_progress: bool = True,
) -> History:
    """Train ``ranker`` in place; which answer stands first is drawn anew each time a pair comes.

    Args:
        pairs: :class:`~rlhf_minimal.pairs.TokenPair`, as many as there are.
        loss: called as ``loss(first_scores, second_scores, first_is_better)``.

    Returns:
        The history: a row a step with loss and accuracy.
    """
    check_positive(steps=steps, batch_size=batch_size, lr=lr)
    history = history if history is not None else History()
    optimizer = adamw(ranker, lr)
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs]
    batches = minibatches(len(pairs), batch_size, steps, generator, lengths)
    with history:
        for step in progress(steps, "pair ranker", show_progress):
            batch = [pairs[i] for i in next(batches).tolist()]
            chosen_first = torch.rand(len(batch), generator=generator) < 0.5
            scores = ranker.compare(*_in_order(batch, chosen_first.tolist()), pad_id)  # (B, 2)
            z = chosen_first.to(scores)
            value = loss(scores[:, 0], scores[:, 1], z)
            right = (scores[:, 0] > scores[:, 1]) == (z == 1)
            set_learning_rate(optimizer, lr * learning_rate_factor(step, steps, warmup, schedule))
            optimizer_step(optimizer, value)
            history.record(step=step, loss=value, accuracy=right.float().mean())
    return history


def _in_order(pairs, chosen_first):
    """Prompts, first answers and second answers."""
    turned = [
        (prompt, chosen, rejected) if first else (prompt, rejected, chosen)
        for (prompt, chosen, rejected), first in zip(pairs, chosen_first, strict=True)
    ]
    return zip(*turned, strict=True)


@torch.no_grad()
def confidences(ranker: PairRanker, prompt, answers, pad_id: int = 0):
    """How much sooner each answer is preferred to each other one, both orders averaged.

    Args:
        prompt, answers: token ids; N answers.

    Returns:
        ``(N, N)``: entry i, j is the mean of s_i − s_j over both orders; antisymmetric, and above 0
        where i is preferred. It cost N(N − 1) readings.
    """
    order = list(permutations(range(len(answers)), 2))
    if not order:
        raise ValueError("there is one answer or none; a comparison needs two")
    columns = zip(*[(prompt, answers[i], answers[j]) for i, j in order], strict=True)
    scores = ranker.compare(*columns, pad_id)
    table = torch.zeros(len(answers), len(answers))
    for (i, j), (s_i, s_j) in zip(order, scores.tolist(), strict=True):
        table[i, j] += (s_i - s_j) / 2
        table[j, i] -= (s_i - s_j) / 2
    return table


def max_logits(table):
    """One score an answer out of all comparisons: the sum of its confidences over all others.

    Jiang et al. 2023 call this aggregation MaxLogits: the answer with the largest sum is the best.

    Args:
        table: ``(N, N)`` confidences, entry i, j above 0 where i is preferred to j.

    >>> max_logits(torch.tensor([[0.0, 2.0, 1.0], [-2.0, 0.0, 1.0], [-1.0, -1.0, 0.0]]))
    tensor([ 3., -1., -2.])
    """
    if table.dim() != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"table has shape {tuple(table.shape)}; it must be (N, N)")
    return table.sum(-1)
