"""Classification by nearest neighbours."""

import numpy as np

from mmssl.evals import ranking
from mmssl.evals.embeddings import normalised


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Predicts by the k nearest training rows in cosine, votes exp(cosine / T).

    The protocol of Wu et al. (arXiv 1805.01978, section 3.4). With fewer than k
    training rows all of them vote. Of equally near rows the earlier counts first; of
    equal votes the class that sorts first wins.

    Args:
      train: [N, d] features, of any scale.
      train_labels: [N].
      test: [M, d].
      k: neighbours.
      temperature: T.

    Returns:
      [M] predicted labels.
    """
    classes, index = np.unique(train_labels, return_inverse=True)
    queries, gallery = (
        (normalised(x), np.ones(len(x), np.bool_)) for x in (test, train)
    )
    top, nearest = ranking.nearest(queries, gallery, k)
    # Relative to the nearest: exp(1 / T) is large but only ratios matter.
    weights = np.exp((top - top[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(test), len(classes)))
    rows = np.broadcast_to(np.arange(len(test))[:, None], nearest.shape)
    np.add.at(votes, (rows, index[nearest]), weights)
    return classes[votes.argmax(1)]
