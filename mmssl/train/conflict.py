"""Rows of `conflict.jsonl`: how far the gradients of a batch's losses agree.

    {"step": 50, "time": ..., "pairs": {"va_vt": {"counts": [0, 1, ...],
        "most": [{"id": "clip-7", "cos": -0.61}, ...], "least": [...]}}}

`counts` are those of equal bins over [-1, 1], so that conflict is their left half.
`most` and `least` name the samples of the batch that conflict most and least; they are
left out where gradients were compared by groups.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from mmssl.gradients import statistics
from mmssl.parallel import distributed


@dataclasses.dataclass(frozen=True)
class Cosines:
    """Those of one batch's gradients, on the device.

    Attributes:
      losses: names of the k losses.
      values: per sample or group.
      defined: False where one of the two gradients is zero.
    """

    losses: Sequence[str]
    values: Float[Array, "g k k"]
    defined: Bool[Array, "g k k"]


_cosines = jax.jit(statistics.cosines)


def measure(gram: Float[Array, "g k k"], losses: Sequence[str]) -> Cosines:
    """Dispatches the cosines of a batch and waits for nothing."""
    return Cosines(losses, *_cosines(gram))


def row(found: Cosines, ids: Sequence[str]) -> dict[str, Any]:
    """One row, fetched from the device; empty where there is no pair of losses.

    Args:
      found: from `measure`.
      ids: of the batch's examples; empty where this process does not know all.
    """
    values, defined = distributed.fetch(found.values), distributed.fetch(found.defined)
    pairs = {}
    for i, j, label in statistics.pairs(found.losses):
        cos, there = values[:, i, j], defined[:, i, j]
        counts, _ = statistics.cosine_histogram(cos, there)
        pairs[label] = {"counts": counts.tolist()}
        if len(ids) != len(cos):
            continue
        ends = statistics.extremes(cos, there, np.arange(len(cos)))
        for name, rows in zip(("most", "least"), ends, strict=True):
            pairs[label][name] = [
                {"id": ids[n], "cos": round(float(cos[n]), 4)} for n in rows
            ]
    return {"pairs": pairs} if pairs else {}
