"""A fixed input and what the exported encoder makes of it."""

from collections.abc import Mapping

import numpy as np

ROWS = 2

TOLERANCE = {"float32": 0.02, "bfloat16": 0.06}
"""Largest relative distance |a - b| / |b| per row, by compute dtype. Bits are checked
by hashes; this is about wiring, and accelerators multiply float32 with 10-bit
mantissas by default."""


def noise(count: int, *, seed: int) -> np.ndarray:
    """`count` uint32, equal on every platform and release.

    The finaliser of MurmurHash3 over a counter; generators of libraries may change
    their streams.
    """
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    x ^= np.uint32(seed * 0x85EBCA6B & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def fixed_input(modality: str, shape: tuple[int, ...], *, vocab: int = 0) -> np.ndarray:
    """Pseudo-random media of one modality.

    Args:
      modality: "video" gives uint8, "audio" float32 in [-0.5, 0.5), "text" int32 ids
        in [1, vocab).
      shape: of the result, rows first.
      vocab: number of token ids.
    """
    seed = 1 + ("video", "audio", "text").index(modality)
    raw = noise(int(np.prod(shape)), seed=seed)
    if modality == "video":
        media = (raw >> np.uint32(24)).astype(np.uint8)
    elif modality == "audio":
        media = (raw.astype(np.float64) / 2**32 - 0.5).astype(np.float32)
    else:
        media = (1 + raw % np.uint32(max(vocab - 1, 1))).astype(np.int32)
    return media.reshape(shape)


def difference(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Largest relative row distance by output name; infinite where shapes differ."""
    out = {}
    for name, want in expected.items():
        have = found.get(name)
        if have is None or have.shape != want.shape:
            out[name] = float("inf")
            continue
        scale = np.maximum(np.linalg.norm(want, axis=-1), 1e-12)
        out[name] = float((np.linalg.norm(have - want, axis=-1) / scale).max())
    return out
