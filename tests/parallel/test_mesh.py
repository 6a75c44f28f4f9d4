"""Meshes over eight simulated devices, and the errors of those that don't fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmssl.errors import UserError
from mmssl.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks a device for, where there is more than one slice or process."""

    id: int
    slice_index: int = 0
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "pretend"


def pretend(slices, per_slice):
    return [
        Device(i, slice_index=i // per_slice, process_index=i // per_slice)
        for i in range(slices * per_slice)
    ]


def test_minus_one_takes_what_is_left():
    assert mesh_lib.make_mesh({"data": -1}).shape["data"] == 8
    assert mesh_lib.make_mesh({"data": 2, "fsdp": -1}).shape["fsdp"] == 4
    assert mesh_lib.make_mesh({}, devices=jax.devices()[:1]).shape["data"] == 1


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 3},
        {"data": 0},
        {"data": 16},
        {"data": -1, "tensor": 3},
        {"data": -2, "fsdp": -4},
    ],
)
def test_a_mesh_that_does_not_fit_says_so(shape):
    with pytest.raises(UserError, match="8 devices"):
        mesh_lib.make_mesh(shape)


def test_an_unknown_axis_is_named():
    with pytest.raises(UserError, match=r"'tensr'; did you mean 'tensor'"):
        mesh_lib.make_mesh({"tensr": 2})
    with pytest.raises(UserError, match="only one axis may be -1"):
        mesh_lib.make_mesh({"data": -1, "fsdp": -1})


def test_inner_axes_are_neighbours():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert mesh.axis_names == mesh_lib.AXES
    ids = np.vectorize(lambda d: d.id)(mesh.devices)
    np.testing.assert_array_equal(ids, np.arange(8).reshape(1, 2, 2, 2))


@pytest.mark.parametrize(
    ("shape", "outer"),
    [
        ({"replica": 4, "fsdp": 4}, ("replica",)),
        ({"replica": 2, "data": 4, "tensor": 2}, ("replica", "data")),
        ({"data": 8, "fsdp": 2}, ("data",)),
        ({"fsdp": 16}, ("fsdp",)),
    ],
)
def test_slices_are_split_along_the_outermost_axes(shape, outer):
    devices = pretend(4, 4)
    found = mesh_lib.arrange(mesh_lib.sizes(shape, 16), devices)
    slices = np.vectorize(lambda d: d.slice_index)(found)
    for axis, name in enumerate(mesh_lib.AXES):
        across = np.ptp(slices, axis=axis).max() > 0
        assert across == (name in outer)


def test_tensor_never_runs_across_slices():
    with pytest.raises(UserError, match=r"4 slices.*'tensor'"):
        mesh_lib.arrange(mesh_lib.sizes({"data": 2, "tensor": 8}, 16), pretend(4, 4))


def test_batches_must_divide():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    mesh_lib.check_batch(12, mesh)
    assert mesh_lib.round_up(9, mesh) == 12
    with pytest.raises(UserError, match="nearest valid: 12 or 16"):
        mesh_lib.check_batch(14, mesh)


def test_rows_are_spread_over_all_axes_but_tensor():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x = jax.device_put(jnp.zeros((16, 3)), mesh_lib.batch_sharding(mesh))
    assert x.addressable_shards[0].data.shape == (4, 3)
    y = jax.device_put(jnp.zeros((16, 3)), mesh_lib.replicated(mesh))
    assert y.addressable_shards[0].data.shape == (16, 3)


def test_the_mesh_is_ambient_while_tracing():
    mesh = mesh_lib.make_mesh({"data": 4, "tensor": 2})
    seen = []

    def f(x):
        seen.append(jax.sharding.get_abstract_mesh())
        return jax.lax.with_sharding_constraint(2 * x, PartitionSpec(None, "tensor"))

    go = jax.jit(mesh_lib.ambient(mesh, f), in_shardings=mesh_lib.batch_sharding(mesh))
    y = go(jnp.ones((8, 6)))
    assert dict(seen[0].shape) == {"replica": 1, "data": 4, "fsdp": 1, "tensor": 2}
    assert y.sharding.shard_shape(y.shape) == (8, 3)
    np.testing.assert_array_equal(y, 2 * np.ones((8, 6)))
    assert jax.sharding.get_abstract_mesh().empty
    assert mesh_lib.row_shards(jax.sharding.get_abstract_mesh()) == 1


@pytest.mark.parametrize(
    ("shape", "feeds"),
    [
        ({"data": 16}, [range(4), range(4, 8), range(8, 12), range(12, 16)]),
        ({"data": 4, "tensor": 4}, [[0], [1], [2], [3]]),
        ({"data": 2, "tensor": 8}, [[0], [0], [1], [1]]),
        ({"tensor": 16}, [[0]] * 4),
    ],
)
def test_each_process_feeds_its_rows(shape, feeds):
    found = np.array(
        [dataclasses.replace(d, slice_index=0) for d in pretend(4, 4)]
    ).reshape(mesh_lib.sizes(shape, 16))
    mesh = jax.sharding.Mesh(found, mesh_lib.AXES)
    rows = mesh_lib.row_shards(mesh)
    expected = [(tuple(shards), rows) for shards in feeds]
    assert [mesh_lib.process_rows(mesh, process=i) for i in range(4)] == expected


@dataclasses.dataclass(frozen=True)
class Chip(Device):
    """Of a TPU slice: hosts own blocks of 2 x 2."""

    coords: tuple[int, ...] = ()
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


@pytest.mark.parametrize("shape", [{"data": -1}, {"fsdp": 8, "tensor": 2}])
def test_hosts_of_a_torus_feed_what_they_own(shape):
    chips = [
        Chip(i, process_index=i // 8 * 2 + i % 4 // 2, coords=(i % 4, i // 4, 0))
        for i in range(16)
    ]
    mesh = mesh_lib.make_mesh(shape, devices=chips)
    rows = mesh_lib.row_shards(mesh)
    fed = []
    for process in range(4):
        shards, parts = mesh_lib.process_rows(mesh, process=process)
        devices = mesh.devices.reshape(parts, -1)[list(shards)].ravel()
        assert parts == rows
        assert {device.process_index for device in devices} == {process}
        fed += shards
    assert sorted(fed) == list(range(rows))
    if rows == 16:
        assert np.ptp(fed[:4]) > 3  # not one range


def test_rows_that_processes_share_in_part_are_refused():
    devices = [Device(i, process_index=i // 2) for i in range(6)]
    mesh = jax.sharding.Mesh(np.array(devices).reshape(1, 2, 1, 3), mesh_lib.AXES)
    message = r"shards \[0\] and process 1 \[0, 1\]"
    with pytest.raises(UserError, match=message):
        mesh_lib.process_rows(mesh, process=0)
