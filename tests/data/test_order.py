"""Positions to rows: epochs are whole, shares exact, nothing depends on the asker."""

import collections

import numpy as np
import pytest

from mmssl.data.order import InOrder, Shuffled
from mmssl.errors import UserError


@pytest.mark.parametrize("length", [1, 97, 70_000])  # few rows and many
def test_an_epoch_has_each_row_once_and_the_next_is_another(length: int) -> None:
    order = Shuffled([length], [1.0], seed=3)
    rows = np.array([order[i][1] for i in range(2 * length)]).reshape(2, length)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(length), (2, 1)))
    if length > 1:
        other = Shuffled([length], [1.0], seed=4)
        assert (rows[0] != rows[1]).mean() > 0.9
        assert np.mean([other[i][1] != rows[0, i] for i in range(97)]) > 0.9
        # No trace of the stored order: neighbours are far apart.
        assert np.abs(np.diff(rows[0])).mean() > length / 4


def test_any_position_may_be_asked_for_first() -> None:
    forward = Shuffled([5, 31], [2.0, 3.0], seed=0)
    expected = [forward[i] for i in range(200)]
    asked = np.random.default_rng(0).permutation(200)
    backward = Shuffled([5, 31], [2.0, 3.0], seed=0)
    found = {int(i): backward[int(i)] for i in asked}
    assert [found[i] for i in range(200)] == expected
    assert forward[10**12] == backward[10**12]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1.0, 1.0], [1, 1]),
        ([0.29, 0.71], [29, 71]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([0.001, 0.7, 0.299], [1, 700, 299]),
        ([3.0, 1.5, 4.5], [2, 1, 3]),
    ],
)
def test_every_window_has_exactly_the_weights(weights, shares) -> None:
    order = Shuffled([7] * len(weights), weights, seed=1)
    window = sum(shares)
    assert order.window == window
    drawn = [order[i][0] for i in range(3 * window)]
    for start in range(0, 2 * window, max(1, window // 7)):
        counts = collections.Counter(drawn[start : start + window])
        assert [counts[k] for k in range(len(shares))] == shares
    # Also on the way no source runs ahead by more than a sample.
    for k, share in enumerate(shares):
        count = np.cumsum(np.array(drawn) == k)
        even = np.arange(1, len(drawn) + 1) * share / window
        assert np.abs(count - even).max() < 1.5


def test_in_a_mixture_each_source_keeps_its_epochs() -> None:
    order = Shuffled([6, 10], [1.0, 2.0], seed=2)
    for source, rows in ((0, 6), (1, 10)):
        drawn = [row for s, row in map(order.__getitem__, range(180)) if s == source]
        for start in range(0, len(drawn) - rows, rows):
            assert sorted(drawn[start : start + rows]) == list(range(rows))


def test_shares_that_no_window_has_are_refused() -> None:
    weights = [1 / 997, 1 / 991, 1 / 983]
    with pytest.raises(UserError, match="fewer digits"):
        Shuffled([3, 3, 3], weights, seed=0)
    with pytest.raises(UserError, match="fewer digits"):
        Shuffled([3, 3], [1e-9, 1.0], seed=0)


def test_one_pass_goes_through_the_sources_in_order() -> None:
    order = InOrder([2, 1, 3])
    assert len(order) == 6
    rows = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert [order[i] for i in range(6)] == rows
