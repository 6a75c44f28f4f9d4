"""Device meshes and the shardings on the boundary of the jitted step."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmssl.errors import UserError

AXES = ("data",)
"""Mesh axes, outermost first. Their names appear in this package only."""


def make_mesh(
    shape: Mapping[str, int], *, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """A mesh over `devices`, by default all of them.

    Args:
      shape: axis name to size; at most one -1, which takes what is left.

    Raises:
      UserError: an unknown axis, or sizes whose product is not the device count.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = set(shape) - set(AXES)
    if unknown:
        raise UserError(f"mesh: unknown axes {sorted(unknown)}; known: {AXES}")
    sizes = [shape.get(axis, 1) for axis in AXES]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh {dict(shape)} does not fit {len(devices)} devices: the product of "
            f"its axes must be {len(devices)}; -1 on one axis takes what is left"
        )
    return jax.sharding.Mesh(
        np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over the data axis, for every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the batch does not divide over the data axis."""
    shards = mesh.shape["data"]
    if batch % shards:
        lower = batch - batch % shards
        raise UserError(
            f"batch {batch} is not divisible by the mesh's {shards} data shards; "
            f"nearest valid: {lower or shards} or {lower + shards}"
        )


def round_up(batch: int, mesh: jax.sharding.Mesh) -> int:
    """The smallest batch of at least that size that divides over the data axis."""
    shards = mesh.shape["data"]
    return -(-batch // shards) * shards
