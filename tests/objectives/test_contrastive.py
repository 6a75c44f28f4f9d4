"""All forms against float64 loops, and what masks must never let through."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmssl.objectives import contrastive, losses

pytestmark = pytest.mark.usefixtures("compile_quickly")

FORMS = sorted(losses.FORMS)


@functools.partial(jax.jit, static_argnames=("form", "temperature", "chunk"))
def loss(form, x, y, **options):
    """(loss per sample, valid), in dense form unless `chunk` is given."""
    found = losses.FORMS[form]
    terms = losses.pair_terms(x, y, reduction=found.reduction, **options)
    return found.loss(terms), terms.valid


FUNCTIONS = {form: functools.partial(loss, form) for form in FORMS}


def reference(form, x, y, x_mask, y_mask, ids, temperature):
    """Plain float64 loops over the formulas; also d(mean loss)/dx and /dy."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    b, n, _ = y.shape
    values, valid = np.zeros(b), np.zeros(b, bool)
    dx, dy = np.zeros_like(x), np.zeros_like(y)

    def mix(entries):
        """log-sum-exp of [(i, j, l)] and its derivative by each similarity."""
        values = np.array([x[i] @ y[j, l] / temperature for i, j, l in entries])
        top = values.max()
        weights = np.exp(values - top)
        total = top + math.log(weights.sum())
        weights /= weights.sum()
        return total, list(zip(entries, weights))

    def decisions(i, rows, columns, positive, g_positive):
        """softplus of every bag, minus that of its own; half for each direction."""
        own = positive - math.log(len(g_positive))
        total = math.log1p(math.exp(-own))
        grads = [(e, -w / (1 + math.exp(own))) for e, w in g_positive]
        for entries, side in ((rows, 1), (columns, 0)):
            for other in {entry[side] for entry in entries} - {i}:
                bag = [entry for entry in entries if entry[side] == other]
                value, g = mix(bag)
                value -= math.log(len(bag))
                total += math.log1p(math.exp(value)) / 2
                grads += [(e, w / (1 + math.exp(-value)) / 2) for e, w in g]
        return total, grads

    grads = []
    for i in range(b):
        mine = [(i, i, l) for l in range(n) if y_mask[i, l]]
        if not (x_mask[i] and mine):
            continue
        valid[i] = True
        rows = mine + [
            (i, j, l)
            for j in range(b)
            for l in range(n)
            if j != i and ids[j] != ids[i] and y_mask[j, l]
        ]
        columns = mine + [
            (j, i, l)
            for j in range(b)
            for l in range(n)
            if j != i and ids[j] != ids[i] and x_mask[j] and y_mask[i, l]
        ]
        positive, g_positive = mix(mine)
        if form == "sigmoid":
            values[i], g = decisions(i, rows, columns, positive, g_positive)
            grads += g
            continue
        if form == "official":
            both, g_both = mix(rows + columns)
            values[i] = both - positive
            grads += [(e, w) for e, w in g_both]
        else:
            row, g_row = mix(rows)
            column, g_column = mix(columns)
            values[i] = (row + column) / 2 - positive
            grads += [(e, w / 2) for e, w in g_row + g_column]
        grads += [(e, -w) for e, w in g_positive]
    count = max(valid.sum(), 1)
    for (i, j, l), w in grads:
        dx[i] += w * y[j, l] / temperature / count
        dy[j, l] += w * x[i] / temperature / count
    return values, valid, dx, dy


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def example(seed=0, b=9, n=5, e=6):
    rng = np.random.default_rng(seed)
    ids = np.arange(b, dtype=np.uint32)
    ids[3] = ids[7]
    x_mask, y_mask = rng.random(b) < 0.8, rng.random((b, n)) < 0.7
    x_mask[0], y_mask[1] = False, False
    return unit(rng, b, e), unit(rng, b, n, e), x_mask, y_mask, ids


@functools.partial(jax.jit, static_argnames=("form", "temperature", "chunk"))
def mean_loss(form, x, y, x_mask, y_mask, ids, temperature=0.07, chunk=None):
    values, valid = loss(
        form,
        x,
        y,
        x_mask=x_mask,
        y_mask=y_mask,
        example_id=ids,
        temperature=temperature,
        chunk=chunk,
    )
    return losses.masked_mean(values, valid)


@functools.partial(jax.jit, static_argnames=("form", "temperature", "chunk"))
def value_and_grad(form, x, y, *rest, temperature=0.07, chunk=None):
    def mean(x, y):
        return mean_loss(form, x, y, *rest, temperature=temperature, chunk=chunk)

    return jax.value_and_grad(mean, argnums=(0, 1))(x, y)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("n", "temperature"), [(1, 1.0), (5, 0.07)])
