"""Parameter trees in safetensors: flat `a/b/c` names, read strictly."""

import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from mmssl import trees
from mmssl.errors import UserError

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def flatten(tree: Any, *, dtype: str, keep: str = "state/") -> dict[str, np.ndarray]:
    """`a/b/c` -> array on the host; floats as `dtype`, except below names with `keep`.

    Args:
      tree: nested dicts of arrays.
      dtype: a key of DTYPES.
      keep: running statistics are small and stay as they are.

    Raises:
      UserError: a value that is not finite, named.
    """
    if dtype not in DTYPES:
        raise UserError(f"export: unknown dtype {dtype!r} (known: {', '.join(DTYPES)})")
    out: dict[str, np.ndarray] = {}
    for name, leaf in trees.named_leaves(tree).items():
        array = np.asarray(jax.device_get(leaf))
        if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
            if f"/{keep}" not in f"/{name}":
                array = array.astype(DTYPES[dtype])
            if not np.isfinite(array.astype(np.float32)).all():
                raise UserError(
                    f"export: {name} holds values that are not finite (in {dtype}); "
                    "export an earlier checkpoint, or look at events.jsonl for when "
                    "training went wrong"
                )
        out[name] = np.ascontiguousarray(array).reshape(array.shape)
    return out


def save(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Writes one safetensors file and flushes it to the disk."""
    import safetensors.numpy

    data = safetensors.numpy.save(dict(arrays), metadata={"format": "mmssl"})
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file.

    Raises:
      UserError: not a readable safetensors file, or values that are not finite.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); copy it again"
        ) from error
    for name, array in arrays.items():
        if (
            array.dtype.kind not in "iub"
            and not np.isfinite(array.astype(np.float32)).all()
        ):
            raise UserError(
                f"{path}: {name} holds values that are not finite; refused. "
                "Export again from a sound checkpoint"
            )
    return arrays


def checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """CRC-32 of each tensor's bytes: they say which one a damaged file damaged."""
    return {
        name: f"{zlib.crc32(np.ascontiguousarray(x).tobytes()):08x}"
        for name, x in arrays.items()
    }


def fit(arrays: Mapping[str, np.ndarray], expected: Any, *, what: str) -> Any:
    """The arrays as a tree like `expected`, whose leaves give shapes and dtypes.

    Raises:
      UserError: names missing, unexpected or of another shape; all are listed.
    """
    wanted = trees.named_leaves(expected)
    missing = sorted(wanted.keys() - arrays.keys())
    unexpected = sorted(arrays.keys() - wanted.keys())
    reshaped = [
        f"{name}: expected {tuple(wanted[name].shape)}, found {arrays[name].shape}"
        for name in sorted(wanted.keys() & arrays.keys())
        if tuple(wanted[name].shape) != arrays[name].shape
    ]
    parts = [
        f"\n  {label} ({len(rows)}): " + "; ".join(rows)
        for label, rows in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("other shape", reshaped),
        )
        if rows
    ]
    if parts:
        raise UserError(
            f"{what}: its weights do not fit its config.json; nothing was loaded."
            + "".join(parts)
            + "\nUse the files of one export together"
        )
    return trees.map_named(
        lambda name, leaf: jax.numpy.asarray(arrays[name].astype(leaf.dtype)), expected
    )
