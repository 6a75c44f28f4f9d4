"""An exported encoder: files, arrays or strings to embeddings."""

import concurrent.futures
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from mmssl.errors import UserError
from mmssl.export import forward, inputs, manifest, spaces, weights
from mmssl.export import program as program_lib

BATCH = 8
"""Rows per call of the compiled forward pass; fewer are padded, more are split."""


class Encoder:
    """Encodes one modality at a time. Made by `load`.

    Attributes:
      spaces: space -> the modalities that can be compared in it.
      default_spaces: modality -> the space used when none is named: the one with the
        most modalities, so that defaults can be compared where the heads allow it,
        else the first that has the modality.
      config: the export's config.json.
      program: the forward pass, for a `jit` of yours.
      widths: modality -> width of its pooled features.
    """

    def __init__(
        self,
        *,
        program: program_lib.Program,
        held: Any,
        config: Mapping[str, Any],
        tokenizer: Any = None,
        batch: int = BATCH,
    ) -> None:
        """Args:
        program: the forward pass.
        held: its arrays, like `program.abstract()`.
        config: what config.json holds.
        tokenizer: with `.encode(str) -> list[int]`; needed for text.
        batch: rows per compiled call.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, found {batch}")
        self.config, self.program = config, program
        self.widths = dict(program.model.widths)
        self.spaces = program.spaces
        self.default_spaces = spaces.defaults(self.spaces)
        self._held, self._batch, self._tokenizer = held, batch, tokenizer
        self._forward = jax.jit(program, static_argnums=0)
        workers = min(4, os.cpu_count() or 1)
        self._reader = inputs.MediaReader(config["preprocessing"], workers=workers)
        self._threads = workers

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoding processes; they also end with the program."""
        self._reader.close()

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.program.modalities

    @property
    def seconds(self) -> float:
        """Length of the window that is cut from a file."""
        return float(self.config["preprocessing"]["seconds"])

    @property
    def rate(self) -> int:
        """Of audio, in Hz."""
        return int(self._tokenizer_of("audio").rate)

    def encode_video(
        self, x: Any, *, space: str | None = None, pooled: bool = False
    ) -> Float32[np.ndarray, "b e"]:
        """Encodes video.

        Args:
          x: a file or a list of files (path or bytes): the centred window, frames by
            timestamps, centre crop; or uint8 RGB [f, h, w, 3], rows of it
            [b, f, h, w, 3], or a list of such: taken as the whole window, and made to
            fit as `inputs.fit_frames` says.
          space: a key of `spaces`; None = `default_spaces["video"]`.
          pooled: the backbone's features instead, not normalised.

        Returns:
          [b, e], of unit norm unless pooled.

        Raises:
          UserError: a file that cannot be decoded.
          ValueError: frames of another kind, an unknown space.
        """
        tokenizer = self._tokenizer_of("video")
        size = (int(tokenizer.size[0]), int(tokenizer.size[1]))

        def load(item: Any) -> np.ndarray:
            if inputs.is_file(item):
                return self._reader(item, "video")
            return inputs.fit_frames(item, count=tokenizer.frames, size=size)

        rows = inputs.items(x, dims=4, what="encode_video")
        return self._encode("video", rows, load, space=space, pooled=pooled)

    def encode_audio(
        self,
        x: Any,
        *,
        rate: int | None = None,
        space: str | None = None,
        pooled: bool = False,
    ) -> Float32[np.ndarray, "b e"]:
        """Encodes audio.

        Args:
          x: a file or a list of files (path or bytes): the centred window; or mono
            waves [s], [b, s] or a list of [s], float in [-1, 1] or integer PCM; see
            `inputs.fit_wave` for other lengths than the encoder's.
          rate: of the waves, in Hz; None = the encoder's own. Files know theirs.
          space: a key of `spaces`; None = `default_spaces["audio"]`.
          pooled: the backbone's features instead, not normalised.

        Returns:
          [b, e], of unit norm unless pooled.

        Raises:
          UserError: a file that cannot be decoded.
          ValueError: a wave that is empty or not finite, an unknown space.
        """
        tokenizer = self._tokenizer_of("audio")

        def load(item: Any) -> np.ndarray:
            if inputs.is_file(item):
                return self._reader(item, "audio")
            return inputs.fit_wave(
                item,
                rate=tokenizer.rate if rate is None else rate,
                target=tokenizer.rate,
                samples=tokenizer.samples,
            )

        rows = inputs.items(x, dims=1, what="encode_audio")
        return self._encode("audio", rows, load, space=space, pooled=pooled)

    def encode_text(
        self,
        x: str | Sequence[str],
        *,
        space: str | None = None,
        pooled: bool = False,
    ) -> Float32[np.ndarray, "b e"]:
        """Encodes strings.

        Args:
          x: a string or several; tokens past the encoder's length are cut off.
          space: a key of `spaces`; None = `default_spaces["text"]`.
          pooled: the backbone's features instead, not normalised.

        Returns:
          [b, e], of unit norm unless pooled.

        Raises:
          ValueError: a string without a token, an unknown space.
        """
        tokenizer = self._tokenizer_of("text")
        if self._tokenizer is None:
            raise UserError("encode_text: this export holds no tokenizer file")
        texts = [x] if isinstance(x, str) else list(x)
        if not texts:
            raise ValueError("encode_text: nothing to encode")
        ids = inputs.token_ids(texts, self._tokenizer, length=tokenizer.length)
        return self._encode("text", list(ids), np.asarray, space=space, pooled=pooled)

    def _tokenizer_of(self, modality: str) -> Any:
        if modality not in self.program.model.tokenizers:
            raise ValueError(
                f"this encoder has no {modality}; it has {', '.join(self.modalities)}"
            )
        return self.program.model.tokenizers[modality]

    def _encode(
        self,
        modality: str,
        rows: list[Any],
        load: Callable[[Any], np.ndarray],
        *,
        space: str | None,
        pooled: bool,
    ) -> Float32[np.ndarray, "b e"]:
        wanted = program_lib.POOLED
        if not pooled:
            wanted = spaces.choose(space, modality=modality, spaces=self.spaces)
        elif space is not None:
            raise ValueError("pooled features are in no space: leave space out")
        out = []
        with concurrent.futures.ThreadPoolExecutor(self._threads) as threads:
            for start in range(0, len(rows), self._batch):
                chunk = rows[start : start + self._batch]
                media = np.stack(list(threads.map(load, chunk)))
                out.append(self._outputs(modality, media)[wanted])
        return np.concatenate(out)

    def _outputs(self, modality: str, media: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs of at most `batch` rows, by name; see `Program`."""
        count = len(media)
        padding = [(0, self._batch - count)] + [(0, 0)] * (media.ndim - 1)
        full = self._forward(modality, self._held, jnp.asarray(np.pad(media, padding)))
        return {name: np.asarray(value)[:count] for name, value in full.items()}

    def fixed_outputs(self) -> dict[str, Float32[np.ndarray, "r e"]]:
        """`modality/space` and `modality/pooled` of the fixed input of `forward`."""
        out = {}
        for modality, tokenizer in self.program.model.tokenizers.items():
            rows = min(forward.ROWS, self._batch)
            media = forward.fixed_input(
                modality,
                self.program.media(modality, rows).shape,
                vocab=tokenizer.spec.vocab,
            )
            for space, value in self._outputs(modality, media).items():
                out[f"{modality}/{space}"] = value
        return out


def from_folder(folder: pathlib.Path, *, batch: int = BATCH) -> Encoder:
    """Builds the encoder of a folder whose hashes are taken as right.

    Raises:
      UserError: config.json and the weights do not fit, or its tokenizer is not in the
        folder.
    """
    config = json.loads((folder / "config.json").read_bytes())
    program = program_lib.build(config)
    arrays = weights.read(folder / "model.safetensors")
    held = weights.fit(arrays, program.abstract(), what=str(folder))
    tokenizer = None
    if config["tokenizer"] is not None:
        from mmssl.data import text

        name = config["tokenizer"]
        tokenizer = text.load_tokenizer(
            manifest.own_file(folder, name, entry="config.json tokenizer")
        )
    return Encoder(
        program=program, held=held, config=config, tokenizer=tokenizer, batch=batch
    )


def load(path: str | os.PathLike[str], *, batch: int = BATCH) -> Encoder:
    """Loads an export: hashes first, then weights by name, then a forward pass.

    Args:
      path: a folder that `mmssl export` has written.
      batch: rows per compiled call.

    Raises:
      UserError: a file that is missing, damaged or changed (the tensor is named);
        weights that do not fit the config (missing, unexpected, reshaped: listed) or
        are not finite; outputs on a fixed input that are not those of the exporter.
    """
    folder = pathlib.Path(path)
    entry = manifest.verify(folder)
    encoder = from_folder(folder, batch=batch)
    expected = weights.read(folder / "forward.safetensors")
    found = encoder.fixed_outputs()
    if batch < forward.ROWS:
        expected = {name: value[:batch] for name, value in expected.items()}
    tolerance = float(entry["forward"]["tolerance"])
    far = {
        name: gap
        for name, gap in forward.difference(found, expected).items()
        if not gap <= tolerance
    }
    if far:
        listed = ", ".join(f"{name} by {gap:.3g}" for name, gap in far.items())
        raise UserError(
            f"{folder}: on a fixed input this mmssl and jax {jax.__version__} compute "
            f"other embeddings than the exporter did ({entry['versions']}): {listed}, "
            f"allowed {tolerance}. Install those versions, or export again with these"
        )
    return encoder
