"""Work on a sharded batch that XLA would not split well by itself.

All pairs of rows of two batches are met in tiles on a device, a ring between devices:
device d holds its rows of x and y. The rows of x, and what is summed up for them, go
round; those of y stay. There is a ring for each mesh axis, the inner one turning whole
between two hops of the outer: slow networks are crossed as often as they have islands,
not devices. In the end everything is back home, and no device ever held more than its
share and one tile.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmssl.parallel import mesh as mesh_lib

T = TypeVar("T")

Tile = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""(rows of x, rows of y, sums of these x, sums of these y) -> both sums, updated."""


def all_pairs(
    tile: Tile, x: Any, y: Any, x_sums: Any, y_sums: Any, *, chunk: int
) -> tuple[Any, Any]:
    """Folds `tile` over all pairs of rows; each pair is met once.

    Where a mesh is set (`jax.set_mesh`) the rows are split over its batch axes, and
    collective permutes are the only communication. Autodiff would keep every tile:
    what calls this needs a VJP of its own.

    Args:
      tile: gets at most `chunk` rows of each side, zeros filling up the last ones.
      x: any pytree of arrays, float32, uint32 or bool, that lead with the batch axis.
      y: likewise.
      x_sums: what is summed up for each row of x, before the first tile.
      y_sums: for each row of y.
      chunk: rows.

    Returns:
      (x_sums, y_sums) after all tiles.
    """
    rings = _rings()
    ring = functools.partial(_ring, tile, chunk=chunk, rings=rings)
    if not rings:
        return ring(x, y, x_sums, y_sums)
    rows = PartitionSpec(tuple(rings))
    return jax.shard_map(ring, in_specs=rows, out_specs=rows, check_vma=False)(
        x, y, x_sums, y_sums
    )


def by_row(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """f(x), each device on its own rows; f must be row-wise.

    For what XLA gathers otherwise, like FFTs. Reads the ambient mesh.
    """
    rings = _rings()
    if not rings or x.shape[0] % math.prod(rings.values()):
        return f(x)
    rows = PartitionSpec(tuple(rings))
    return jax.shard_map(f, in_specs=rows, out_specs=rows, check_vma=False)(x)


def _rings() -> dict[str, int]:
    """The axes of the ambient mesh that split a batch, and their sizes above 1."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {axis: mesh.shape.get(axis, 1) for axis in mesh_lib.ROWS}
    return {axis: size for axis, size in sizes.items() if size > 1}


def _ring(
    tile: Tile,
    x: Any,
    y: Any,
    x_sums: Any,
    y_sums: Any,
    *,
    chunk: int,
    rings: Mapping[str, int],
) -> tuple[Any, Any]:
    """`all_pairs` from one device's point of view; `rings` outermost first."""
    if not rings:
        return _tiles(tile, x, y, x_sums, y_sums, chunk)
    (axis, size), *inner = rings.items()
    turn = functools.partial(_ring, tile, chunk=chunk, rings=dict(inner))

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        x, x_sums, y_sums = carry
        # Waits for no tile, so that sending can hide behind them.
        following = _send(x, axis, size)
        x_sums, y_sums = turn(x, y, x_sums, y_sums)
        return (following, _send(x_sums, axis, size), y_sums), None

    (_, x_sums, y_sums), _ = jax.lax.scan(hop, (x, x_sums, y_sums), length=size)
    return x_sums, y_sums


def _tiles(
    tile: Tile, x: Any, y: Any, x_sums: Any, y_sums: Any, chunk: int
) -> tuple[Any, Any]:
    """All pairs of the rows of one device."""

    def cut(tree: T) -> T:
        """Leaves [b, ...] -> [chunks, at most chunk, ...]."""

        def leaf(a: jax.Array) -> jax.Array:
            rows = a.shape[0]
            size = min(chunk, rows)
            spare = -rows % size
            a = jnp.pad(a, [(0, spare)] + [(0, 0)] * (a.ndim - 1))
            return a.reshape(-1, size, *a.shape[1:])

        return jax.tree.map(leaf, tree)

    def joined(tree: T, like: T) -> T:
        return jax.tree.map(
            lambda a, b: a.reshape(-1, *a.shape[2:])[: b.shape[0]], tree, like
        )

    def across(y_sums: Any, own: Any) -> tuple[Any, Any]:
        x, x_sums = own

        def one(x_sums: Any, own: Any) -> tuple[Any, Any]:
            y, y_sums = own
            return tile(x, y, x_sums, y_sums)

        x_sums, y_sums = jax.lax.scan(one, x_sums, (cut_y, y_sums))
        return y_sums, x_sums

    cut_y = cut(y)
    y_out, x_out = jax.lax.scan(across, cut(y_sums), (cut(x), cut(x_sums)))
    return joined(x_out, x_sums), joined(y_out, y_sums)


def _send(tree: T, axis: str, size: int) -> T:
    """To the next device of the ring, as one message: small ones cost their latency."""
    leaves, treedef = jax.tree.flatten(tree)
    words = [_words(leaf) for leaf in leaves]
    places = [(i, (i + 1) % size) for i in range(size)]
    sent = jax.lax.ppermute(jnp.concatenate(words, axis=1), axis, places)
    ends = list(itertools.accumulate(w.shape[1] for w in words))[:-1]
    parts = jnp.split(sent, ends, axis=1)
    return treedef.unflatten(map(_unwords, parts, leaves))


def _words(a: jax.Array) -> jax.Array:
    """[b, ...] -> [b, words] uint32, bit by bit."""
    if a.dtype == jnp.bool_:
        a = a.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(a, jnp.uint32).reshape(a.shape[0], -1)


def _unwords(words: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_words`."""
    words = words.reshape(like.shape)
    if like.dtype == jnp.bool_:
        return words != 0
    return jax.lax.bitcast_convert_type(words, like.dtype)
