"""Host-side changes to waveforms."""

import numpy as np
from jaxtyping import Float32


def add_noise(
    wave: Float32[np.ndarray, "s"], rng: np.random.Generator, *, strength: float
) -> Float32[np.ndarray, "s"]:
    """Gaussian noise of standard deviation `strength` x max|wave| (VATT B6: 0.01).

    Silence stays silent.
    """
    peak = np.float32(strength) * np.abs(wave).max(initial=np.float32(0))
    noise = rng.standard_normal(wave.shape, dtype=np.float32)
    return wave + peak * noise
