"""The whole evaluation of a run: trained, beside random initialisation and chance."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmssl.evals.embeddings import Embeddings
from mmssl.evals.knn import knn
from mmssl.evals.probe import probe
from mmssl.evals.retrieval import retrieval


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model's embeddings: classifiers learn from `train`, `test` judges all."""

    train: Embeddings
    test: Embeddings


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of the result, for tables. Shares lie in [0, 1]; NaN = not there."""

    section: str
    case: str
    metric: str
    trained: float
    random: float
    chance: float
    n: int


def evaluate(
    trained: Arm, random: Arm, *, knn_k: int = 20, knn_temperature: float = 0.07
) -> dict[str, Any]:
    """Retrieval on the test split; kNN and linear probe per modality and label column.

    Args:
      trained: of the checkpoint.
      random: of the same model at its initialisation, on the same clips.
      knn_k, knn_temperature: see `knn`.

    Returns:
      A JSON-able dict:
      {"retrieval": {"video->audio": {"trained": {"R@1", "R@5", "R@10", "median_rank",
      "mrr"}, "random": {...}, "chance": {...}, "n": clips, "space": name}},
      "probe": {modality: {column: {"trained": {"accuracy"}, "random": {...}, "chance":
      {...}, "n": test clips, "n_train", "classes", "unseen", "C": [trained, random]} or
      {"skipped": reason}}}, "knn": likewise with "k" for "C"}.
      Chance of a classifier is the share of the test split's most frequent class.

    Raises:
      ValueError: the two arms hold different clips.
    """
    for name in ("train", "test"):
        if getattr(trained, name).ids != getattr(random, name).ids:
            raise ValueError(f"evaluate: the arms differ in the clips of {name!r}")
    ours, theirs = retrieval(trained.test), retrieval(random.test)
    pairs = {
        pair: {
            "trained": found["scores"],
            "random": theirs[pair]["scores"],
            "chance": found["chance"],
            "n": found["n"],
            "space": found["space"],
        }
        for pair, found in ours.items()
    }

    def by_probe(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> tuple:
        return probe(x, y, test)

    def by_knn(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> tuple:
        k = min(knn_k, len(x))
        return knn(x, y, test, k=k, temperature=knn_temperature), k

    out: dict[str, Any] = {"retrieval": pairs, "probe": {}, "knn": {}}
    for m in sorted(set(trained.test.pooled) & set(trained.train.pooled)):
        for column in sorted(set(trained.test.labels) & set(trained.train.labels)):
            for section, method, choice in (
                ("probe", by_probe, "C"),
                ("knn", by_knn, "k"),
            ):
                cell = _classify(trained, random, m, column, method, choice)
                out[section].setdefault(m, {})[column] = cell
    return out


def _classify(
    trained: Arm,
    random: Arm,
    modality: str,
    column: str,
    method: Callable[..., tuple[np.ndarray, float]],
    choice: str,
) -> dict[str, Any]:
    both = len(set(trained.train.ids) & set(trained.test.ids))
    if both:
        return {"skipped": f"{both} clips of the judged split are in training as well"}
    train_labels = trained.train.labels[column]
    test_labels = trained.test.labels[column]
    fit = trained.train.rows(modality) & (train_labels != "")
    judge = trained.test.rows(modality) & (test_labels != "")
    y, truth = train_labels[fit], test_labels[judge]
    classes, counts = np.unique(y, return_counts=True)
    if not len(truth):
        return {"skipped": f"no test clip has both {modality} and a {column!r} label"}
    if len(classes) < 2:
        return {"skipped": f"{len(classes)} class in training, at least 2 needed"}
    if counts.max() < 2:
        return {"skipped": "every training clip has a class of its own"}
    known = np.isin(truth, classes)
    if not known.any():
        return {"skipped": "no class of the test split occurs in training"}
    accuracy, chosen = {}, []
    for name, arm in (("trained", trained), ("random", random)):
        predicted, value = method(
            arm.train.features(modality)[fit], y, arm.test.features(modality)[judge]
        )
        # A test clip of a class never seen in training counts as wrong.
        accuracy[name] = {"accuracy": float((predicted == truth).mean())}
        chosen.append(value)
    _, share = np.unique(truth, return_counts=True)
    return {
        **accuracy,
        "chance": {"accuracy": float(share.max() / len(truth))},
        "n": len(truth),
        "n_train": len(y),
        "classes": len(classes),
        "unseen": int((~known).sum()),
        choice: chosen,
    }


def table_rows(result: Mapping[str, Any]) -> list[Row]:
    """The numbers of `evaluate` as rows, retrieval first; without skipped cells."""
    rows = []
    cells = [("retrieval", pair, cell) for pair, cell in result["retrieval"].items()]
    for section in ("probe", "knn"):
        for m, columns in result[section].items():
            cells += [(section, f"{m} {name}", cell) for name, cell in columns.items()]
    for section, case, cell in cells:
        for metric, value in cell.get("trained", {}).items():
            rows.append(
                Row(
                    section=section,
                    case=case,
                    metric=metric,
                    trained=value,
                    random=cell["random"].get(metric, math.nan),
                    chance=cell["chance"].get(metric, math.nan),
                    n=cell["n"],
                )
            )
    return rows
