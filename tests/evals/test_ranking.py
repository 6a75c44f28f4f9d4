"""Tiles against the whole matrix: the same ranks and neighbours, ties included."""

import numpy as np
import pytest

from mmssl.evals import ranking
from mmssl.evals.embeddings import normalised
from tests.evals import dense

pytestmark = pytest.mark.usefixtures("compile_quickly")


def sides(n, *, candidates=0, whole_numbers=False, seed=0):
    """Queries, gallery and ids; products of small whole numbers are exact, so tie."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        if whole_numbers:
            return rng.integers(-1, 2, shape).astype(np.float32)
        return normalised(rng.standard_normal(shape)).astype(np.float32)

    a, a_mask = draw(n, 5), np.ones(n, bool)
    b, b_mask = draw(n, 5), np.ones(n, bool)
    if candidates:
        b = draw(n, candidates, 5)
        b_mask = rng.random((n, candidates)) < 0.7
        b_mask[:, 0] = True
    shared = np.where(rng.random((n, 2)) < 0.3, rng.integers(0, 9, (n, 2)), -1)
    return (a, a_mask), (b, b_mask), shared.astype(np.int32)


@pytest.mark.parametrize("tile", [(1, 7), (2, 64), (1024, 8192)])
@pytest.mark.parametrize("candidates", [0, 3])
def test_ranks_equal_the_dense_ones_with_ties(tile, candidates):
    a, b, shared = sides(37, candidates=candidates, whole_numbers=True)
    for one, other in ((a, b), (b, a)):
        found, right = ranking.ranks(one, other, shared, tile=tile)
        relevant = dense.relevance(shared)
        expected = dense.ranks(dense.similarity(*one, *other), relevant)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(right, relevant.sum(1))


def test_collapsed_and_broken_embeddings_rank_last():
    alone = np.zeros((5, 0), np.int32)
    for value in (1.0, np.nan):
        side = np.full((5, 2), value, np.float32), np.ones(5, bool)
        found, right = ranking.ranks(side, side, alone, tile=(1, 2))
        assert (found == 5).all()
        assert (right == 1).all()


@pytest.mark.parametrize("k", [1, 6, 99])
def test_nearest_equals_a_stable_sort(k):
    a, b, _ = sides(37, candidates=2, whole_numbers=True)
    scores, index = ranking.nearest(a, b, k, tile=(1, 7))
    whole = dense.similarity(*a, *b)
    expected = np.argsort(-whole, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(whole, expected, 1))
