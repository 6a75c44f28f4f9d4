"""Every pair once, in tiles and round a ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.parallel import collectives, traffic
from mmssl.parallel import mesh as mesh_lib

pytestmark = pytest.mark.usefixtures("compile_quickly")

B = 16


def example(b=B, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "value": jnp.asarray(rng.standard_normal((b, 3, 2)), jnp.float32),
        "there": jnp.asarray(rng.random(b) < 0.7),
        "id": jnp.asarray(rng.integers(0, 2**32, b, dtype=np.uint32)),
    }


def tile(x, y, x_sums, y_sums):
    """Counts what is met, and adds up values that depend on both rows."""
    product = (x["value"][:, None, :, 0] * y["value"][None, :, :, 1]).sum(2)
    product *= (x["id"] % 7)[:, None].astype(jnp.float32)
    met = (x["there"][:, None] & y["there"][None]).astype(jnp.float32)

    def more(sums, axis):
        return {
            "met": sums["met"] + met.sum(axis),
            "sum": sums["sum"] + product.sum(axis),
        }

    return more(x_sums, 1), more(y_sums, 0)


def swept(x, y, chunk):
    def zero():
        return {"met": jnp.zeros(len(x["id"])), "sum": jnp.zeros(len(x["id"]))}

    return collectives.all_pairs(tile, x, y, zero(), zero(), chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_every_pair_is_met_once_on_one_device(chunk):
    x, y = example(), example(seed=1)
    zero = {"met": jnp.zeros(B), "sum": jnp.zeros(B)}
    whole = tile(x, y, zero, zero)
    found = jax.jit(swept, static_argnums=2)(x, y, chunk)
    assert found[0]["met"].sum() == x["there"].sum() * y["there"].sum()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        whole,
    )


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 8},
        {"replica": 2, "data": 2, "fsdp": 2},
        {"fsdp": 4, "tensor": 2},
        {"tensor": 8},
    ],
    ids=str,
)
def test_every_pair_is_met_once_round_the_ring(shape):
    x, y = example(), example(seed=1)
    mesh = mesh_lib.make_mesh(shape)
    rows = mesh_lib.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        found = jax.jit(swept, static_argnums=2)(*jax.device_put((x, y), rows), 2)
    assert found[0]["sum"].sharding.is_equivalent_to(rows, 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        swept(x, y, B),
    )


def test_an_fft_stays_on_its_rows():
    """XLA alone would gather the whole batch for it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, 32)), jnp.float32)
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2})

    def spectrum(x):
        return collectives.by_row(lambda own: jnp.abs(jnp.fft.rfft(own)), x)

    with jax.set_mesh(mesh):
        rows = jax.device_put(x, mesh_lib.batch_sharding(mesh))
        compiled = jax.jit(spectrum).lower(rows).compile()
    assert traffic.collectives(compiled.as_text()) == []
    np.testing.assert_allclose(compiled(rows), spectrum(x), rtol=1e-5, atol=1e-5)
    assert spectrum(x[:3]).shape == (3, 17)
