"""Which record stands where in the stream: a function of the seed and the position.

Nothing is drawn one after the other, so that any process may ask for any position.
"""

import bisect
import fractions
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmssl.errors import UserError

# A mixture repeats its pattern of sources after so many positions at most.
_MAX_WINDOW = 100_000
_FEW = 2**16


class Shuffled:
    """The endless order of training: position -> (source, row).

    Every source is read in epochs: each of its rows once, then again in another order.
    In every `window` positions on end each source has exactly its share.

    Args:
      lengths: rows of each source, at least one.
      weights: of each source, positive; taken as the nearest fractions with
        denominators of at most 1000.
      seed: of the shuffles.

    Attributes:
      window: positions after which the pattern of sources repeats; 1 for one source.

    Raises:
      UserError: no short window has exactly these shares.
    """

    def __init__(
        self, lengths: Sequence[int], weights: Sequence[float], seed: int
    ) -> None:
        counts = _whole(weights)
        self.window = sum(counts)
        self._counts = counts
        # The n-th of a source's c places belongs at (n + 1/2) / c of the window.
        places = np.concatenate([(np.arange(c) + 0.5) / c for c in counts])
        turn = np.argsort(places, kind="stable")
        self._source = np.repeat(np.arange(len(counts)), counts)[turn]
        self._nth = np.concatenate([np.arange(c) for c in counts])[turn]
        seeds = np.random.SeedSequence(seed).generate_state(len(counts))
        self._rows = [
            _shuffled(length, int(own))
            for length, own in zip(lengths, seeds, strict=True)
        ]

    def __getitem__(self, position: int) -> tuple[int, int]:
        turn, place = divmod(position, self.window)
        source = int(self._source[place])
        nth = turn * self._counts[source] + int(self._nth[place])
        return source, self._rows[source][nth]


class InOrder:
    """One pass: the rows of the first source, then of the next; as `Shuffled`."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, position: int) -> tuple[int, int]:
        source = bisect.bisect_right(self._ends, position)
        return source, position - (self._ends[source - 1] if source else 0)


def _whole(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in these proportions."""
    if len(weights) == 1:
        return [1]
    parts = [fractions.Fraction(w).limit_denominator(1000) for w in weights]
    unit = math.lcm(*(part.denominator for part in parts))
    counts = [int(part * unit) for part in parts]
    counts = [count // math.gcd(*counts) for count in counts]
    if min(counts) < 1 or sum(counts) > _MAX_WINDOW:
        raise UserError(
            f"weights {list(weights)} of the datasets: no window of up to "
            f"{_MAX_WINDOW} samples has exactly these shares; give whole numbers, or "
            "fewer digits"
        )
    return counts


def _shuffled(length: int, seed: int) -> Any:
    """The endless map of positions to rows, reshuffled every epoch."""
    if length < _FEW:
        return _Permuted(length, seed)
    rows = import_grain().MapDataset.range(length)
    return rows.seed(seed).shuffle().repeat(None)


class _Permuted:
    """Few rows: whole permutations. Grain's shuffle, which holds none, walks through
    2^16 numbers for each position, a millisecond where a hundred of them are rows."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._permutation = functools.lru_cache(maxsize=4)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(length)
        )

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._length)
        return int(self._permutation(epoch)[place])


def import_grain() -> Any:
    """Grain; it reads absl flags, which only absl.app parses."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain
