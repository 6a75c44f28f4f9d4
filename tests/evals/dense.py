"""Retrieval by its definition: the whole matrix, in float64, query by query."""

import itertools

import numpy as np


def similarity(a, a_mask, b, b_mask):
    """[N, M] cosine of the best pair of candidates that count; -inf without one."""
    if a.ndim == 2:
        a, a_mask = a[:, None], a_mask[:, None]
    if b.ndim == 2:
        b, b_mask = b[:, None], b_mask[:, None]
    best = np.full((len(a), len(b)), -np.inf)
    for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
        cosine = a[:, i].astype(np.float64) @ b[:, j].astype(np.float64).T
        valid = a_mask[:, i, None] & b_mask[None, :, j]
        best = np.maximum(best, np.where(valid, cosine, -np.inf))
    return best


def relevance(shared):
    """[N, N]: the same clip, or one with an id in common."""
    ids = [set(row[row >= 0].tolist()) for row in shared]
    return np.array([[a is b or bool(a & b) for b in ids] for a in ids])


def ranks(scores, relevant):
    """Of the best right item; a wrong one that is not below it comes first."""
    out = []
    for row, right in zip(scores, relevant, strict=True):
        best = row[right].max()
        out.append(1 + sum(not s < best for s, r in zip(row, right) if not r))
    return np.array(out)
