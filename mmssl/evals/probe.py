"""Linear probe: what a linear classifier reads from frozen features."""

import warnings
from collections.abc import Sequence

import numpy as np

GRID = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the L2 penalty tried."""


def probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on features standardised by the training rows.

    C is the value of `grid` that does best on a fifth of the training rows held out
    (by class where every class has two rows or more; the smaller C on a tie); the
    final fit is on all of them. The test rows choose nothing.

    Args:
      train: [N, d] features.
      train_labels: [N], at least two classes.
      test: [M, d].
      grid: values of C; one value = no choice to make.
      seed: of the held-out fifth.

    Returns:
      [M] predicted labels, and the C used.
    """
    from sklearn import model_selection

    c = min(grid)
    if len(grid) > 1:
        _, counts = np.unique(train_labels, return_counts=True)
        held = -(-len(train_labels) // 5)
        by_class = counts.min() >= 2 and held >= len(counts)
        fit, hold = model_selection.train_test_split(
            np.arange(len(train_labels)),
            test_size=held,
            random_state=seed,
            stratify=train_labels if by_class else None,
        )
        if len(np.unique(train_labels[fit])) > 1:
            score = {
                value: np.mean(
                    _predict(train[fit], train_labels[fit], train[hold], value)
                    == train_labels[hold]
                )
                for value in sorted(grid)
            }
            c = max(score, key=lambda value: score[value])
    return _predict(train, train_labels, test, c), c


def _predict(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float
) -> np.ndarray:
    import threadpoolctl
    from sklearn import exceptions, linear_model, pipeline, preprocessing

    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=c, max_iter=500),
    )
    # One BLAS thread: on these small matrices more only wait for each other, up to 50
    # times slower on a busy machine. threadpoolctl comes with scikit-learn.
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        # 500 iterations are far beyond where the predictions settle.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        model.fit(train.astype(np.float64), labels)
    return model.predict(test.astype(np.float64))
