"""Paired bootstrap against scipy's; files of outcomes; runs that do not fit."""

import numpy as np
import pytest
from scipy import stats

from mmssl.errors import UserError
from mmssl.evals import compare
from mmssl.evals.classify import Outcome


def test_interval_is_scipys_percentile_bootstrap():
    rng = np.random.default_rng(0)
    difference = rng.normal(0.1, 1, 60)
    low, high = compare.interval(difference)
    expected = stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    # Both draw: their quantiles differ by a few per cent of the width.
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.05 * width)
    assert high == pytest.approx(expected.high, abs=0.05 * width)
    assert compare.interval(difference) == (low, high)
    assert compare.interval(np.zeros(9)) == (0, 0)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = compare.interval(rng.normal(0.3, 1, 80), resamples=300)
        hits += low <= 0.3 <= high
    assert 0.88 < hits / 200 < 0.99


def outcomes(seed, *, better=0.0):
    rng = np.random.default_rng(seed)
    clips = np.array([0, 2, 3, 5])
    return {
        "retrieval/video->audio": Outcome(clips, rng.integers(1, 12, 4)),
        "zero_shot/video kind": Outcome(clips, rng.integers(1, 9, 4)),
        "probe/video kind": Outcome(clips, rng.random(4) < 0.5 + better),
    }


def test_outcomes_come_back_from_their_file():
    found, ids = compare.load(compare.save(outcomes(0), ["a", "bc", "d"]))
    assert ids == ("a", "bc", "d")
    assert found.keys() == outcomes(0).keys()
    for name, outcome in outcomes(0).items():
        np.testing.assert_array_equal(found[name].clips, outcome.clips)
        np.testing.assert_array_equal(found[name].values, outcome.values)
    assert compare.load(compare.save({}, [])) == ({}, ())


def test_seeds_are_averaged_and_groups_compared_with_the_first():
    base = [outcomes(0), outcomes(1)]
    rows = compare.compare(
        [compare.Group("base", base), compare.Group("new", [outcomes(2, better=0.5)])]
    )
    metrics = {row.metric for row in rows}
    assert metrics == {"R@1", "R@5", "R@10", "mrr", "top1", "top5", "accuracy"}
    first, second = (r for r in rows if r.metric == "mrr")
    one, two = (1 / run["retrieval/video->audio"].values for run in base)
    three = 1 / outcomes(2)["retrieval/video->audio"].values
    assert first.mean == pytest.approx((one.mean() + two.mean()) / 2)
    assert (first.least, first.most) == pytest.approx(
        tuple(sorted([one.mean(), two.mean()]))
    )
    assert first.difference is None
    assert second.difference == pytest.approx((three - (one + two) / 2).mean())
    assert second.low <= second.difference <= second.high
    (accuracy,) = (r for r in rows if r.metric == "accuracy" and r.group == "new")
    assert (accuracy.mean, accuracy.n) == (1, 4)


def test_other_clips_are_refused():
    other = {"probe/video kind": Outcome(np.array([1, 2, 3, 5]), np.ones(4, bool))}
    groups = [compare.Group("a", [outcomes(0)]), compare.Group("b", [other])]
    with pytest.raises(UserError, match="on other clips"):
        compare.compare(groups)
    groups[1] = compare.Group("b", [{}])
    with pytest.raises(UserError, match="no case in common"):
        compare.compare(groups)
