"""An exported encoder: files, arrays or strings to embeddings."""

import concurrent.futures
import functools
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

from mmssl import models
from mmssl.errors import UserError
from mmssl.export import architecture, forward, inputs, manifest, spaces, weights
from mmssl.types import RawBatch

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
      widths: modality -> width of its pooled features.
    """

    def __init__(
        self,
        *,
        model: models.Model,
        params: Any,
        heads: Mapping[str, tuple[models.Heads, Any, Any]],
        config: Mapping[str, Any],
        tokenizer: Any = None,
        batch: int = BATCH,
    ) -> None:
        """Args:
        model: built for one text candidate per row.
        params: its parameters.
        heads: by objective: (heads, parameters, state).
        config: what config.json holds.
        tokenizer: with `.encode(str) -> list[int]`; needed for text.
        batch: rows per compiled call.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, found {batch}")
        self.config = config
        self.widths = dict(model.widths)
        self._model, self._batch, self._tokenizer = model, batch, tokenizer
        self._heads = {name: head for name, (head, _, _) in heads.items()}
        self._weights = {
            "model": params,
            "heads": {
                name: {"params": head_params, "state": state}
                for name, (_, head_params, state) in heads.items()
            },
        }
        self._places = spaces.places(self._heads)
        self.spaces = {
            space: self._heads[objective].spaces[inner]
            for space, (objective, inner) in self._places.items()
        }
        self.default_spaces = spaces.defaults(self.spaces)
        self._forward = jax.jit(self._encoded, static_argnums=0)
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
        return tuple(self._model.tokenizers)

    @property
    def architecture(self) -> dict[str, Any]:
        """See `architecture.describe`."""
        return architecture.describe(self._model, self._heads)

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

        def load(row: np.ndarray) -> np.ndarray:
            return row[None]

        return self._encode("text", list(ids), load, space=space, pooled=pooled)

    def _tokenizer_of(self, modality: str) -> Any:
        if modality not in self._model.tokenizers:
            raise ValueError(
                f"this encoder has no {modality}; it has {', '.join(self.modalities)}"
            )
        return self._model.tokenizers[modality]

    def _encode(
        self,
        modality: str,
        rows: list[Any],
        load: Callable[[Any], np.ndarray],
        *,
        space: str | None,
        pooled: bool,
    ) -> Float32[np.ndarray, "b e"]:
        wanted = ""
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
        """All outputs of at most `batch` rows: "" = pooled, and every space."""
        count = len(media)
        padding = [(0, self._batch - count)] + [(0, 0)] * (media.ndim - 1)
        full = self._forward(
            modality, self._weights, jnp.asarray(np.pad(media, padding))
        )
        return {name: np.asarray(value)[:count] for name, value in full.items()}

    def _encoded(
        self, modality: str, held: Any, media: jax.Array
    ) -> dict[str, jax.Array]:
        rows = media.shape[0]
        present = {modality: jnp.ones(rows, bool)}
        raw = RawBatch(
            media={modality: media},
            present=present,
            example_id=jnp.zeros(rows, jnp.uint32),
        )
        batch = self._model.prepare(raw)
        pooled = self._model.encode(held["model"], batch).pooled[modality]
        if pooled.ndim == 3:  # text: one candidate
            pooled = pooled[:, 0]
        pooled = pooled.astype(jnp.float32)
        out = {"": pooled}
        # The other modalities are there as absent rows, as in a training batch.
        every = {m: jnp.zeros((rows, w)) for m, w in self.widths.items()}
        masks = {m: jnp.full(rows, m == modality) for m in every}
        every[modality] = pooled
        for objective, head in self._heads.items():
            own = held["heads"][objective]
            found, _ = head.apply(
                own["params"], own["state"], every, masks, train=False
            )
            for space, (owner, inner) in self._places.items():
                if owner == objective and modality in found.get(inner, {}):
                    out[space] = _unit(found[inner][modality])
        return out

    def fixed_outputs(self) -> dict[str, Float32[np.ndarray, "r e"]]:
        """`modality/space` and `modality/pooled` of the fixed input of `forward`."""
        out = {}
        for modality, tokenizer in self._model.tokenizers.items():
            spec: Any = tokenizer
            shapes = {
                "video": lambda s: (s.frames, *s.size, 3),
                "audio": lambda s: (s.samples,),
                "text": lambda s: (1, s.length),
            }
            media = forward.fixed_input(
                modality,
                (min(forward.ROWS, self._batch), *shapes[modality](spec)),
                vocab=spec.vocab if modality == "text" else 0,
            )
            for space, value in self._outputs(modality, media).items():
                out[f"{modality}/{space or 'pooled'}"] = value
        return out


def _unit(x: jax.Array) -> jax.Array:
    norm = jnp.sqrt((x * x).sum(-1, keepdims=True))
    return x / jnp.maximum(norm, 1e-12)


def from_folder(folder: pathlib.Path, *, batch: int = BATCH) -> Encoder:
    """Builds the encoder of a folder whose hashes are taken as right.

    Raises:
      UserError: config.json and the weights do not fit, or its tokenizer is not in the
        folder.
    """
    config = json.loads((folder / "config.json").read_bytes())
    kwargs = dict(config["model"])
    if kwargs.get("text") is not None:
        # Strings are encoded one by one; parameters do not depend on candidates.
        kwargs["text"] = {**kwargs["text"], "candidates": 1}
    model = models.build_model(**kwargs)
    heads = {name: models.build_heads(**kw) for name, kw in config["heads"].items()}
    arrays = weights.read(folder / "model.safetensors")
    held = weights.fit(arrays, _abstract(model, heads), what=str(folder))
    tokenizer = None
    if config["tokenizer"] is not None:
        from mmssl.data import text

        name = config["tokenizer"]
        tokenizer = text.load_tokenizer(
            manifest.own_file(folder, name, entry="config.json tokenizer")
        )
    return Encoder(
        model=model,
        params=held["model"],
        heads={
            name: (head, held["heads"][name]["params"], held["heads"][name]["state"])
            for name, head in heads.items()
        },
        config=config,
        tokenizer=tokenizer,
        batch=batch,
    )


def _abstract(model: models.Model, heads: Mapping[str, models.Heads]) -> Any:
    """Shapes of everything model.safetensors must hold."""
    key = jax.random.key(0)

    def init(head: models.Heads) -> dict[str, Any]:
        params, state = head.init(key, model.widths)
        return {"params": params, "state": state}

    shapes: dict[str, Any] = {"model": jax.eval_shape(model.init, key)}
    shapes["heads"] = {
        name: jax.eval_shape(functools.partial(init, head))
        for name, head in heads.items()
    }
    return shapes


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
