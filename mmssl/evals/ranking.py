"""Nearest items and ranks of right ones, tile by tile: never the whole score matrix.

A tile is a block of queries against a chunk of the gallery. Queries are split over this
process's devices, so no device waits for another one.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmssl.parallel import mesh as mesh_lib

QUERIES, ITEMS = 1024, 8192
"""Of a tile, queries per device; its scores take 32 MiB there."""

RESIDENT = 2**31
"""Bytes of a gallery that stay on every device; of a larger one, a chunk at a time."""

Rows = tuple[np.ndarray, np.ndarray]
"""Normalised vectors [N, e] or [N, n, e], and which of them count: [N] or [N, n]."""


def ranks(
    queries: Rows,
    gallery: Rows,
    shared: Int[np.ndarray, "N s"],
    *,
    tile: tuple[int, int] = (QUERIES, ITEMS),
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Rank (from 1) of each query's best right item among the wrong ones.

    Query i and item i are of the same clip. Right are item i and every item that shares
    an entry of `shared` with the query. Similarity is the cosine; with candidates the
    best pair of those that count. Ties are pessimistic: a wrong item with an equal
    score comes first, and so does one that cannot be compared (NaN), so a collapsed or
    broken model never looks good.

    Args:
      queries: N of them.
      gallery: N items.
      shared: ids of what several clips have in common, -1 = none.
      tile: queries per device, and items.

    Returns:
      The ranks, between 1 and N - (right items) + 1, and how many items are right.
    """
    count = len(queries[0])
    own = np.arange(count, dtype=np.int32)
    blocks = _Blocks((*queries, own, shared), tile[0])
    chunks = _Chunks((*gallery, own, shared), tile[1])
    holders = [set(np.unique(ids[ids >= 0])) for _, ids in chunks.parts(3)]
    rank, right = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for at, block in blocks:
        ids = shared[at]
        wanted = set(np.unique(ids[ids >= 0]))
        best = blocks.put(np.full(blocks.size, -np.inf, np.float32))
        for where, held, chunk in zip(chunks.spans, holders, chunks, strict=True):
            # Most chunks have no right item of these queries.
            if wanted & held or (where.start < at.stop and at.start < where.stop):
                best = _best(block, chunk, best)
        ahead = total = 0
        for chunk in chunks:
            found = _count(block, chunk, best)
            ahead, total = ahead + found[0], total + found[1]
        size = at.stop - at.start
        rank[at] = 1 + np.asarray(jax.device_get(ahead))[:size]
        right[at] = np.asarray(jax.device_get(total))[:size]
    return rank, right


def nearest(
    queries: Rows, gallery: Rows, k: int, *, tile: tuple[int, int] = (QUERIES, ITEMS)
) -> tuple[Float[np.ndarray, "N k"], Int[np.ndarray, "N k"]]:
    """The k most similar items of each query; of equally similar ones the earlier.

    Args:
      queries: N of them; see `ranks` for the similarity.
      gallery: M items.
      k: at most; fewer where the gallery has fewer.
      tile: queries per device, and items.

    Returns:
      Scores, descending, and indices of the items.
    """
    k = min(k, len(gallery[0]))
    own = np.arange(len(gallery[0]), dtype=np.int32)
    blocks = _Blocks(queries, tile[0])
    chunks = _Chunks((*gallery, own), max(tile[1], k))
    scores = np.zeros((len(queries[0]), k), np.float32)
    index = np.zeros((len(queries[0]), k), np.int64)
    for at, block in blocks:
        best = None
        for chunk in chunks:
            best = _top(block, chunk, best, k=k)
        assert best is not None
        size = at.stop - at.start
        scores[at], index[at] = (x[:size] for x in jax.device_get(best))
    return scores, index


class _Parts:
    """Arrays cut along their rows; the last part is padded to the size of the others.

    What pads a mask is False, what pads ids is -1.
    """

    def __init__(self, arrays: Sequence[np.ndarray], size: int):
        x, mask, *rest = arrays
        if x.ndim == 2:
            x, mask = x[:, None], mask[:, None]
        self._arrays, self.size = (x, mask, *rest), size
        starts = range(0, len(x), size)
        self.spans = [slice(i, min(i + size, len(x))) for i in starts]

    def parts(self, nth: int) -> Iterator[tuple[slice, np.ndarray]]:
        return ((span, self._arrays[nth][span]) for span in self.spans)

    def _part(self, span: slice) -> tuple[np.ndarray, ...]:
        missing = self.size - (span.stop - span.start)

        def padded(x: np.ndarray) -> np.ndarray:
            fill = -1 if x.dtype == np.int32 else 0
            widths = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
            return np.pad(x[span], widths, constant_values=fill) if missing else x[span]

        return tuple(map(padded, self._arrays))


