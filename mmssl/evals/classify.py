"""Classification of frozen features: what is learned from, what judges, what counts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmssl.evals import multilabel, probe
from mmssl.evals.embeddings import Embeddings

Method = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, Any]]
"""Features and labels to learn from, features to judge -> predicted labels, and what
was chosen."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model's embeddings.

    Attributes:
      test: of the clips that judge.
      train: of those that classifiers learn from; None where nothing learns.
      prompts: column -> `zero_shot.Prompts`.
    """

    test: Embeddings
    train: Embeddings | None = None
    prompts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Arms = Mapping[str, Arm]
"""`trained`, and perhaps `random`: of the same clips."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of each clip that was judged, by the trained arm.

    Attributes:
      clips: [n] indices into the split's clips.
      values: [n] rank of the right answer, from 1, or whether it was found (bool).
    """

    clips: np.ndarray
    values: np.ndarray


class SkippedError(Exception):
    """Why there is nothing to judge."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One label column for one modality.

    Attributes:
      fit, judge: [N] and [M] bool, the clips of both splits that take part.
      y, truth: their labels.
      known: [n] whether the judged clip's class occurs in training.
    """

    fit: np.ndarray
    judge: np.ndarray
    y: np.ndarray
    truth: np.ndarray
    known: np.ndarray


def columns(arm: Arm) -> list[tuple[str, str]]:
    """(modality, label column) that both splits have."""
    assert arm.train is not None
    return [
        (m, column)
        for m in sorted(set(arm.test.pooled) & set(arm.train.pooled))
        for column in sorted(set(arm.test.labels) & set(arm.train.labels))
    ]


def task(arm: Arm, modality: str, column: str) -> Task:
    """The clips that have the modality and a label.

    Raises:
      SkippedError: the splits overlap, or too few clips or classes.
    """
    assert arm.train is not None
    both = len(set(arm.train.ids) & set(arm.test.ids))
    if both:
        raise SkippedError(f"{both} clips of the judged split are in training as well")
    train_labels, test_labels = arm.train.labels[column], arm.test.labels[column]
    fit = arm.train.rows(modality) & (train_labels != "")
    judge = arm.test.rows(modality) & (test_labels != "")
    y, truth = train_labels[fit], test_labels[judge]
    classes, counts = np.unique(y, return_counts=True)
    if not len(truth):
        raise SkippedError(f"no test clip has both {modality} and a {column!r} label")
    if len(classes) < 2:
        raise SkippedError(f"{len(classes)} class in training, at least 2 needed")
    if counts.max() < 2:
        raise SkippedError("every training clip has a class of its own")
    known = np.isin(truth, classes)
    if not known.any():
        raise SkippedError("no class of the test split occurs in training")
    return Task(fit, judge, y, truth, known)


def single(
    arms: Arms, modality: str, column: str, method: Method, choice: str
) -> tuple[dict[str, Any], Outcome]:
    """A cell of one classifier, and what became of each clip.

    A clip of a class that does not occur in training counts as wrong. Chance is the
    share of the most frequent class among those that judge.

    Raises:
      SkippedError: see `task`.
    """
    found = task(arms["trained"], modality, column)
    cell, right, chosen = {}, {}, []
    for name, arm in arms.items():
        x, test = _features(arm, modality, found)
        predicted, value = method(x, found.y, test)
        right[name] = predicted == found.truth
        cell[name] = {"accuracy": float(right[name].mean())}
        chosen.append(value)
    cell |= _facts(found)
    if choice:
        cell[choice] = chosen
    return cell, Outcome(np.flatnonzero(found.judge), right["trained"])


def fractions(
    arms: Arms,
    modality: str,
    column: str,
    method: Method,
    *,
    shares: Sequence[float],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """A cell for each share of the training labels, `10%` for example.

    Of every class the same share is kept, at least one row, by a permutation of each
    seed: what a smaller share keeps, a larger one keeps, too.

    Raises:
      SkippedError: see `task`.
    """
    found = task(arms["trained"], modality, column)
    out: dict[str, Any] = {}
    for share in shares:
        accuracy: dict[str, list[float]] = {name: [] for name in arms}
        kept = [few(found.y, share, seed) for seed in seeds]
        for name, arm in arms.items():
            x, test = _features(arm, modality, found)
            for rows in kept:
                predicted, _ = method(x[rows], found.y[rows], test)
                accuracy[name].append(float((predicted == found.truth).mean()))
        out[f"{100 * share:.4g}%"] = {
            **{n: {"accuracy": float(np.mean(v))} for n, v in accuracy.items()},
            **_facts(found),
            "n_train": len(kept[0]),
            "by_seed": accuracy,
        }
    return out


def few(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of that share of the rows of every class, ascending."""
    rng, kept = np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        kept.append(rows[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(kept))


def multi(arms: Arms, modality: str) -> dict[str, Any]:
    """A cell of the clips' several classes: logistic regression for each of them.

    Classes that all or none of the training clips have are not learned, and those that
    all or none of the judging ones have do not count.

    Raises:
      SkippedError: no clip has classes, or no class is in both splits.
    """
    one = arms["trained"]
    assert one.train is not None
    if set(one.train.ids) & set(one.test.ids):
        raise SkippedError("clips of the judged split are in training as well")
    fit, judge = (_tagged(part, modality) for part in (one.train, one.test))
    y = _indicators(one.train, fit)
    truth = _indicators(one.test, judge)
    names = sorted(
        c for c in set(y) & set(truth) if not y[c].all() and not truth[c].all()
    )
    if not names or len(next(iter(y.values()))) < 5:
        raise SkippedError("no class of several is in both splits")
    known, judged = (np.stack([t[c] for c in names], 1) for t in (y, truth))
    cell, chosen = {}, []
    for name, arm in arms.items():
        assert arm.train is not None
        found, c = probe.scores(
            arm.train.features(modality)[fit],
            known,
            arm.test.features(modality)[judge],
            judge=_map,
        )
        cell[name] = multilabel.multilabel_metrics(found, judged)
        chosen.append(c)
    return {
        **cell,
        "chance": multilabel.chance(judged),
        "n": int(judge.sum()),
        "n_train": int(fit.sum()),
        "classes": len(names),
        "C": chosen,
    }


def _map(scores: np.ndarray, labels: np.ndarray) -> float:
    try:
        return multilabel.multilabel_metrics(scores, labels)["mAP"]
    except ValueError:
        return 0.0


def _tagged(part: Embeddings, modality: str) -> np.ndarray:
    has = np.array([bool(found) for found in part.classes], np.bool_)
    return part.rows(modality) & has if len(has) else np.zeros(len(part.ids), np.bool_)


def _indicators(part: Embeddings, rows: np.ndarray) -> dict[str, np.ndarray]:
    chosen = [part.classes[i] for i in np.flatnonzero(rows)]
    names = sorted({name for found in chosen for name in found})
    return {name: np.array([name in found for found in chosen]) for name in names}


def _features(arm: Arm, modality: str, found: Task) -> tuple[np.ndarray, np.ndarray]:
    assert arm.train is not None
    x, test = arm.train.features(modality), arm.test.features(modality)
    return x[found.fit], test[found.judge]


def _facts(found: Task) -> dict[str, Any]:
    _, share = np.unique(found.truth, return_counts=True)
    return {
        "chance": {"accuracy": float(share.max() / len(found.truth))},
        "n": len(found.truth),
        "n_train": len(found.y),
        "classes": len(np.unique(found.y)),
        "unseen": int((~found.known).sum()),
    }
