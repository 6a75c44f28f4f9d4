"""The arrays of a checkpoint by name. This module and `checkpoint` know Orbax."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mmssl import trees

STATE = "state"
"""Orbax's own folder in that of a checkpoint."""

AT_ONCE = 2**30
"""Bytes that `stream` holds, or one array if that is larger."""

Specs = Mapping[str, jax.ShapeDtypeStruct]


def specs(manifest: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Name to shape and dtype of every array of a checkpoint."""
    return {
        name: jax.ShapeDtypeStruct(tuple(shape), dtype)
        for name, (shape, dtype) in manifest["arrays"].items()
    }


def read(folder: epath.Path, target: Specs) -> dict[str, Any]:
    """Some of a checkpoint's arrays; nothing is verified.

    Args:
      folder: of one checkpoint.
      target: names to shapes as saved. With a sharding an array comes in its dtype on
        those devices, whatever mesh saved it; without one, as saved, in NumPy.
    """
    args = ocp.args.PyTreeRestore(
        trees.from_named(dict(target)),
        restore_args=trees.from_named({n: _how(x) for n, x in target.items()}),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return trees.named_leaves(reader.restore(folder / STATE, args=args))


def stream(folder: epath.Path, found: Specs) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays in NumPy, in the order of their names, `AT_ONCE` bytes at a time."""
    group: dict[str, jax.ShapeDtypeStruct] = {}
    for name in sorted(found):
        if group and trees.nbytes([*group.values(), found[name]]) > AT_ONCE:
            yield from sorted(read(folder, group).items())
            group = {}
        group[name] = found[name]
    if group:
        yield from sorted(read(folder, group).items())


def content_hash(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 of names, dtypes, shapes and values, whatever mesh or layout held them.

    Args:
      arrays: in the order of their names.
    """
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        # As bytes: not every dtype (bfloat16) has a buffer of its own.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def differences(manifest: Mapping[str, Any], like: Any) -> list[str]:
    """Names missing, unexpected, or of another shape or dtype than in `like`."""
    saved, wanted = specs(manifest), trees.named_leaves(like)
    return [
        *(f"missing {name}" for name in wanted if name not in saved),
        *(f"unexpected {name}" for name in saved if name not in wanted),
        *(
            f"changed {n}: saved {shape(saved[n])}, expected {shape(x)}"
            for n, x in wanted.items()
            if n in saved and shape(saved[n]) != shape(x)
        ),
    ]


def shape(x: Any) -> str:
    """`float32[2, 3]`."""
    return f"{x.dtype}{list(x.shape)}"


def _how(x: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if x.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        sharding=x.sharding, global_shape=tuple(x.shape), dtype=x.dtype
    )