class _Blocks(_Parts):
    """Of queries, split over the devices."""

    def __init__(self, arrays: Sequence[np.ndarray], per_device: int):
        mesh = _mesh()
        size = min(per_device * mesh.size, len(arrays[0]))
        super().__init__(arrays, mesh_lib.round_up(size, mesh))
        self._sharding = mesh_lib.batch_sharding(mesh)

    def __iter__(self) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        for span in self.spans:
            yield span, self.put(self._part(span))

    def put(self, x: Any) -> Any:
        return jax.device_put(x, self._sharding)


class _Chunks(_Parts):
    """Of a gallery, whole on every device."""

    def __init__(self, arrays: Sequence[np.ndarray], size: int):
        super().__init__(arrays, min(size, len(arrays[0])))
        self._held: list[tuple[Array, ...]] | None = None
        if self._arrays[0].nbytes <= RESIDENT:
            self._held = list(self)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        if self._held is not None:
            return iter(self._held)
        whole = mesh_lib.replicated(_mesh())
        return (jax.device_put(self._part(span), whole) for span in self.spans)


@functools.cache
def _mesh() -> jax.sharding.Mesh:
    return mesh_lib.make_mesh({"data": -1}, devices=jax.local_devices())


def _scores(block: tuple[Array, ...], chunk: tuple[Array, ...]) -> Float[Array, "q g"]:
    """Cosine of the best pair of candidates; -inf where a side has none."""
    (a, a_mask), (b, b_mask) = block[:2], chunk[:2]
    found = jnp.full((len(a), len(b)), -jnp.inf, jnp.float32)
    for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
        # TPUs and some GPUs would multiply in lower precision.
        cosine = jnp.matmul(a[:, i], b[:, j].T, precision=jax.lax.Precision.HIGHEST)
        valid = a_mask[:, i, None] & b_mask[None, :, j]
        found = jnp.maximum(found, jnp.where(valid, cosine, -jnp.inf))
    return found


def _right(block: tuple[Array, ...], chunk: tuple[Array, ...]) -> Bool[Array, "q g"]:
    """The same clip, or one that shares an id."""
    (own, ids), (others, theirs) = block[2:], chunk[2:]
    width = ids.shape[1]

    def step(i: Array, found: Array) -> Array:
        a = jax.lax.dynamic_index_in_dim(ids, i // width, 1)
        b = jax.lax.dynamic_index_in_dim(theirs, i % width, 1)
        return found | ((a == b.T) & (a >= 0))

    same = (own[:, None] == others[None]) & (own[:, None] >= 0)
    return jax.lax.fori_loop(0, width * width, step, same) if width else same


@jax.jit
def _best(
    block: tuple[Array, ...], chunk: tuple[Array, ...], former: Array
) -> Float[Array, "q"]:
    """Highest score of a right item, of this chunk and those before."""
    right = jnp.where(_right(block, chunk), _scores(block, chunk), -jnp.inf)
    return jnp.maximum(former, right.max(1))


@jax.jit
def _count(
    block: tuple[Array, ...], chunk: tuple[Array, ...], best: Array
) -> tuple[Int[Array, "q"], Int[Array, "q"]]:
    """Wrong items not below the best right one; right items."""
    right, there = _right(block, chunk), (chunk[2] >= 0)[None]
    ahead = there & ~right & ~(_scores(block, chunk) < best[:, None])
    return ahead.sum(1), right.sum(1)


@functools.partial(jax.jit, static_argnames="k")
def _top(
    block: tuple[Array, ...],
    chunk: tuple[Array, ...],
    former: tuple[Array, Array] | None,
    *,
    k: int,
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """The k best so far; `top_k` takes the first of equals, which is the earlier."""
    there = (chunk[2] >= 0)[None]
    scores = jnp.where(there, _scores(block, chunk), -jnp.inf)
    value, place = jax.lax.top_k(scores, k)
    index = chunk[2][place]
    if former is not None:
        value = jnp.concatenate([former[0], value], 1)
        index = jnp.concatenate([former[1], index], 1)
        value, place = jax.lax.top_k(value, k)
        index = jnp.take_along_axis(index, place, 1)
    return value, index
