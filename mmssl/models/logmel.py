"""The log-mel front end: waveform -> log-mel spectrogram, in JAX, no parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmssl.parallel import collectives


def waveform(audio: jax.Array) -> Float[Array, "b s"]:
    """[b, s] float in [-1, 1] as it is, or int16 scaled by 1/32768, to float32."""
    if audio.dtype == jnp.int16:
        return audio.astype(jnp.float32) / 32768.0
    return audio.astype(jnp.float32)


@functools.lru_cache(maxsize=16)
def mel_matrix(
    *, bins: int, rate: int, mels: int, fmin: float, fmax: float
) -> np.ndarray:
    """Triangular mel filters [bins, mels], peak 1, over spectrum bins 0..rate/2.

    The HTK scale 1127 ln(1 + f/700), triangles linear in mel and the zero-frequency
    bin unused, as in `tf.signal.linear_to_mel_weight_matrix`.

    Raises:
      ValueError: an empty range of frequencies, or a filter that covers no bin.
    """
    if not 0.0 <= fmin < fmax <= rate / 2:
        raise ValueError(
            f"mel range must satisfy 0 <= fmin < fmax <= rate/2 = {rate / 2:g} Hz; "
            f"found fmin {fmin:g}, fmax {fmax:g}"
        )

    def mel(f: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(f, np.float64) / 700.0)

    edges = np.linspace(mel(fmin), mel(fmax), mels + 2)
    points = mel(np.linspace(0.0, rate / 2, bins))[:, None]
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    rise = (points - low[None]) / (peak - low)[None]
    fall = (high[None] - points) / (high - peak)[None]
    weights = np.maximum(0.0, np.minimum(rise, fall))
    weights[0] = 0.0
    empty = int((weights.sum(0) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {mels} mel bands between {fmin:g} and {fmax:g} Hz cover no "
            f"bin of a {bins}-bin spectrum at {rate} Hz; use fewer mels, a longer "
            "window or a higher fmin"
        )
    return weights


def log_mel(
    audio: jax.Array,
    *,
    rate: int,
    window: int,
    hop: int,
    mels: int = 80,
    fmin: float = 60.0,
    fmax: float = 7600.0,
    floor: float = 1e-5,
    mean: float = 0.0,
    std: float = 1.0,
) -> Float[Array, "b f m"]:
    """Log-mel spectrogram with s // hop frames.

    Frame i is centred on samples [i hop, (i+1) hop): the signal is padded with zeros
    by (window - hop)/2 on both sides. Periodic Hann window, magnitude spectrum of the
    next power of two, scaled so that a full-scale sine peaks at 1, mel sums,
    (log(mel + floor) - mean) / std. Constants, not statistics of the utterance.

    Args:
      audio: [b, s], float or int16.
      rate: samples per second.
      window: samples per frame.
      hop: samples between frames.
      mels: number of bands m between fmin and fmax, in Hz.
      floor: added before the logarithm; silence becomes (log(floor) - mean) / std.

    Raises:
      ValueError: window < hop, fewer samples than a hop, or impossible mel bands.
    """
    if window < hop:
        raise ValueError(f"window {window} must be at least hop {hop} samples")
    wave = waveform(audio)
    frames = wave.shape[1] // hop
    if frames == 0:
        raise ValueError(f"{wave.shape[1]} audio samples are shorter than hop {hop}")
    left = (window - hop) // 2
    need = (frames - 1) * hop + window
    right = max(need - left - wave.shape[1], 0)
    padded = jnp.pad(wave, ((0, 0), (left, right)))
    index = np.arange(frames)[:, None] * hop + np.arange(window)[None]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    size = 1 << (window - 1).bit_length()
    scaled = jnp.asarray(hann * (2.0 / hann.sum()), jnp.float32)
    cut = jnp.take(padded, jnp.asarray(index), axis=1) * scaled[None, None]
    spectrum = collectives.by_row(lambda x: jnp.abs(jnp.fft.rfft(x, n=size)), cut)
    bank = mel_matrix(bins=size // 2 + 1, rate=rate, mels=mels, fmin=fmin, fmax=fmax)
    bands = jnp.dot(
        spectrum, jnp.asarray(bank, jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (jnp.log(bands + floor) - mean) / std
