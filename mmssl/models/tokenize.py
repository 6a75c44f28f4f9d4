"""From raw media on the device to tokens with positions; no parameters.

Geometry is checked once, when a tokenizer is constructed; shapes again when it meets
media. Everything is row-wise, and an absent row (zeros) stays finite.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mmssl import types
from mmssl.models import logmel


def _divides(what: str, size: int, step: int) -> None:
    if size % step or size < step:
        near = sorted({max(size // step, 1) * step, (size // step + 1) * step})
        raise ValueError(
            f"{what} {size} is not a positive multiple of {step}; nearest valid: "
            f"{', '.join(map(str, near))}"
        )


def _grid(grid: tuple[int, ...], rows: int) -> Int[Array, "b t r"]:
    """Coordinates of every cell of a grid in row-major order, for each row."""
    cells = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    flat = jnp.asarray(cells.reshape(-1, len(grid)), jnp.int32)
    return jnp.broadcast_to(flat[None], (rows, *flat.shape))


def video_patches(
    video: jax.Array, *, patch: tuple[int, int, int]
) -> Float[Array, "b t c"]:
    """Tubelets of pixels in [-1, 1].

    Args:
      video: [b, f, h, w, 3], uint8 in [0, 255] or float in [0, 1].
      patch: frames, rows and columns of a tubelet (VATT: 4, 16, 16).

    Returns:
      [b, (f/pt)(h/ph)(w/pw), pt*ph*pw*3], tokens in order (time, row, column), each
      token's pixels in order (frame, row, column, channel).

    Raises:
      ValueError: a size that its patch does not divide.
    """
    b, f, h, w, c = video.shape
    pt, ph, pw = patch
    for what, size, step in (("frames", f, pt), ("height", h, ph), ("width", w, pw)):
        _divides(f"video {what}", size, step)
    x = video.reshape(b, f // pt, pt, h // ph, ph, w // pw, pw, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(b, -1, pt * ph * pw * c)
    # Moving bytes first: the permutation runs on uint8, a quarter of float32.
    scale = 2.0 / 255.0 if video.dtype == jnp.uint8 else 2.0
    return x.astype(jnp.float32) * scale - 1.0


def motion(
    tokens: Float[Array, "b t c"], *, grid: tuple[int, ...], frames: int
) -> Float[Array, "b t c"]:
    """Takes from every pixel its mean over the clip, then scales the clip to unit RMS.

    What never moves becomes zero: where one camera and one face fill all clips, a still
    picture tells which clip it is and nothing about its sound, and contrast learns it
    by heart. Row-wise; a clip without motion (or an absent one) stays zero.

    Args:
      tokens: of `video_patches`, none dropped.
      grid: tokens in time, rows, columns.
      frames: of a tubelet.
    """
    b, t, c = tokens.shape
    x = tokens.reshape(b, grid[0], t // grid[0], frames, c // frames)
    x = x - x.mean((1, 3), keepdims=True)
    power = (x * x).mean((1, 2, 3, 4), keepdims=True)
    # Half a grey level: below it there is only the codec's noise.
    return (x * jax.lax.rsqrt(power + 0.004**2)).reshape(b, t, c)


def wave_patches(audio: jax.Array, *, patch: int = 128) -> Float[Array, "b t c"]:
    """Waveform [b, s], float or int16 -> [b, s/patch, patch] (VATT: patch 128).

    Raises:
      ValueError: a length that the patch does not divide.
    """
    _divides("audio samples", audio.shape[1], patch)
    return logmel.waveform(audio).reshape(audio.shape[0], -1, patch)


def log_mel_patches(
    audio: jax.Array, *, patch: tuple[int, int], **options: float
) -> Float[Array, "b t c"]:
    """Patches of (frames, mels) of `logmel.log_mel`, in order (time, band).

    Args:
      audio: [b, s].
      patch: frames and bands of a patch (VATT's ablation: 16 frames, 5 bands).
      **options: keyword arguments of `logmel.log_mel`.

    Raises:
      ValueError: frames or mels that the patch does not divide.
    """
    spectrum = logmel.log_mel(audio, **options)  # pyright: ignore[reportArgumentType]
    b, frames, mels = spectrum.shape
    pf, pm = patch
    _divides("log-mel frames (samples // hop)", frames, pf)
    _divides("mels", mels, pm)
    x = spectrum.reshape(b, frames // pf, pf, mels // pm, pm).transpose(0, 1, 3, 2, 4)
    return x.reshape(b, -1, pf * pm)


def drop_tokens(
    mb: types.ModalityBatch, *, key: Key[Array, ""], keep: int, per_sample: bool
) -> types.ModalityBatch:
    """DropToken: a random subset of tokens, without replacement, in their order.

    Args:
      mb: continuous tokens [b, t, c].
      key: the source of the choice.
      keep: tokens kept, 1 to t.
      per_sample: one choice per sample; False = one for the whole call (official).

    Raises:
      ValueError: keep out of range.
    """
    rows, tokens = mb.tokens.shape[:2]
    if not 1 <= keep <= tokens:
        raise ValueError(f"DropToken must keep 1 to {tokens} tokens; found {keep}")

    def choose(k: Key[Array, ""]) -> Int[Array, "keep"]:
        return jnp.sort(jax.random.permutation(k, tokens)[:keep])

    if per_sample:
        index = jax.vmap(choose)(jax.random.split(key, rows))
        pick = functools.partial(jnp.take_along_axis, axis=1)
        return dataclasses.replace(
            mb,
            tokens=pick(mb.tokens, index[:, :, None]),
            positions=pick(mb.positions, index[:, :, None]),
            valid=pick(mb.valid, index),
        )
    index = choose(key)
    take = functools.partial(jnp.take, indices=index, axis=1)
    return dataclasses.replace(
        mb, tokens=take(mb.tokens), positions=take(mb.positions), valid=take(mb.valid)
    )


def _expect(what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(
            f"{what}: the model was built for {expected} per sample, found {found}"
        )


def _continuous(
    tokens: jax.Array, grid: tuple[int, ...], present: Bool[Array, "b"]
) -> types.ModalityBatch:
    rows, count = tokens.shape[:2]
    return types.ModalityBatch(
        tokens=tokens,
        positions=_grid(grid, rows),
        valid=jnp.broadcast_to(present[:, None], (rows, count)),
        present=present,
    )


@dataclasses.dataclass(frozen=True)
class VideoTokenizer:
    """Clips [b, frames, *size, 3] to tubelets.

    Attributes:
      frames: frames per clip.
      size: height and width in pixels.
      patch: frames, rows and columns of a tubelet.
      motion: tokens of what moves only; see `motion`. False: pixels (official).
    """

    frames: int
    size: tuple[int, int]
    patch: tuple[int, int, int] = (4, 16, 16)
    motion: bool = False

    axes = ("time", "row", "column")

    @property
    def spec(self) -> types.ModalitySpec:
        shape = (self.frames, *self.size)
        names = ("video frames", "video height", "video width")
        for what, size, step in zip(names, shape, self.patch, strict=True):
            _divides(what, size, step)
        grid = tuple(n // p for n, p in zip(shape, self.patch, strict=True))
        return types.ModalitySpec(grid=grid, channels=math.prod(self.patch) * 3)

    def __call__(
        self, media: jax.Array, present: Bool[Array, "b"]
    ) -> types.ModalityBatch:
        _expect("video", media.shape[1:], (self.frames, *self.size, 3))
        tokens, grid = video_patches(media, patch=self.patch), self.spec.grid
        if self.motion:
            tokens = motion(tokens, grid=grid, frames=self.patch[0])
        return _continuous(tokens, grid, present)


@dataclasses.dataclass(frozen=True)
class WaveTokenizer:
    """Waveforms [b, samples] to patches of `patch` samples.

    `rate` (samples per second) documents the input; patches don't depend on it.
    """

    samples: int
    rate: int
    patch: int = 128

    axes = ("time",)

    @property
    def spec(self) -> types.ModalitySpec:
        _divides("audio samples", self.samples, self.patch)
        return types.ModalitySpec((self.samples // self.patch,), channels=self.patch)

    def __call__(
        self, media: jax.Array, present: Bool[Array, "b"]
    ) -> types.ModalityBatch:
        _expect("audio", media.shape[1:], (self.samples,))
        tokens = wave_patches(media, patch=self.patch)
        return _continuous(tokens, self.spec.grid, present)


@dataclasses.dataclass(frozen=True)
class LogMelTokenizer:
    """Waveforms [b, samples] to log-mel patches; see `logmel.log_mel` for the options.

    Attributes:
      window: samples per frame; None = 42 ms (VATT's ablation).
      hop: samples between frames; None = 21 ms.
      fmax: None = the lower of 7600 Hz and rate/2.
      mean: subtracted from the log; the default centres speech at full scale.
      std: divides after that.
    """

    samples: int
    rate: int
    patch: tuple[int, int] = (16, 5)
    window: int | None = None
    hop: int | None = None
    mels: int = 80
    fmin: float = 60.0
    fmax: float | None = None
    floor: float = 1e-5
    mean: float = -7.0
    std: float = 2.0

    axes = ("time", "band")

    @property
    def options(self) -> dict[str, float]:
        fmax = min(7600.0, self.rate / 2) if self.fmax is None else self.fmax
        return {
            "rate": self.rate,
            "window": self.window or round(0.042 * self.rate),
            "hop": self.hop or round(0.021 * self.rate),
            "mels": self.mels,
            "fmin": self.fmin,
            "fmax": fmax,
            "floor": self.floor,
            "mean": self.mean,
            "std": self.std,
        }

    @property
    def spec(self) -> types.ModalitySpec:
        hop, (pf, pm) = int(self.options["hop"]), self.patch
        if (self.samples // hop) % pf or self.samples < hop * pf:
            # Named in samples, what the caller sets; `_divides` alone counts frames.
            fit = max(self.samples // (hop * pf), 1) * hop * pf
            raise ValueError(
                f"audio samples {self.samples} make {self.samples // hop} log-mel "
                f"frames of hop {hop}, not a positive multiple of {pf}; nearest valid "
                f"samples: {fit}, {fit + hop * pf}"
            )
        _divides("mels", self.mels, pm)
        jax.eval_shape(
            functools.partial(logmel.log_mel, **self.options),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((1, self.samples), jnp.float32),
        )
        return types.ModalitySpec(
            (self.samples // hop // pf, self.mels // pm), channels=pf * pm
        )

    def __call__(
        self, media: jax.Array, present: Bool[Array, "b"]
    ) -> types.ModalityBatch:
        _expect("audio", media.shape[1:], (self.samples,))
        tokens = log_mel_patches(media, patch=self.patch, **self.options)
        return _continuous(tokens, self.spec.grid, present)


@dataclasses.dataclass(frozen=True)
class TextIds:
    """Ids [b, candidates, length] pass through; id 0 is padding.

    Attributes:
      vocab: number of ids.
      length: tokens per candidate, padding included.
      candidates: texts per sample.
    """

    vocab: int
    length: int
    candidates: int = 1

    axes = ("time",)

    @property
    def spec(self) -> types.ModalitySpec:
        for name in ("vocab", "length", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"text {name} must be at least 1, found {getattr(self, name)}"
                )
        return types.ModalitySpec(
            (self.length,), vocab=self.vocab, candidates=self.candidates
        )

    def __call__(
        self, media: jax.Array, present: Bool[Array, "b"]
    ) -> types.ModalityBatch:
        _expect("text", media.shape[1:], (self.candidates, self.length))
        ids = media.astype(jnp.int32)
        positions = jnp.arange(self.length, dtype=jnp.int32)[None, None, :, None]
        return types.ModalityBatch(
            tokens=ids,
            positions=jnp.broadcast_to(positions, (*ids.shape, 1)),
            valid=(ids != 0) & present[:, None, None],
            present=present,
        )


Tokenizer = VideoTokenizer | WaveTokenizer | LogMelTokenizer | TextIds
