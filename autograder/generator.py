"""Where the cases of an exercise come from: a seeded source of sizes, numbers, masks and words.

Tensors and numbers are rounded to three decimals, so that a failing case can be shown and pasted as
it is. The same seed gives the same case, on every machine and in every order of exercises.

Leaves out: floating types other than float32 (ask torch for ``.double()``), anything of one subject
only.
"""

import hashlib
import random

import torch

__all__ = ["Generator", "seed_of"]

WORDS = [
    "salt",
    "rice",
    "soup",
    "cake",
    "milk",
    "corn",
    "bean",
    "leek",
    "plum",
    "herb",
    "oven",
    "bowl",
    "fork",
    "warm",
    "cold",
    "sweet",
    "sour",
    "fresh",
    "quick",
    "slow",
    "add",
    "stir",
    "bake",
    "chop",
    "wash",
    "serve",
    "taste",
    "boil",
    "peel",
    "mix",
]
DECIMALS = 3


def seed_of(*parts) -> int:
    """A seed that depends on all ``parts``, equal in every process.

    >>> seed_of("07.2", 1) == seed_of("07.2", 1), seed_of("07.2", 1) == seed_of("07.2", 2)
    (True, False)
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


class Generator:
    """Draws the parts of one case.

    Args:
        seed: what decides every draw.
        scale: 0 to 1; how far up its range :meth:`size` may go. The first visible cases are small,
            so that the smallest failing case is one a student can follow by hand.

    >>> g = Generator(0)
    >>> g.normal(3)
    tensor([ 1.5410, -0.2930, -2.1790])
    >>> 2 <= g.integer(2, 9) < 9
    True
    """

    def __init__(self, seed: int, scale: float = 1.0):
        self.scale = scale
        self.python = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed % (1 << 63))

    def integer(self, low: int, high: int) -> int:
        """A whole number from ``low`` up to, and without, ``high``."""
        return self.python.randrange(low, high)

    def size(self, low: int, high: int) -> int:
        """A length from ``low`` up to, and without, ``high``; near ``low`` in the first visible
        cases.
        """
        top = low + max(1, round((high - low) * self.scale))
        return self.python.randrange(low, min(top, high))

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """An int64 tensor of ``shape`` with entries from ``low`` up to, and without, ``high``."""
        return torch.randint(low, high, shape, generator=self.torch)

    def normal(self, *shape: int, mean: float = 0.0, std: float = 1.0):
        """Gaussian numbers: a tensor of ``shape``, or one float where no shape is given."""
        drawn = torch.randn(shape, generator=self.torch) * std + mean
        return self._rounded(drawn, shape)

    def uniform(self, low: float, high: float, *shape: int):
        """Uniform numbers between ``low`` and ``high``: a tensor of ``shape``, or one float."""
        drawn = torch.rand(shape, generator=self.torch) * (high - low) + low
        return (
            self._rounded(drawn, shape).clamp(low, high) if shape else self._rounded(drawn, shape)
        )

    def bool(self, p: float = 0.5) -> bool:
        """True with probability ``p``."""
        return self.python.random() < p

    def bools(self, *shape: int, p: float = 0.5) -> torch.Tensor:
        """A bool tensor of ``shape``, each entry true with probability ``p``."""
        return torch.rand(shape, generator=self.torch) < p

    def choice(self, options):
        """One of ``options``."""
        return self.python.choice(list(options))

    def sample(self, options, k: int) -> list:
        """``k`` different ones of ``options``, in random order."""
        return self.python.sample(list(options), k)

    def permutation(self, n: int) -> torch.Tensor:
        """The numbers 0 to n - 1 in random order, int64."""
        return torch.randperm(n, generator=self.torch)

    def probabilities(self, *shape: int, zeros: float = 0.0) -> torch.Tensor:
        """Rows that sum to 1 along the last dimension; each entry is 0 with probability ``zeros``.
        """
        weights = torch.randn(shape, generator=self.torch).exp()
        drop = torch.rand(shape, generator=self.torch) < zeros
        keep = torch.randint(shape[-1], (*shape[:-1], 1), generator=self.torch)
        weights = weights.masked_fill(drop.scatter(-1, keep, False), 0.0)
        return weights / weights.sum(-1, keepdim=True)

    def mask(self, *shape: int, p: float = 0.6, at_least: int = 1) -> torch.Tensor:
        """Zeros and ones (float) scattered over ``shape``, with ``at_least`` ones in every last
        row.
        """
        score = torch.rand(shape, generator=self.torch)
        forced = score.argsort(-1).argsort(-1) < at_least
        return ((score < p) | forced).float()

    def padding_mask(self, rows: int, columns: int, side: str = "right", shortest: int = 1):
        """Ones (float) for real tokens, zeros for padding on ``side``; one row at least is full."""
        lengths = torch.randint(shortest, columns + 1, (rows, 1), generator=self.torch)
        lengths[self.python.randrange(rows)] = columns
        mask = (torch.arange(columns) < lengths).float()
        return mask if side == "right" else mask.flip(-1)

    def word(self) -> str:
        """One short word."""
        return self.python.choice(WORDS)

    def words(self, n: int) -> list[str]:
        """``n`` short words; words may come twice."""
        return self.python.choices(WORDS, k=n)

    def seed(self) -> int:
        """A seed to hand to a model or a sampler inside the probe."""
        return self.python.randrange(1 << 31)

    @staticmethod
    def _rounded(drawn: torch.Tensor, shape):
        if shape:
            return (drawn * 10**DECIMALS).round() / 10**DECIMALS
        return round(drawn.item(), DECIMALS)
