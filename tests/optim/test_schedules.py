"""Schedules against float64 closed forms, and the figures of the VATT paper."""

import math

import jax
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.optim.schedules import SHAPES, make_schedule


def reference(name, step, peak, end, warmup, steps):
    if step < warmup:
        return peak * step / warmup
    p = min((step - warmup) / (steps - warmup), 1.0)
    return {
        "constant": peak,
        "quarter_cosine": end + (peak - end) * math.cos(math.pi * p / 2),
        "half_cosine": end + (peak - end) * (1 + math.cos(math.pi * p)) / 2,
    }[name]


@pytest.mark.parametrize("warmup", [0, 1, 40])
@pytest.mark.parametrize(
    ("name", "end"),
    [(name, None) for name in sorted(SHAPES)]
    + [
        (name, end)
        for name in sorted(set(SHAPES) - {"constant"})
        for end in (0.0, 1e-5)
    ],
)
def test_equals_float64_reference(name, end, warmup):
    peak, steps = 3e-4, 200
    level = peak / 2 if end is None else end
    schedule = make_schedule(
        name=name, peak_lr=peak, end_lr=end, warmup=warmup, steps=steps
    )
    at = np.arange(0, steps + 20)
    expected = [reference(name, s, peak, level, warmup, steps) for s in at]
    found = jax.jit(schedule)(at)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * peak)


def test_vatt_figures():
    official = {"peak_lr": 1e-4, "end_lr": 5e-5, "warmup": 5_000, "steps": 500_000}
    paper = {"peak_lr": 1e-4, "end_lr": None, "warmup": 10_000, "steps": 500_000}
    quarter = make_schedule(name="quarter_cosine", **paper)
    half = make_schedule(name="half_cosine", **official)
    # With end = peak / 2 the quarter period is peak (1 + cos(pi/2 p)) / 2.
    for p in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(
            quarter(10_000 + round(p * 490_000)),
            1e-4 * (1 + math.cos(math.pi * p / 2)) / 2,
            rtol=1e-6,
        )
    assert quarter(500_000) == np.float32(5e-5)
    assert half(500_000) == np.float32(5e-5)
    assert quarter(0) == 0
    np.testing.assert_allclose(quarter(250_000), 8.59e-5, rtol=1e-3)
    np.testing.assert_allclose(half(250_000), 7.54e-5, rtol=1e-3)


GOOD = {"name": "half_cosine", "peak_lr": 1e-3, "end_lr": None, "warmup": 2, "steps": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "quater_cosine"}, "did you mean 'quarter_cosine'"),
        ({"peak_lr": 0.0}, "peak_lr must be a positive"),
        ({"peak_lr": math.nan}, "peak_lr must be a positive"),
        ({"warmup": 9}, "less than the 9 steps"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"end_lr": 2e-3}, "end_lr must lie between"),
        ({"name": "constant", "end_lr": 1e-4}, "has no end level"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        make_schedule(**{**GOOD, **change})
