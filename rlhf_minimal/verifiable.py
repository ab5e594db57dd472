"""Rewards that need no person and no reward model: a verifier, and what to measure with it.

Follows Chen et al. 2021, arXiv 2107.03374 (pass@k).

Leaves out: running code against tests, which needs walls around it (``autograder`` has some).
"""

import torch

from rlhf_minimal.checks import check_positive

__all__ = ["pass_at_k", "verify_answer"]

DIGITS = "0123456789"


def verify_answer(text: str, solution: int) -> float:
    """1.0 if ``text`` ends in the solution, in the only brackets it has; else 0.0.

    A verifier is a reward model that nobody trained. What it lets pass will be found: so it reads
    digits only (``eval`` would let the question itself pass), and one bracket only (or all numbers
    could be listed).

    Args:
        text: an answer; its working before the bracket is free.
        solution: the right result, 0 or above.

    >>> verify_answer("7 + 8 = 1 5 , 3 + 4 + 1 = 8 , [ 8 5 ]", 85)
    1.0
    >>> verify_answer("[ 8 4 ] [ 8 5 ]", 85), verify_answer("3 7 + 4 8 = 8 5", 85)
    (0.0, 0.0)
    """
    text = text.strip()
    if text.count("[") != 1 or text.count("]") != 1 or not text.endswith("]"):
        return 0.0
    digits = "".join(text[text.index("[") + 1 : -1].split())
    if not digits or not set(digits) <= set(DIGITS):
        return 0.0
    return float(int(digits) == solution)


def pass_at_k(correct, samples: int, k: int):
    """The chance that one of ``k`` answers is right, from ``samples`` of which some were.

    1 − C(n − c, k)/C(n, k): of all ways to choose k of the n answers, the share that holds a right
    one. Free of bias for every k ≤ n, where 1 − (1 − c/n)^k is too low (Chen et al. 2021, arXiv
    2107.03374, section 2.1).

    Args:
        correct: c, how many of the answers to each question were right, ``(B,)``.
        samples: n, answers to each question.
        k: 1 to n.

    Returns:
        ``(B,)``, one estimate a question; their mean is the benchmark's number.

    >>> pass_at_k(torch.tensor([0, 1, 3]), samples=4, k=2)
    tensor([0.0000, 0.5000, 1.0000])
    """
    check_positive(k=k)
    if k > samples:
        raise ValueError(f"k is {k} of {samples} samples; draw more answers, or ask for fewer")
    if bool((correct > samples).any()) or bool((correct < 0).any()):
        raise ValueError(f"correct is {correct.tolist()}; it must lie in 0 to {samples} = samples")
    wrong = (samples - correct)[:, None].double()  # (B, 1)
    drawn = torch.arange(k, dtype=torch.float64)
    # k draws, all wrong. Where there are fewer than k wrong ones, a factor is 0, and the product.
    return (1 - ((wrong - drawn) / (samples - drawn)).prod(-1)).float()
