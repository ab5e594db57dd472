"""Preferences that go round: an annotator who has them, and how to count circles.

People's choices do it too, where two answers differ in several ways and the pair decides which one
catches the eye (Tversky 1969, "Intransitivity of preferences"). No reward, one number an answer,
can say a ≻ b ≻ c ≻ a.

Leaves out: telling a circle from noise by a test; with labels of 76% agreement many are noise.
"""

import math
import random
from dataclasses import dataclass

import torch

from rlhf_minimal.gold_reward import Annotator
from rlhf_minimal.toy_world import is_summary

__all__ = ["CircularAnnotator", "circular_triads", "opening_style"]

STYLES = {"take": 0, "you": 1, "sure": 2, "of": 2, "gladly": 2}


def opening_style(prompt: str, answer: str) -> int | None:
    """How an answer to a question opens: 0 "take …", 1 "you need …", 2 politely; else ``None``."""
    return None if is_summary(prompt) else STYLES.get(answer.partition(" ")[0])


@dataclass(frozen=True)
class CircularAnnotator(Annotator):
    """An annotator to whom "take" beats "you need" beats politeness beats "take".

    Args:
        circle: what the better opening of the two is worth, in gold-reward units; 0 is the plain
            :class:`~rlhf_minimal.gold_reward.Annotator`. The others are the plain annotator's.
    """

    circle: float = 2.0

    def lead(self, prompt: str, first: str, second: str) -> float:
        """By how much the first answer is ahead in this annotator's eyes; above 0: it is better."""
        ahead = self.score(prompt, first) - self.score(prompt, second)
        styles = opening_style(prompt, first), opening_style(prompt, second)
        if None not in styles:
            ahead += self.circle * (0, 1, -1)[(styles[1] - styles[0]) % 3]
        return ahead

    def prefers_first(self, prompt: str, first: str, second: str, rng: random.Random) -> bool:
        """One comparison, drawn with ``rng`` as the plain annotator draws it."""
        ahead = self.lead(prompt, first, second)
        probability = 0.5 + 0.5 * math.tanh(ahead / (2 * self.temperature))  # σ, no overflow
        probability = probability * (1 - self.noise) + (1 - probability) * self.noise
        return rng.random() < probability


def circular_triads(table) -> int:
    """How many three answers go round in a circle: i over j, j over k, k over i.

    Of N(N − 1)(N − 2)/6 triads those are *not* circular in which one answer beats both others; with
    w_i wins these are Σ w_i(w_i − 1)/2 (Kendall & Babington Smith 1940).

    Args:
        table: ``(N, N)``, above 0 where i is preferred to j.

    Raises:
        ValueError: the table is not square, or two answers tie or both win: break ties first.

    >>> circular_triads([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    1
    """
    table = torch.as_tensor(table)
    if table.dim() != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"table has shape {tuple(table.shape)}; it must be (N, N)")
    size, wins = len(table), table > 0
    if bool(((wins == wins.T) & ~torch.eye(size, dtype=torch.bool)).any()):
        raise ValueError("two answers tie, or both beat each other; circles need clear wins")
    won = wins.fill_diagonal_(False).sum(-1)
    return size * (size - 1) * (size - 2) // 6 - int((won * (won - 1) // 2).sum())
