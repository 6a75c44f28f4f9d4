"""What a training config's view and model make of a record: one draw of it."""

import threading
from typing import Any

import jax
import numpy as np

from mmssl import streams
from mmssl.data import pipeline, records, render, survey, views
from mmssl.data.clips import Clip, ClipRequest
from mmssl.data.pool import DecodePool, Source
from mmssl.experiment import Experiment
from mmssl.models import colour, logmel, tokenize
from mmssl.report.draw import Draw

log_mel = jax.jit(
    logmel.log_mel,
    static_argnames=(
        "rate", "window", "hop", "mels", "fmin", "fmax", "floor", "mean", "std"
    ),
)  # fmt: skip
_jitter = jax.jit(colour.jitter)


class WatchedPool(DecodePool):
    """A pool that knows what the calling thread asked of it last."""

    _asked = threading.local()

    @property
    def last(self) -> ClipRequest | None:
        return getattr(self._asked, "request", None)

    def forget(self) -> None:
        self._asked.request = None

    def clip(self, src: Source, request: ClipRequest) -> Clip:
        self._asked.request = request
        return super().clip(src, request)


class Training:
    """What a config's training view and model make of a record.

    Args:
      experiment: of the config.
      pool: decodes.
      seed: of the draws.
    """

    def __init__(self, experiment: Experiment, pool: WatchedPool, seed: int) -> None:
        self._pool = pool
        self._seed = seed
        self._view = streams.make_view(experiment, pool, train=True)
        self._model = experiment.model
        self._key = jax.random.key(seed)
        prepare = self._model.prepare

        def positions(raw: Any, key: Any) -> Any:
            """Of the tokens that stay; the tokens themselves are never computed."""
            batch = prepare(raw, key=key)
            return {name: mb.positions for name, mb in batch.modalities.items()}

        self._positions = jax.jit(positions)

    def __call__(self, record: records.Record, index: int) -> Draw:
        self._pool.forget()
        example = self._view(record, np.random.default_rng([self._seed, index]))
        info, present = example["info"], example["present"]
        request = self._pool.last
        video = None if request is None else request.video
        box = None
        if video is not None and present.get("video"):
            stream = survey.known_probe(record)["video"]
            aspect = stream.get("aspect", 1.0)
            box = render.crop_box(video, stream["height"], stream["width"] * aspect)
        return Draw(
            start=info["start"],
            seconds=self._view.seconds,
            box=box,
            flipped=bool(video and video.flip),
            frames=self._frames(example) if present.get("video") else None,
            spectrum=self._spectrum(example) if present.get("audio") else None,
            kept=self._kept(example, index),
            texts=self._texts(example) if present.get("text") else [],
            faults=info["faults"],
        )

    def _frames(self, example: views.Example) -> np.ndarray:
        """One frame of each tubelet, the middle one."""
        tokenizer = self._model.tokenizers["video"]
        assert isinstance(tokenizer, tokenize.VideoTokenizer)
        frames, step = example["video"], tokenizer.patch[0]
        if "colour" in example:
            frames = _jitter(frames[None], example["colour"][None])[0]
        return np.asarray(frames)[step // 2 :: step]

    def _spectrum(self, example: views.Example) -> np.ndarray:
        tokenizer = self._model.tokenizers["audio"]
        if not isinstance(tokenizer, tokenize.LogMelTokenizer):
            assert self._view.audio is not None
            tokenizer = tokenize.LogMelTokenizer(
                samples=self._view.samples, rate=self._view.audio.rate
            )
        return np.asarray(log_mel(example["audio"][None], **tokenizer.options)[0])

    def _kept(self, example: views.Example, index: int) -> dict[str, np.ndarray]:
        """Modality to the grid of its tokens, True for those DropToken leaves."""
        raw = pipeline.collate([example]).raw
        # Where one choice holds for a whole batch, it is the same for every row.
        row = index if self._model.drop_per_sample else 0
        key = jax.random.fold_in(self._key, row)
        kept = {}
        for name, found in self._positions(raw, key).items():
            spec = self._model.specs[name]
            if spec.vocab or not example["present"][name]:
                continue
            kept[name] = np.zeros(spec.grid, bool)
            kept[name][tuple(np.asarray(found)[0].T)] = True
        return kept

    def _texts(self, example: views.Example) -> list[list[str]]:
        tokenizer = self._view.tokenizer
        assert tokenizer is not None
        return [tokenizer.pieces(ids) for ids in example["text"] if ids.any()]
