"""Strengths from comparisons: the Bradley–Terry model, and Elo, which fits it game by game.

Follows Bradley & Terry 1952 (the model), Ford 1957 (when its maximum likelihood exists) and Elo's
rating system, whose logistic curve is Bradley–Terry's in units of 400/log 10 = 173.7 points.

Leaves out: ties as an outcome of their own (count half a win each way), home advantage, priors.
"""

import torch

__all__ = ["bradley_terry_errors", "elo_update", "fit_bradley_terry"]


def _check_wins(wins) -> torch.Tensor:
    """``wins`` as a float64 matrix, after checks."""
    wins = torch.as_tensor(wins, dtype=torch.float64)
    if wins.dim() != 2 or wins.shape[0] != wins.shape[1] or wins.shape[0] < 2:
        raise ValueError(
            f"wins has shape {tuple(wins.shape)}; it must be (n, n) with n of 2 or more, "
            "wins[i, j] counting how often i beat j"
        )
    beats_itself = torch.eye(len(wins), dtype=torch.bool) & (wins != 0)
    bad = ~torch.isfinite(wins) | (wins < 0) | beats_itself
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        raise ValueError(
            f"wins[{i}, {j}] is {wins[i, j].item():g}; counts are finite, 0 or more, "
            "and 0 on the diagonal: nothing beats itself"
        )
    return wins


def _check_connected(wins) -> None:
    """Every item has beaten every other, if need be through a chain of wins (Ford 1957)."""
    reaches = (wins > 0) | torch.eye(len(wins), dtype=torch.bool)
    for middle in range(len(wins)):  # Warshall: allow one more item as a stop on the way
        reaches |= reaches[:, middle, None] & reaches[None, middle, :]
    if bool(reaches.all()):
        return
    start = int((~reaches.all(1)).nonzero()[0])
    inside = reaches[start].nonzero().flatten().tolist()
    outside = (~reaches[start]).nonzero().flatten().tolist()
    raise ValueError(
        f"none of the items {inside} ever beat one of {outside}, so the likelihood rises as their "
        "strengths drift apart without end; compare them more often, or leave one side out"
    )


def _information(wins, strengths):
    """Fisher information of the strengths, ``(n, n)``: a Laplacian with weights n_ij·p·(1 − p)."""
    probability = torch.sigmoid(strengths[:, None] - strengths[None, :])
    weight = (wins + wins.T) * probability * (1 - probability)
    return torch.diag(weight.sum(1)) - weight


def _log_likelihood(wins, strengths):
    return (wins * torch.nn.functional.logsigmoid(strengths[:, None] - strengths[None, :])).sum()


def fit_bradley_terry(wins, tolerance: float = 1e-10, max_steps: int = 100):
    """Maximum-likelihood strengths s of P(i beats j) = σ(s_i − s_j).

    Newton's method on the concave log-likelihood Σ wins[i, j]·log σ(s_i − s_j). Only differences
    of strengths are determined; the mean is set to 0.

    Args:
        wins: ``(n, n)`` counts, ``wins[i, j]`` = times i beat j; a tie is half a win each way.
        tolerance: stop when no strength moves by more than this.

    Returns:
        ``(n,)`` float64 strengths in nats (log-odds), mean 0.

    Raises:
        ValueError: not a square matrix of counts; or some items never beat the rest, directly or
            through others, and the estimate is infinite: the message names them.

    >>> fit_bradley_terry([[0, 3], [1, 0]])  # two items: the difference is log(3/1)
    tensor([ 0.5493, -0.5493], dtype=torch.float64)
    """
    wins = _check_wins(wins)
    _check_connected(wins)
    n = len(wins)
    strengths = wins.new_zeros(n)
    for _ in range(max_steps):
        expected = (wins + wins.T) * torch.sigmoid(strengths[:, None] - strengths[None, :])
        gradient = (wins - expected).sum(1)
        # Adding 1/n everywhere fills the one direction (all strengths together) that is free.
        step = torch.linalg.solve(_information(wins, strengths) + 1 / n, gradient)
        # A full Newton step may overshoot far from the top: halve it until the likelihood does not
        # fall (by more than the rounding of its sum, which is all that is left near the top).
        now = _log_likelihood(wins, strengths)
        while _log_likelihood(wins, strengths + step) < now * (1 + 1e-12):
            step = step / 2
        strengths = strengths + step
        if step.abs().max() <= tolerance:
            break
    return strengths - strengths.mean()


def bradley_terry_errors(wins, strengths=None):
    """Standard errors of the strengths, from the inverse of the Fisher information.

    Args:
        wins: as for :func:`fit_bradley_terry`.
        strengths: ``(n,)``; fitted from ``wins`` when not given.

    Returns:
        ``(n,)`` float64, one standard error each, of strengths whose mean is held at 0. A 95%
        interval is about ±1.96 of them.

    >>> bradley_terry_errors([[0, 8], [8, 0]])  # the difference's error is √(1/8 + 1/8) = 0.5
    tensor([0.2500, 0.2500], dtype=torch.float64)
    """
    wins = _check_wins(wins)
    if strengths is None:
        strengths = fit_bradley_terry(wins)
    strengths, n = torch.as_tensor(strengths, dtype=torch.float64), len(wins)
    covariance = torch.linalg.inv(_information(wins, strengths) + 1 / n) - 1 / n
    return covariance.diagonal().sqrt()


def elo_update(rating_a: float, rating_b: float, score_a: float, k: float = 32.0):
    """Both ratings after one game: R_a + k·(S_a − E_a), with E_a = 1/(1 + 10^((R_b − R_a)/400)).

    One step of gradient ascent on Bradley–Terry's likelihood; what a gains, b loses.

    Args:
        rating_a, rating_b: ratings before the game; 400 points are odds of 10 to 1.
        score_a: 1 where a won, 0 where b won, ½ for a tie.
        k: the step size in points, above 0: the most that one game can move a rating.

    Returns:
        ``(new_rating_a, new_rating_b)``.

    Raises:
        ValueError: a rating is not finite, score_a is outside [0, 1], or k is not above 0.

    >>> elo_update(1500.0, 1500.0, 1.0)
    (1516.0, 1484.0)
    >>> [round(rating, 2) for rating in elo_update(1600.0, 1200.0, 0.0)]  # E_a = 10/11
    [1570.91, 1229.09]
    """
    for name, rating in (("rating_a", rating_a), ("rating_b", rating_b)):
        if not -float("inf") < rating < float("inf"):
            raise ValueError(f"{name} is {rating}; it must be a finite number")
    if not 0 <= score_a <= 1:
        raise ValueError(f"score_a is {score_a}; it must be between 0 (b won) and 1 (a won)")
    if not 0 < k < float("inf"):
        raise ValueError(f"k is {k}; it must be above 0")
    exponent = (rating_b - rating_a) / 400
    # 10^x overflows beyond 308; such a favourite's expected score is 0 or 1 anyway.
    expected_a = 1 / (1 + 10.0 ** min(max(exponent, -300.0), 300.0))
    change = k * (score_a - expected_a)
    return rating_a + change, rating_b - change
