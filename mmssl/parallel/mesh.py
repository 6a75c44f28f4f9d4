"""Device meshes and the shardings on the boundary of the jitted step.

Four axes, outermost first: `replica` and `data` split the batch, `fsdp` splits the
batch and the parameters at rest, `tensor` splits the parameters in use. What talks most
is innermost, where the network is fastest.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmssl.errors import UserError, nearest

P = ParamSpec("P")
T = TypeVar("T")

AXES = ("replica", "data", "fsdp", "tensor")
"""Mesh axes, outermost first. Their names appear in this package only."""

ROWS = ("replica", "data", "fsdp")
"""The axes that a batch is split over."""


def make_mesh(
    shape: Mapping[str, int], *, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """A mesh over `devices`, by default all of them, of axes that XLA propagates.

    Slices of accelerators that only a data-centre network joins are split along the
    outermost axes.

    Args:
      shape: axis name to size; those left out are 1; at most one -1, which takes what
        is left.

    Raises:
      UserError: an unknown axis; sizes whose product is not the device count; a
        `tensor` axis that would run across slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    arranged = arrange(sizes(shape, len(devices)), devices)
    return jax.sharding.Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes(shape: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The size of each of `AXES` on that many devices; see `make_mesh`."""
    for axis in shape:
        if axis not in AXES:
            raise UserError(
                f"mesh: unknown axis {axis!r}{nearest(axis, AXES)}; the axes are "
                f"{', '.join(AXES)}"
            )
    found = [shape.get(axis, 1) for axis in AXES]
    if found.count(-1) > 1:
        raise UserError(f"mesh {dict(shape)}: only one axis may be -1")
    known = math.prod(size for size in found if size != -1)
    if -1 in found and known > 0 and devices % known == 0:
        found[found.index(-1)] = devices // known
    if min(found) < 1 or math.prod(found) != devices:
        raise UserError(
            f"mesh {dict(shape)} does not fit {devices} devices: the product of "
            f"its axes must be {devices}; -1 on one axis takes what is left"
        )
    return tuple(found)


def fits(shape: Mapping[str, int], devices: int) -> bool:
    """Whether `make_mesh` takes this shape on that many devices."""
    try:
        sizes(shape, devices)
    except UserError:
        return False
    return True


def arrange(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in an array of those sizes, neighbours on the inner axes.

    Raises:
      UserError: the `tensor` axis would run across slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            sizes, devices, allow_split_physical_axes=True
        )
    outer, left = [], slices
    for axis, size in zip(AXES, sizes, strict=True):
        outer.append(math.gcd(size, left) if axis in ROWS else 1)
        left //= outer[-1]
    if left > 1:
        raise UserError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not fit {slices} slices: "
            f"{' x '.join(ROWS)} must be divisible by {slices}, so that no 'tensor' "
            "group runs across the network between slices"
        )
    inner = [size // own for size, own in zip(sizes, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )


def ambient(mesh: jax.sharding.Mesh, f: Callable[P, T]) -> Callable[P, T]:
    """`f`, to be traced with `mesh` in `jax.sharding.get_abstract_mesh()`.

    Inside, a sharding is a `PartitionSpec` and nothing has to be told of devices. Where
    no mesh was set, that function gives an empty one.
    """

    @functools.wraps(f)
    def traced(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args, **kwargs)

    return traced


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over `ROWS`, for every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts a batch is split; 1 for an empty mesh."""
    return math.prod(mesh.shape.get(axis, 1) for axis in ROWS)


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the batch does not divide over the mesh."""
    shards = row_shards(mesh)
    if batch % shards:
        lower = batch - batch % shards
        raise UserError(
            f"batch {batch} is not divisible by the mesh's {shards} batch shards "
            f"({' x '.join(ROWS)}); nearest valid: {lower or shards} or "
            f"{lower + shards}"
        )


def round_up(batch: int, mesh: jax.sharding.Mesh) -> int:
    """The smallest batch of at least that size that divides over the mesh."""
    shards = row_shards(mesh)
    return -(-batch // shards) * shards


def process_rows(
    mesh: jax.sharding.Mesh, *, process: int | None = None
) -> tuple[tuple[int, ...], int]:
    """(shards, n): a process feeds those of n equal parts of the batch, in that order.

    They need not be neighbours: hosts of a TPU pod own blocks of its torus.
    `jax.make_array_from_process_local_data` takes a process's rows in the order of its
    shards in the batch. Processes that a `tensor` group joins feed the same ones.

    Args:
      mesh: of all processes.
      process: its index; None = this one.

    Raises:
      UserError: processes feed different numbers of shards, or share some of them only.
    """
    process = jax.process_index() if process is None else process
    by_row = mesh.devices.reshape(row_shards(mesh), -1)
    fed: dict[int, list[int]] = {}
    for i, devices in enumerate(by_row):
        for other in {device.process_index for device in devices}:
            fed.setdefault(other, []).append(i)
    mine = fed[process]
    for other, shards in fed.items():
        apart = mine == shards or set(mine).isdisjoint(shards)
        if len(mine) != len(shards) or not apart:
            raise UserError(
                f"mesh {dict(mesh.shape)}: process {process} holds the batch shards "
                f"{mine} and process {other} {shards}; they must be as many, and the "
                "same or all different: make 'tensor' a multiple or a divisor of the "
                "devices per process"
            )
    return tuple(mine), len(by_row)
