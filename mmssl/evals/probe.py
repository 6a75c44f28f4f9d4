"""Linear probes: what a linear classifier reads from frozen features."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

GRID = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the L2 penalty tried."""

KINDS = ("logistic", "svm")


def probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    kind: str = "logistic",
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """A linear classifier on features standardised by the training rows.

    C is the value of `grid` that does best on a fifth of the training rows held out
    (by class where every class has two rows or more; the smaller C on a tie); the
    final fit is on all of them. The test rows choose nothing.

    Args:
      train: [N, d] features.
      train_labels: [N], at least two classes.
      test: [M, d].
      kind: "logistic": multinomial logistic regression; "svm": a linear support vector
        machine, one against the rest, squared hinge loss.
      grid: values of C; one value = no choice to make.
      seed: of the held-out fifth.

    Returns:
      [M] predicted labels, and the C used.
    """

    def score(c: float, fit: np.ndarray, hold: np.ndarray) -> float:
        model = _fitted(kind, train[fit], train_labels[fit], c)
        return float((_predict(model, train[hold]) == train_labels[hold]).mean())

    c = min(grid)
    if len(grid) > 1:
        fit, hold = _held_out(train_labels, seed)
        if len(np.unique(train_labels[fit])) > 1:
            c = _choose(grid, lambda value: score(value, fit, hold))
    return _predict(_fitted(kind, train, train_labels, c), test), c


def scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    judge: Callable[[np.ndarray, np.ndarray], float],
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """Logistic regression for clips with several classes: one for each class.

    Args:
      train: [N, d] features, standardised as in `probe`.
      train_labels: [N, c] bool; every class occurs, and is missing somewhere.
      test: [M, d].
      judge: (scores, labels) of the held-out fifth -> what the choice of C maximises.
      grid, seed: as in `probe`.

    Returns:
      [M, c] log odds, and the C used.
    """
    fit, hold = _held_out(np.zeros(len(train)), seed)
    c = _choose(
        grid,
        lambda c: judge(
            _log_odds(train[fit], train_labels[fit], train[hold], c),
            train_labels[hold],
        ),
    )
    return _log_odds(train, train_labels, test, c), c


def _choose(grid: Sequence[float], score: Callable[[float], float]) -> float:
    found = {value: score(value) for value in sorted(grid)}
    return max(found, key=lambda value: found[value])


def _held_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of four fifths and of one."""
    from sklearn import model_selection

    _, counts = np.unique(labels, return_counts=True)
    held = -(-len(labels) // 5)
    by_class = counts.min() >= 2 and held >= len(counts)
    fit, hold = model_selection.train_test_split(
        np.arange(len(labels)),
        test_size=held,
        random_state=seed,
        stratify=labels if by_class else None,
    )
    return np.asarray(fit), np.asarray(hold)


def _fitted(kind: str, train: np.ndarray, labels: np.ndarray, c: float) -> Any:
    import threadpoolctl
    from sklearn import exceptions, linear_model, pipeline, preprocessing, svm

    models = {
        "logistic": lambda: linear_model.LogisticRegression(C=c, max_iter=500),
        "svm": lambda: svm.LinearSVC(C=c, random_state=0, max_iter=5000),
    }
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), models[kind]())
    # One BLAS thread: on these small matrices more only wait for each other, up to 50
    # times slower on a busy machine. threadpoolctl comes with scikit-learn.
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        # So many iterations are far beyond where the predictions settle.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return model.fit(train.astype(np.float64), labels)


def _predict(model: Any, x: np.ndarray) -> np.ndarray:
    return model.predict(x.astype(np.float64))


def _log_odds(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float
) -> np.ndarray:
    out = np.zeros((len(test), labels.shape[1]))
    for column, label in zip(out.T, labels.T, strict=True):
        if label.any() and not label.all():
            model = _fitted("logistic", train, label, c)
            column[:] = model.decision_function(test.astype(np.float64))
        else:  # a class that the held-out fifth took all rows of
            column[:] = np.inf if label.all() else -np.inf
    return out