@pytest.mark.parametrize("form", FORMS)
def test_equals_float64_reference_in_value_and_gradient(form, n, temperature, chunk):
    """Also in tiles that do not divide the batch of 9."""
    x, y, x_mask, y_mask, ids = example(n=n)
    wanted, valid, dx, dy = reference(form, x, y, x_mask, y_mask, ids, temperature)
    values, found = loss(
        form,
        x,
        y,
        x_mask=x_mask,
        y_mask=y_mask,
        example_id=ids,
        temperature=temperature,
        chunk=chunk,
    )
    np.testing.assert_array_equal(found, valid)
    assert 0 < valid.sum() < len(valid)
    np.testing.assert_allclose(values, wanted, rtol=2e-5, atol=2e-6)
    rest = x_mask, y_mask, ids
    _, (gx, gy) = value_and_grad(
        form, x, y, *rest, temperature=temperature, chunk=chunk
    )
    np.testing.assert_allclose(gx, dx, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gy, dy, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("form", FORMS)
def test_missing_parts_have_no_influence_even_when_not_finite(form, chunk):
    x, y, x_mask, y_mask, ids = example()
    rest = x_mask, y_mask, ids
    clean = mean_loss(form, x, y, *rest, chunk=chunk)
    dirty_x = np.where(x_mask[:, None], x, np.nan)
    dirty_y = np.where(y_mask[..., None], y, np.inf)
    value, (gx, gy) = value_and_grad(form, dirty_x, dirty_y, *rest, chunk=chunk)
    assert value == clean
    assert (np.asarray(gx)[~x_mask] == 0).all()
    assert (np.asarray(gy)[~y_mask] == 0).all()
    assert np.isfinite(gx).all()
    assert np.isfinite(gy).all()
    # What is there does matter.
    assert (np.abs(gx[1:]).sum(1)[x_mask[1:]] > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_missing_rows_equal_a_smaller_batch(form):
    rng = np.random.default_rng(1)
    x, y = unit(rng, 8, 4), unit(rng, 8, 3, 4)
    ids = np.arange(8, dtype=np.uint32)
    gone = np.arange(8) < 3
    full = mean_loss(form, x, y, ~gone, np.repeat(~gone[:, None], 3, 1), ids)
    part = mean_loss(
        form, x[3:], y[3:], np.ones(5, bool), np.ones((5, 3), bool), ids[3:]
    )
    np.testing.assert_allclose(full, part, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_valid_gives_zero(form, chunk):
    x, y, x_mask, y_mask, ids = example()
    for xm, ym in (
        (np.zeros_like(x_mask), y_mask),
        (x_mask, np.zeros_like(y_mask)),
        (np.zeros_like(x_mask), np.zeros_like(y_mask)),
    ):
        value, grads = value_and_grad(form, x, y, xm, ym, ids, chunk=chunk)
        assert value == 0
        assert all((np.asarray(g) == 0).all() for g in grads)


@pytest.mark.parametrize("form", FORMS)
def test_permutation_equivariance(form):
    x, y, x_mask, y_mask, ids = example()
    order = np.random.default_rng(2).permutation(len(x))
    words = np.random.default_rng(3).permutation(y.shape[1])

    def values(*args):
        x, y, x_mask, y_mask, ids = args
        return FUNCTIONS[form](
            x, y, x_mask=x_mask, y_mask=y_mask, example_id=ids, temperature=0.07
        )[0]

    direct = values(x, y, x_mask, y_mask, ids)
    moved = values(
        x[order], y[order][:, words], x_mask[order], y_mask[order][:, words], ids[order]
    )
    np.testing.assert_allclose(moved, direct[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(("form", "factor"), [("official", 2), ("textbook", 1)])
def test_chance_level(form, factor, n):
    rng = np.random.default_rng(4)
    b, e = 64, 4096
    value = mean_loss(
        form,
        unit(rng, b, e),
        unit(rng, b, n, e),
        np.ones(b, bool),
        np.ones((b, n), bool),
        np.arange(b, dtype=np.uint32),
    )
    assert abs(value - math.log(factor * b)) < 0.15


@pytest.mark.parametrize(
    ("form", "floor"), [("official", math.log(2)), ("textbook", 0)]
)
def test_floor_and_extreme_logits(form, floor):
    b = 6
    x = np.eye(b, dtype=np.float32)
    ids = np.arange(b, dtype=np.uint32)
    masks = np.ones(b, bool), np.ones((b, 1), bool)
    best = mean_loss(form, x, x[:, None], *masks, ids, 1e-3)
    np.testing.assert_allclose(best, floor, atol=1e-6)
    worst = np.roll(x, 1, 0)[:, None]
    value, grads = value_and_grad(form, x, worst, *masks, ids, temperature=1e-4)
    np.testing.assert_allclose(value, 1e4 + floor, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("form", FORMS)
def test_duplicates_are_not_negatives(form):
    rng = np.random.default_rng(5)
    x = unit(rng, 4, 8)
    twice = np.concatenate([x, x[:1]])
    ids = np.array([0, 1, 2, 3, 0], np.uint32)
    masks = np.ones(5, bool), np.ones((5, 1), bool)
    values, _ = FUNCTIONS[form](
        twice,
        twice[:, None],
        x_mask=masks[0],
        y_mask=masks[1],
        example_id=ids,
        temperature=0.07,
    )
    alone, _ = FUNCTIONS[form](
        x,
        x[:, None],
        x_mask=masks[0][:4],
        y_mask=masks[1][:4],
        example_id=ids[:4],
        temperature=0.07,
    )
    np.testing.assert_allclose(values[0], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values[4], values[0], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_eight_devices_equal_one(form):
    x, y, x_mask, y_mask, ids = example(b=16)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    one = value_and_grad(form, x, y, x_mask, y_mask, ids)
    eight = value_and_grad(form, *jax.device_put((x, y, x_mask, y_mask, ids), sharded))
    assert len(eight[1][0].sharding.device_set) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight
    )


def test_hits_count_ties_as_misses():
    x = np.eye(3, dtype=np.float32)
    y = np.stack([x[0], x[0], x[2]])[:, None]
    terms = losses.pair_terms(
        x,
        y,
        x_mask=np.ones(3, bool),
        y_mask=np.ones((3, 1), bool),
        example_id=np.arange(3, dtype=np.uint32),
        temperature=0.07,
    )
    # x_0 ties between y_0 and y_1; x_1 is orthogonal to all; y_1 prefers x_0.
    np.testing.assert_array_equal(terms.x_hit, [False, False, True])
    np.testing.assert_array_equal(terms.y_hit, [True, False, True])


def test_normalise_has_a_finite_gradient_at_zero():
    grad = jax.grad(lambda x: contrastive.normalise(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(grad).all()
