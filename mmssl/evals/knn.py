"""Classification by nearest neighbours."""

import numpy as np

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

    The protocol of Wu et al. (CVPR 2018). With fewer than k training rows all of them
    vote. Of equally near rows the earlier counts first; of equal votes the class that
    sorts first wins.

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
    train, test = normalised(train), normalised(test)
    predicted = np.zeros(len(test), np.int64)
    for start in range(0, len(test), 1024):
        cosine = test[start : start + 1024] @ train.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        top = np.take_along_axis(cosine, nearest, axis=1)
        # Relative to the nearest: exp(1 / T) is large but only ratios matter.
        weights = np.exp((top - top[:, :1]) / temperature)
        votes = np.zeros((len(top), len(classes)))
        rows = np.broadcast_to(np.arange(len(top))[:, None], nearest.shape)
        np.add.at(votes, (rows, index[nearest]), weights)
        predicted[start : start + 1024] = votes.argmax(1)
    return classes[predicted]
