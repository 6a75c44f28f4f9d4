"""Host-side changes to waveforms."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

_FRONT, _SURROUND = 0.5**0.5, 0.5
_GAINS = {
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "WL", "WR", "DL", "DR"), _FRONT),
    **dict.fromkeys(("FC", "BIL", "BIR"), 1.0),
    **dict.fromkeys(("LFE", "LFE2"), 0.0),
    "BC": 0.5**0.5,
}


def mono_gains(channels: Sequence[str]) -> Float64[np.ndarray, "c"]:
    """What each channel adds to mono: ITU-R BS.775-3, table 2, scaled to a sum of 1.

    Front pairs 0.707, centre 1, surrounds 0.5 (a single one 0.707), low frequencies
    0. By the scale no mix of channels in [-1, 1] leaves it: two channels are averaged.

    Args:
      channels: FFmpeg's names of positions ("FL", "FR", "FC", "LFE", "SL", ...).
    """
    gains = np.array([_GAINS.get(name, _SURROUND) for name in channels])
    if not gains.any():
        gains = np.ones(len(channels))
    return gains / gains.sum()


def add_noise(
    wave: Float32[np.ndarray, "s"], rng: np.random.Generator, *, strength: float
) -> Float32[np.ndarray, "s"]:
    """Gaussian noise of standard deviation `strength` x max|wave| (VATT B6: 0.01).

    Silence stays silent.
    """
    peak = np.float32(strength) * np.abs(wave).max(initial=np.float32(0))
    noise = rng.standard_normal(wave.shape, dtype=np.float32)
    return wave + peak * noise
