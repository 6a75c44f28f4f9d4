"""bfloat16 compute: what is summed over rows is summed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import types
from mmssl.gradients import products
from mmssl.models import layers

ROWS, TOKENS, WIDTH, OUT = 64, 32, 8, 4
BF16 = jnp.bfloat16


def arrays():
    r = np.random.default_rng(0)
    # A mean away from zero: long sums grow, and bfloat16 stops counting at 2^8.
    x = jnp.asarray(r.normal(1, 1, (ROWS, TOKENS, WIDTH)), BF16)
    dy = jnp.asarray(r.normal(1, 1, (ROWS, TOKENS, OUT)), BF16)
    return x, dy


def wide(x):
    return np.asarray(x, np.float64)


def test_dense_gradients_are_float32_sums_of_bfloat16_products():
    x, dy = arrays()
    leaf = layers.Dense(OUT, dtype=jnp.dtype(BF16))
    params = leaf.init(jax.random.key(0), x)["params"]
    y, pull = jax.vjp(lambda p, x: leaf.apply({"params": p}, x), params, x)
    grads, dx = jax.jit(pull)(dy)
    assert (y.dtype, dx.dtype) == (BF16, BF16)
    wanted = {
        "kernel": np.einsum("btc,btd->cd", wide(x), wide(dy)),
        "bias": wide(dy).sum((0, 1)),
    }
    for name, g in grads.items():
        assert g.dtype == jnp.float32
        np.testing.assert_allclose(g, wanted[name], rtol=1e-5)
        # What a result in bfloat16 could hold at best.
        rounded = np.asarray(jnp.asarray(wanted[name], BF16), np.float64)
        assert np.abs(rounded / wanted[name] - 1).max() > 1e-4


def test_float32_gradients_are_the_ordinary_ones():
    x, dy = (v.astype(jnp.float32) for v in arrays())
    leaf = layers.Dense(OUT)
    params = leaf.init(jax.random.key(0), x)["params"]

    def plain(p, x):
        return x @ p["kernel"] + p["bias"].reshape(1, 1, -1)

    found, wanted = (
        jax.jit(lambda f=f: jax.vjp(f, params, x)[1](dy))()
        for f in (lambda p, x: leaf.apply({"params": p}, x), plain)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
        found,
        wanted,
    )


def test_gramians_of_bfloat16_are_float32():
    x, dy = arrays()
    leaf = types.Leaf("dense", lambda p, x: x, stacked=False)
    use = products.Use(x, {0: dy, 1: -2 * dy})
    params = {"kernel": jnp.zeros((WIDTH, OUT)), "bias": jnp.zeros(OUT)}
    kept = products.per_sample(leaf, params, [use], ROWS)
    gram = products.gram_of(kept, 2)
    assert {g.dtype for g in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    kernel = np.einsum("btc,btd->bcd", wide(x), wide(dy))
    bias = wide(dy).sum(1)
    norm = (kernel**2).sum((1, 2)) + (bias**2).sum(1)
    wanted = norm[:, None, None] * np.array([[1.0, -2.0], [-2.0, 4.0]])
    np.testing.assert_allclose(gram, wanted, rtol=1e-4)


@pytest.mark.parametrize("what", ["params", "opt_state"])
def test_masters_and_optimizer_state_are_float32(make_model, what):
    from mmssl.optim import factory

    params = jax.eval_shape(make_model(dtype="bfloat16").init, jax.random.key(0))
    trees = {
        "params": params,
        "opt_state": jax.eval_shape(factory.make_optimizer(steps=9).tx.init, params),
    }
    floats = [
        x.dtype
        for x in jax.tree.leaves(trees[what])
        if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert set(floats) == {jnp.dtype("float32")}
