"""Meshes over eight simulated devices, and the errors of those that don't fit."""

import jax
import pytest

from mmssl.errors import UserError
from mmssl.parallel import mesh as mesh_lib


def test_minus_one_takes_what_is_left():
    assert mesh_lib.make_mesh({"data": -1}).shape["data"] == 8
    assert mesh_lib.make_mesh({}, devices=jax.devices()[:1]).shape["data"] == 1


@pytest.mark.parametrize("shape", [{"data": 3}, {"data": 0}, {"data": 16}])
def test_a_mesh_that_does_not_fit_says_so(shape):
    with pytest.raises(UserError, match="8 devices"):
        mesh_lib.make_mesh(shape)


def test_an_unknown_axis_is_named():
    with pytest.raises(UserError, match="tensr"):
        mesh_lib.make_mesh({"tensr": 2})


def test_batches_must_divide():
    mesh = mesh_lib.make_mesh({"data": -1})
    mesh_lib.check_batch(16, mesh)
    with pytest.raises(UserError, match="nearest valid: 8 or 16"):
        mesh_lib.check_batch(12, mesh)


def test_rows_are_spread_and_state_is_whole():
    mesh = mesh_lib.make_mesh({"data": -1})
    x = jax.device_put(jax.numpy.zeros((16, 3)), mesh_lib.batch_sharding(mesh))
    assert x.addressable_shards[0].data.shape == (2, 3)
    y = jax.device_put(jax.numpy.zeros((16, 3)), mesh_lib.replicated(mesh))
    assert y.addressable_shards[0].data.shape == (16, 3)
