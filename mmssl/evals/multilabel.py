"""Scores of clips that have several classes: mAP, AUC, d-prime."""

import numpy as np


def multilabel_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Macro means over the classes that occur, and are missing, among the rows.

    mAP: of each class's average precision, the sum of precision times the step in
    recall, without interpolation. AUC: of the areas below the ROC curves. d-prime is
    sqrt(2) z(AUC) of that mean AUC (z: the inverse of the normal distribution), as in
    PANNs (arXiv 1912.10211); VATT's code has the mean of the classes'
    own, which one class that is told perfectly makes infinite.

    Args:
      scores: [N, c] float; larger = more likely.
      labels: [N, c] bool.

    Returns:
      `mAP`, `AUC`, `d_prime`.

    Raises:
      ValueError: there is no such class.
    """
    from scipy import special
    from sklearn import metrics

    kept = labels.any(0) & ~labels.all(0)
    if not kept.any():
        raise ValueError("multilabel_metrics: no class is there in some of the rows")
    # Infinite scores stand for certainty; sklearn takes finite ones only.
    scores = np.nan_to_num(scores[:, kept])
    truth = labels[:, kept]
    auc = float(metrics.roc_auc_score(truth, scores, average="macro"))
    return {
        "mAP": float(metrics.average_precision_score(truth, scores, average="macro")),
        "AUC": auc,
        # Of a perfect AUC it would be infinite, which JSON has not.
        "d_prime": float(np.sqrt(2) * special.ndtri(min(auc, 1 - 1e-12))),
    }


def chance(labels: np.ndarray) -> dict[str, float]:
    """Of scores that know nothing: all equal, so that AP is the class's share."""
    kept = labels.any(0) & ~labels.all(0)
    return {"mAP": float(labels[:, kept].mean()), "AUC": 0.5, "d_prime": 0.0}
