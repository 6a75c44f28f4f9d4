"""What users pass, files or arrays, to the media an encoder was trained on."""

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from mmssl.errors import UserError

File = str | os.PathLike[str] | bytes


def is_file(x: Any) -> bool:
    """A path, or the bytes of a media file."""
    return isinstance(x, str | os.PathLike | bytes)


def items(x: Any, *, dims: int, what: str) -> list[Any]:
    """One item per row: files, or arrays of `dims` dimensions.

    Args:
      x: a file, an array of `dims` (one item) or `dims` + 1 dimensions (rows), or a
        list of files and arrays.
      dims: dimensions of one item.
      what: the argument, for messages.

    Raises:
      ValueError: anything else, or nothing at all.
    """
    if is_file(x):
        return [x]
    if not isinstance(x, list | tuple):
        array = np.asarray(x)
        rows = [array] if array.ndim == dims else list(array)
        if array.ndim not in (dims, dims + 1):
            raise ValueError(
                f"{what}: expected files, or an array of {dims} dimensions (one item) "
                f"or {dims + 1} (rows), found shape {array.shape}"
            )
    else:
        rows = [one if is_file(one) else np.asarray(one) for one in x]
        for i, one in enumerate(rows):
            if not is_file(one) and one.ndim != dims:
                raise ValueError(
                    f"{what}: item {i} of the list: expected a file or an array of "
                    f"{dims} dimensions, found shape {one.shape}"
                )
    if not rows:
        raise ValueError(f"{what}: nothing to encode")
    return rows


def _triangle(old: int, new: int) -> np.ndarray:
    """[new, old] weights of linear resampling, widened when shrinking."""
    scale = old / new
    width = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(old)[None, :] - centres[:, None]) / width
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def fit_frames(
    frames: UInt8[np.ndarray, "f0 h0 w0 3"], *, count: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames of any number and size to the encoder's.

    Exactly fitting frames come back untouched. Otherwise `count` frames are taken at
    evenly spaced places (repeated if there are fewer), the largest centred box of the
    aspect of `size` is cut out, and scaled linearly with antialiasing.

    Raises:
      ValueError: not uint8 RGB, or empty.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            "encode_video: expected uint8 RGB frames [f, h, w, 3], found "
            f"{frames.dtype} {frames.shape}; scale floats to 0..255 and cast"
        )
    if not frames.size:
        raise ValueError(f"encode_video: no pixels in shape {frames.shape}")
    total, height, width = frames.shape[:3]
    if total != count:
        places = (np.arange(count) + 0.5) * total / count - 0.5
        frames = frames[np.clip(places.round().astype(int), 0, total - 1)]
    if (height, width) == size:
        return frames
    aspect = size[1] / size[0]
    high = min(height, max(1, round(width / aspect)))
    wide = min(width, max(1, round(height * aspect)))
    top, left = (height - high) // 2, (width - wide) // 2
    box = frames[:, top : top + high, left : left + wide].astype(np.float32)
    rows, columns = _triangle(high, size[0]), _triangle(wide, size[1])
    box = np.einsum("hy,fyxc->fhxc", rows, box)
    box = np.einsum("wx,fhxc->fhwc", columns, box)
    return np.clip(box.round(), 0, 255).astype(np.uint8)


def fit_wave(
    wave: np.ndarray, *, rate: int, target: int, samples: int
) -> Float32[np.ndarray, "s"]:
    """A mono wave at any rate to `samples` at `target` Hz.

    Integers are scaled to [-1, 1). Longer waves give their centre, shorter ones are
    followed by silence.

    Raises:
      ValueError: empty, or not finite.
    """
    if wave.dtype.kind in "iu":
        wide = np.iinfo(wave.dtype)
        wave = wave.astype(np.float32) - (0 if wide.min < 0 else wide.max // 2 + 1)
        wave = wave / (float(wide.max // 2 + 1) if wide.min == 0 else -float(wide.min))
    wave = np.asarray(wave, np.float32)
    if not len(wave) or not np.isfinite(wave).all():
        raise ValueError(
            f"encode_audio: a wave of {len(wave)} samples that is empty or not finite"
        )
    if rate != target:
        import soxr

        wave = np.asarray(soxr.resample(wave, rate, target, quality="HQ"), np.float32)
    start = max(0, (len(wave) - samples) // 2)
    wave = np.clip(wave[start : start + samples], -1, 1)
    return np.pad(wave, (0, samples - len(wave)))


def token_ids(
    texts: Sequence[str], tokenizer: Any, *, length: int
) -> Int32[np.ndarray, "b t"]:
    """Ids, cut at `length` or followed by padding (0).

    Raises:
      ValueError: a text without a token.
    """
    out = np.zeros((len(texts), length), np.int32)
    for row, text in zip(out, texts, strict=True):
        ids = tokenizer.encode(text)[:length]
        if not ids:
            raise ValueError(f"encode_text: no tokens in {text!r}")
        row[: len(ids)] = ids
    return out


class MediaReader:
    """Decodes files in guarded worker processes, started when first needed.

    The window and the geometry are those of `data.views.View` in evaluation.
    """

    def __init__(self, preprocessing: Mapping[str, Any], *, workers: int) -> None:
        """Args:
        preprocessing: `seconds`, and the views' keyword arguments by modality.
        workers: decoding processes.
        """
        self._settings = preprocessing
        self._workers = workers
        self._stack = contextlib.ExitStack()
        self._views: dict[str, Any] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends the workers; the next file starts new ones."""
        with self._lock:
            self._stack.close()
            self._views = {}

    def _view(self, modality: str) -> Any:
        from mmssl.data import pool, views

        with self._lock:
            if not self._views:
                made = pool.DecodePool(self._workers, pool.Limits())
                decoders = self._stack.enter_context(made)
                for kind in ("video", "audio"):
                    if self._settings.get(kind) is None:
                        continue
                    wanted: Any = {kind: _tuples(self._settings[kind])}
                    self._views[kind] = views.View(
                        decoders,
                        seconds=self._settings["seconds"],
                        train=False,
                        **wanted,
                    )
            return self._views[modality]

    def __call__(self, file: File, modality: str) -> np.ndarray:
        """The centred window: video [f, h, w, 3] uint8, or audio [s] float32.

        Raises:
          UserError: it cannot be decoded, or lacks the modality.
        """
        from mmssl.data.faults import FAULTS
        from mmssl.data.records import Record

        media: Any = file if isinstance(file, bytes) else os.fspath(file)
        record = Record(
            id="", media=media, media_name="", segments=(), words=(), labels={}, meta={}
        )
        example = self._view(modality)(record)
        if not example["present"][modality]:
            faults = dict.fromkeys(example["info"]["faults"])
            why = "; ".join(f"{fault} ({FAULTS[fault]})" for fault in faults)
            raise UserError(f"{name(file)}: no {modality} decoded: {why or 'has none'}")
        return example[modality]


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def name(file: File) -> str:
    """What to call a file in a message."""
    if isinstance(file, bytes):
        return f"media of {len(file):,} bytes"
    return str(os.fspath(file))
