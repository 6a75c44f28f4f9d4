"""Conflict statistics: against NumPy in float64, and blind to what is undefined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmssl.gradients import statistics

pytestmark = pytest.mark.usefixtures("compile_quickly")

NAMES = ("va", "vt", "at")

cosines = jax.jit(statistics.cosines)
summarise = jax.jit(statistics.summarise, static_argnums=3)


def gramians(rows, *, seed=0, width=6, missing=0.3):
    """[g, k, k] float32 of random gradients, some of them exactly 0."""
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((rows, len(NAMES), width))
    grads *= rng.random((rows, len(NAMES), 1)) >= missing
    return (grads @ grads.transpose(0, 2, 1)).astype(np.float32)


def reference_cosines(gram):
    """The definition, one entry at a time; NaN where undefined."""
    gram = gram.astype(np.float64)
    cos = np.full(gram.shape, np.nan)
    for index in np.ndindex(gram.shape):
        *row, i, j = index
        squares = gram[(*row, i, i)] * gram[(*row, j, j)]
        if squares > 0:
            cos[index] = gram[index] / np.sqrt(squares)
    return cos


def summary(gram, weights=None, keep=None, names=NAMES, **kwargs):
    rows, k = gram.shape[:2]
    weights = np.ones((rows, k), np.float32) if weights is None else weights
    keep = np.ones(rows, np.float32) if keep is None else keep
    found = summarise(gram, weights, keep, names, **kwargs)
    assert all(v.shape == () and v.dtype == jnp.float32 for v in found.values())
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1.0, 1e5, 1e10])
def test_cosines_at_any_scale(scale):
    each = np.array([scale, 1.0, 1 / scale])
    gram = (gramians(40) * np.sqrt(each[:, None] * each)).astype(np.float32)
    cos, defined = cosines(gram)
    want = reference_cosines(gram)
    np.testing.assert_array_equal(defined, ~np.isnan(want))
    np.testing.assert_allclose(cos, np.nan_to_num(want), rtol=2e-6, atol=1e-6)
    assert np.abs(cos).max() <= 1
    assert not defined.all()


def test_cosines_reach_the_ends_of_float32():
    tiny, huge = np.float32(2e-38), np.float32(3e38)
    gram = np.array([[tiny, -2.0], [-2.0, huge]])
    cos, defined = cosines(gram)
    assert defined.all()
    np.testing.assert_allclose(cos[0, 1], -2 / np.sqrt(2e-38 * 3e38), rtol=1e-5)
    assert cos[0, 0] == cos[1, 1] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cosines_of_what_is_not_finite_are_undefined(bad):
    gram = np.eye(3, dtype=np.float32)
    gram[0, 1] = gram[1, 0] = bad
    cos, defined = cosines(gram)
    assert np.isfinite(cos).all()
    np.testing.assert_array_equal(defined, np.isfinite(gram))
    gram[0, 0] = bad
    _, defined = cosines(gram)
    assert not defined[0].any()
    assert not defined[:, 0].any()


def test_pairs_are_named_once_and_uniquely():
    assert statistics.pairs(("va", "vt")) == ((0, 1, "va_vt"),)
    assert [label for *_, label in statistics.pairs(NAMES)] == [
        "va_vt",
        "va_at",
        "vt_at",
    ]
    assert statistics.pairs(("mil/va", "x/vt")) == ((0, 1, "mil.va_x.vt"),)
    labels = [label for *_, label in statistics.pairs(("a_b", "c", "a", "b_c"))]
    assert len(set(labels)) == 6
    assert "a_b_c(0,1)" in labels
    assert statistics.pairs(("va",)) == ()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 11, 64])
def test_masked_quantiles_are_numpys_on_what_is_defined(count):
    rng = np.random.default_rng(count)
    x = rng.standard_normal((64, 2)).astype(np.float32)
    mask = np.stack([rng.permutation(64) < count for _ in range(2)], 1)
    levels = np.array([0.0, 0.1, 0.37, 0.5, 0.9, 1.0], np.float32)
    found = jax.jit(statistics.masked_quantiles)(x, mask, levels)
    for column in range(2):
        kept = x[mask[:, column], column].astype(np.float64)
        want = np.quantile(kept, levels) if count else np.zeros(len(levels))
        np.testing.assert_allclose(found[:, column], want, atol=2e-6)


def test_summary_against_numpy():
    gram = gramians(200)
    rng = np.random.default_rng(1)
    keep = rng.choice([0.0, 0.4, 1.0], 200).astype(np.float32)
    plain = np.array([1.0, 0.5, 2.0], np.float32)
    changed = rng.random(200) < 0.3
    weights = np.where(changed[:, None], rng.random((200, 3)) + 3, plain)
    weights = weights.astype(np.float32)
    found = summary(gram, weights, keep, plain=plain)

    cos = reference_cosines(gram)
    for i, j, label in statistics.pairs(NAMES):
        values = cos[:, i, j][~np.isnan(cos[:, i, j])]
        want = {
            "rate": (values < 0).mean(),
            "cos_mean": values.mean(),
            "cos_q10": np.quantile(values, 0.1),
            "cos_q50": np.quantile(values, 0.5),
            "cos_q90": np.quantile(values, 0.9),
            "defined": len(values) / 200,
        }
        for part, value in want.items():
            name = f"conflict/{part}/{label}"
            np.testing.assert_allclose(found.pop(name), value, atol=1e-5)

    both = (np.diagonal(gram, axis1=1, axis2=2) > 0).sum(1) >= 2
    np.testing.assert_allclose(
        found.pop("conflict/dropped"), (1 - keep)[both].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        found.pop("conflict/realigned"), (keep * changed)[both].mean(), rtol=1e-5
    )
    for k, name in enumerate(NAMES):
        squares = gram[:, k, k].astype(np.float64)
        has = squares > 0
        np.testing.assert_allclose(
            found.pop(f"conflict/norm/{name}"), np.sqrt(squares[has].mean()), rtol=1e-5
        )
        mean = np.average(weights[has, k], weights=keep[has])
        np.testing.assert_allclose(
            found.pop(f"conflict/weight/{name}"), mean, rtol=1e-5
        )
    assert found == {}


def test_samples_with_one_loss_only_count_as_undefined_and_nothing_else():
    gram = gramians(50, missing=0)
    lone = np.zeros((30, 3, 3), np.float32)
    lone[:, 0, 0] = 7.0
    both = summary(np.concatenate([gram, lone]))
    for name, value in summary(gram).items():
        if name.startswith("conflict/defined/"):
            assert (value, both[name]) == (1.0, pytest.approx(50 / 80))
        elif name != "conflict/norm/va":
            assert both[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
def test_a_batch_without_a_cosine_has_finite_zeros(entry):
    found = summary(np.full((5, 3, 3), entry, np.float32))
    assert set(found.values()) == {0.0}


def test_nothing_kept_and_a_single_loss_are_finite():
    gram = gramians(8, missing=0)
    found = summary(gram, keep=np.zeros(8, np.float32))
    assert found["conflict/dropped"] == 1.0
    assert found["conflict/weight/va"] == found["conflict/realigned"] == 0.0
    lone = summary(gram[:, :1, :1], names=("va",))
    assert set(lone) == {
        "conflict/dropped",
        "conflict/realigned",
        "conflict/norm/va",
        "conflict/weight/va",
    }


def test_orthogonal_gradients_do_not_conflict():
    found = summary(np.tile(np.eye(3, dtype=np.float32), (4, 1, 1)))
    assert found["conflict/defined/va_vt"] == 1.0
    assert found["conflict/rate/va_vt"] == 0.0


def test_rounding_is_no_realignment():
    gram = gramians(8, missing=0)
    weights = np.full((8, 3), np.float32(1 + 2e-7))
    assert summary(gram, weights)["conflict/realigned"] == 0.0
    weights[0, 2] = 1.001
    assert summary(gram, weights)["conflict/realigned"] == 1 / 8


def test_summary_sorts_once():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 3, 3), (16, 3))]
    lowered = jax.jit(
        lambda gram, weights: statistics.summarise(gram, weights, weights[:, 0], NAMES)
    ).lower(*shapes)
    assert lowered.as_text().count("stablehlo.sort") == 1


def test_a_sharded_batch_has_the_same_summary():
    gram = gramians(64)
    keep = np.random.default_rng(2).random(64).astype(np.float32)
    weights = np.ones((64, 3), np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    found = summarise(*(jax.device_put(x, rows) for x in (gram, weights, keep)), NAMES)
    want = summary(gram, weights, keep)
    assert {n: pytest.approx(float(v), abs=1e-6) for n, v in found.items()} == want


def test_histogram_splits_at_conflict():
    cos = np.array([-1.0, -0.01, 0.0, 0.3, 1.0, -0.9], np.float32)
    defined = np.array([True, True, True, True, True, False])
    counts, edges = statistics.cosine_histogram(cos, defined)
    assert counts.sum() == 5
    assert (len(counts), edges[0], edges[20], edges[-1]) == (40, -1.0, 0.0, 1.0)
    assert counts[:20].sum() == 2
    assert statistics.cosine_histogram(cos, ~defined, bins=2)[0].tolist() == [1, 0]


def test_extremes_are_the_ends_of_the_order():
    cos = np.array([0.2, -0.5, 0.9, 0.0, -0.99, 0.2], np.float32)
    defined = np.array([True, True, True, True, False, True])
    ids = np.array(["a", "b", "c", "d", "e", "f"])
    most, least = statistics.extremes(cos, defined, ids, n=3)
    assert most.tolist() == ["b", "d", "a"]
    assert least.tolist() == ["c", "a", "f"]
    most, least = statistics.extremes(cos, ~defined, ids)
    assert most.tolist() == least.tolist() == ["e"]
