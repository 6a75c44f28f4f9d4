"""Named random streams: a key is a pure function of (base key, names, integers)."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream(
    key: Key[Array, ""], name: str, step: int | Int[Array, ""] = 0
) -> Key[Array, ""]:
    """The key of stream `name` at `step`; nothing is split or threaded.

    Args:
      key: the run's constant base key.
      name: the stream, e.g. "drop_token". Its CRC-32 is folded in, so streams are
        stable across processes and Python versions.
      step: the training step.
    """
    named = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.random.fold_in(named, step)


def per_row(key: Key[Array, ""], rows: int) -> Key[Array, "b"]:
    """One key per row of a batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.arange(rows))
