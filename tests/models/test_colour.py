"""Colour jitter beside its definition in float64, over the planes of YIQ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.data import video as video_lib
from mmssl.models import colour


def turned(rgb: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    """Saturation and hue as a product of complex numbers: chroma is I + iQ."""
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    y, i, q = np.moveaxis(rgb @ to_yiq.T, -1, 0)
    chroma = (i + 1j * q) * saturation * np.exp(2j * np.pi * hue)
    yiq = np.stack([y, chroma.real, chroma.imag], axis=-1)
    return yiq @ np.linalg.inv(to_yiq).T


def expected(clip: np.ndarray, draws: tuple[float, ...]) -> np.ndarray:
    brightness, contrast, saturation, hue = draws
    x = turned(clip.astype(np.float64), saturation, hue)
    mean = x.mean(axis=(0, 1, 2))
    return np.clip((x - mean) * contrast + mean + 255 * brightness, 0, 255)


DRAWS = [(0.0, 1.0, 1.0, 0.0), (0.1, 1.3, 0.7, 0.1), (-0.1, 0.6, 1.4, -0.2)]


def test_each_clip_gets_its_own_change() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 7, 3), dtype=np.uint8)
    out = jax.jit(colour.jitter)(jnp.asarray(clips), jnp.array(DRAWS))
    assert out.dtype == jnp.uint8
    for clip, draws, found in zip(clips, DRAWS, np.asarray(out), strict=True):
        assert np.abs(found - expected(clip, draws)).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(np.asarray(out[0]), clips[0])


@pytest.mark.parametrize("seed", range(3))
def test_no_strength_no_change_and_absent_rows_stay_finite(seed: int) -> None:
    rng = np.random.default_rng(seed)
    none = video_lib.draw_colour(rng, brightness=0, contrast=0, saturation=0, hue=0)
    assert none == video_lib.SAME_COLOUR
    clips = rng.integers(0, 256, (2, 1, 2, 2, 3), dtype=np.uint8)
    clips[1] = 0
    out = colour.jitter(jnp.asarray(clips), jnp.array([none, none]))
    np.testing.assert_array_equal(np.asarray(out), clips)
