"""Are two runs different on these clips? Paired bootstrap of what became of each."""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from mmssl.errors import UserError
from mmssl.evals.classify import Outcome
from mmssl.evals.retrieval import CUTS

RESAMPLES, LEVEL, SEED = 5000, 0.95, 0

_AT_ONCE = 2**24
"""Draws held in memory."""


def save(outcomes: Mapping[str, Outcome], ids: Sequence[str]) -> bytes:
    """An npz file: ids, names of the cases, and of each its clips and values."""
    arrays = {"ids": np.array(ids), "names": np.array(list(outcomes), dtype=np.str_)}
    for i, outcome in enumerate(outcomes.values()):
        arrays[f"clips{i}"] = outcome.clips.astype(np.uint32)
        kind = np.bool_ if outcome.values.dtype == np.bool_ else np.uint32
        arrays[f"values{i}"] = outcome.values.astype(kind)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def load(data: bytes) -> tuple[dict[str, Outcome], tuple[str, ...]]:
    """What `save` wrote: outcomes and ids."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        names = [str(name) for name in file["names"]]
        found = {
            name: Outcome(file[f"clips{i}"], file[f"values{i}"])
            for i, name in enumerate(names)
        }
        return found, tuple(str(id) for id in file["ids"])


def metrics(case: str, outcome: Outcome) -> dict[str, np.ndarray]:
    """Of each clip, [n] float64; their means are the metrics of the evaluation."""
    x = outcome.values
    if x.dtype == np.bool_:
        return {"accuracy": x.astype(np.float64)}
    if case.startswith("zero_shot/"):
        return {f"top{k}": (x <= k).astype(np.float64) for k in (1, 5)}
    return {
        **{f"R@{k}": (x <= k).astype(np.float64) for k in CUTS},
        "mrr": 1.0 / x,
    }


def interval(
    difference: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
      difference: [n] of the same clips under two models: hence paired.
      resamples: of n clips each, with replacement.
      seed: of the draws; the same n gives the same draws.

    Returns:
      The 2.5% and the 97.5% quantile.
    """
    n, rng = len(difference), np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _AT_ONCE // n)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(0, n, (count, n), dtype=np.uint32)
        means[start : start + count] = difference[drawn].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
      name: for the table.
      runs: outcomes by case, of each seed.
    """

    name: str
    runs: Sequence[Mapping[str, Outcome]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One metric of one case, of one group.

    Attributes:
      case: `retrieval/video->audio`.
      metric: `R@1`.
      group: its name.
      mean: over clips and seeds.
      least, most: of the seeds' means.
      difference: to the first group; None for that one.
      low, high: of its 95% interval.
      n: clips.
    """

    case: str
    metric: str
    group: str
    mean: float
    least: float
    most: float
    difference: float | None
    low: float | None
    high: float | None
    n: int


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """Every group beside the first one, in all cases that all runs have.

    Of each clip the mean over a group's seeds is taken, and clips are drawn: the
    interval is that of other clips, for these trained models. What other seeds would
    do is in `least` and `most`, as far as so few of them tell.

    Raises:
      UserError: a case was judged on other clips in one of the runs; no common case.
    """
    runs = [run for group in groups for run in group.runs]
    cases = [c for c in runs[0] if all(c in run for run in runs)]
    if not cases:
        raise UserError("eval --compare: the runs have no case in common")
    out = []
    for case in cases:
        clips = runs[0][case].clips
        if any(not np.array_equal(clips, run[case].clips) for run in runs):
            raise UserError(
                f"eval --compare: {case} was judged on other clips in one of the runs: "
                "their views differ in what they read"
            )
        found = [[metrics(case, run[case]) for run in g.runs] for g in groups]
        for metric in found[0][0]:
            first = np.mean([run[metric] for run in found[0]], 0)
            for group, of in zip(groups, found, strict=True):
                mine = np.mean([run[metric] for run in of], 0)
                means = [float(run[metric].mean()) for run in of]
                alone = group is groups[0]
                low, high = (None, None) if alone else interval(mine - first)
                out.append(
                    Comparison(
                        case=case,
                        metric=metric,
                        group=group.name,
                        mean=float(mine.mean()),
                        least=min(means),
                        most=max(means),
                        difference=None if alone else float((mine - first).mean()),
                        low=low,
                        high=high,
                        n=len(clips),
                    )
                )
    return out
