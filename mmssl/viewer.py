"""`mmssl data view`: a dataset's summary and some of its clips, as one HTML page."""

import hashlib
import json
import math
import os
import pathlib
import threading
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from mmssl import config as config_lib
from mmssl import streams
from mmssl.data import pipeline, preview, records, render, survey, text, views
from mmssl.data.clips import Clip, ClipRequest
from mmssl.data.faults import FAULTS, Limits
from mmssl.data.intake import Progress
from mmssl.data.pool import DecodePool, Source
from mmssl.errors import UserError
from mmssl.experiment import TOKENIZER_FILES, Experiment
from mmssl.models import logmel, tokenize
from mmssl.report import dataset as page
from mmssl.report.clip import Clip as Card
from mmssl.report.draw import Draw

_TEXTS = 5
_PIECES = 80
_META = 1000
# Frames of a strip, by the shape of the frames.
_STRIP_ASPECT, _STRIP_LEAST, _STRIP_MOST = 8.5, 3, 16

_log_mel = jax.jit(
    logmel.log_mel,
    static_argnames=(
        "rate", "window", "hop", "mels", "fmin", "fmax", "floor", "mean", "std"
    ),
)  # fmt: skip


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


def view_dataset(
    path: str,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    samples: int = 24,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Writes a page that opens offline.

    Time, memory and the size of the page depend on `samples`, not on the dataset: what
    is said of the whole comes from its metadata and the build's report, and from at
    most 500 rows, evenly spread.

    Args:
      path: the dataset's folder.
      out: an .html file; replaced if it is there. About 0.8 MB a sample at most.
      split: a split or a TFDS slice of one; None: all of them.
      samples: rows to show; a quarter of them are rows with faults if there are so
        many among those looked at, the others are evenly spaced.
      config: a resolved training config, whose view and model show what they make of
        the samples.
      seed: of the training view's draws; another one takes other rows, too.
      workers: decoding processes; None: one per core.
      progress: called with (done, total, "decoding").

    Raises:
      UserError: no dataset, split or tokenizer there, a mistyped config, or `out` is
        no .html file in a folder that is there.
    """
    out = pathlib.Path(out)
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"{out}: expected the name of a file that ends in .html")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no such folder: {out.absolute().parent}; make it")
    rows = survey.Rows(path, split)
    found = survey.survey(rows)
    even = survey.evenly(len(rows), samples, seed=seed)
    wanted = survey.chosen(found.faulty, even, samples)
    limits = None
    experiment = None
    if config is not None:
        data = {**config["data"], "path": path}
        experiment = Experiment({**config, "data": data})
        limits = config_lib.build(Limits, "data.limits", **(data.get("limits") or {}))
    cards: list[Card] = []
    with WatchedPool(workers, limits) as pool:
        look = _Look(rows, pool, _tokenizer(path), experiment, seed)
        executor = futures.ThreadPoolExecutor(pool.workers)
        try:
            for made in executor.map(look, wanted):
                cards.append(made)
                if progress:
                    progress(len(cards), len(wanted), "decoding")
        finally:
            executor.shutdown(cancel_futures=True)
    name = pathlib.Path(os.path.abspath(path)).name
    summary = summarize(path, name, rows, found)
    drawn = "" if experiment is None else f"one draw of the training view (seed {seed})"
    page.write_dataset(out, summary, cards, view=drawn)
    return out


def _tokenizer(path: str) -> text.Tokenizer | None:
    """The one beside the dataset, if there is one."""
    files = [pathlib.Path(path) / name for name in TOKENIZER_FILES]
    there = next((file for file in files if file.is_file()), None)
    return None if there is None else text.load_tokenizer(there)


class _Look:
    """From a row's index to its card; safe to call from many threads."""

    def __init__(
        self,
        rows: survey.Rows,
        pool: WatchedPool,
        tokenizer: text.Tokenizer | None,
        experiment: Experiment | None,
        seed: int,
    ) -> None:
        self._rows = rows
        self._pool = pool
        self._tokenizer = tokenizer
        self._training = None
        if experiment is not None:
            self._training = _Training(experiment, pool, seed)

    def __call__(self, index: int) -> Card:
        split, row = self._rows.place(index)
        place = f"{split}, row {row:,}"
        try:
            record = self._rows[index]
        except UserError as error:
            facts = {"cannot be read": str(error)}
            return Card(index, place, place, faults={"row": "read"}, facts=facts)
        draw = None
        if self._training is not None:
            draw = self._training(record, index)
        middle = None if draw is None else draw.start + draw.seconds / 2
        shown = preview.preview(record, self._pool, around=middle)
        spectrum = None
        if shown.audio is not None:
            spectrum = _spectrum(shown.audio)
        return Card(
            index=index,
            place=place,
            id=record.id,
            start=shown.start,
            end=shown.end,
            duration=float(survey.known_probe(record).get("duration") or 0.0),
            frames=None if shown.frames is None else _strip(shown.frames),
            audio=shown.audio,
            spectrum=spectrum,
            mp4=shown.mp4(),
            segments=[(s.start, s.end, s.text) for s in record.segments],
            words=[(w.start, w.end, w.word) for w in record.words],
            texts=self._texts(record, shown),
            labels={name: label for name, label in record.labels.items() if label},
            faults={**survey.faults_of(record), **shown.faults},
            notes=_notes(record),
            facts=_facts(record),
            draw=draw,
        )

    def _texts(self, record: records.Record, shown: preview.Preview) -> list[list[str]]:
        if self._tokenizer is None:
            return []
        near = [
            s.text
            for s in record.segments
            if math.isnan(s.start) or (s.start <= shown.end and s.end >= shown.start)
        ]
        if not record.segments:
            near = survey.texts_of(record)
        return [
            self._tokenizer.pieces(self._tokenizer.encode(one)[:_PIECES])
            for one in near[:_TEXTS]
        ]


def _spectrum(audio: np.ndarray) -> np.ndarray:
    """Of at most `preview.SECONDS` of sound, padded so that it compiles once."""
    hop = round(0.01 * preview.RATE)
    padded = np.zeros((1, round(preview.SECONDS * preview.RATE)), np.float32)
    padded[0, : len(audio)] = audio[: padded.shape[1]]
    made = _log_mel(padded, rate=preview.RATE, window=4 * hop, hop=hop)
    return np.asarray(made[0, : max(1, len(audio) // hop)])


def _strip(frames: np.ndarray) -> np.ndarray:
    """As many of the frames as fill a strip, each the middle of its part."""
    _, height, width, _ = frames.shape
    count = round(_STRIP_ASPECT * height / width)
    count = min(max(count, _STRIP_LEAST), _STRIP_MOST, len(frames))
    return frames[((np.arange(count) + 0.5) / count * len(frames)).astype(int)]


class _Training:
    """What a config's training view and model make of a record."""

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
        step = getattr(self._model.tokenizers["video"], "patch", (1,))[0]
        return example["video"][step // 2 :: step]

    def _spectrum(self, example: views.Example) -> np.ndarray:
        tokenizer = self._model.tokenizers["audio"]
        if not isinstance(tokenizer, tokenize.LogMelTokenizer):
            assert self._view.audio is not None
            tokenizer = tokenize.LogMelTokenizer(
                samples=self._view.samples, rate=self._view.audio.rate
            )
        return np.asarray(_log_mel(example["audio"][None], **tokenizer.options)[0])

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


def _notes(record: records.Record) -> list[str]:
    """What a look at the pictures alone might miss."""
    probe = survey.known_probe(record)
    notes = []
    if (probe.get("video") or {}).get("black"):
        notes.append("video is black")
    if (probe.get("audio") or {}).get("silent"):
        notes.append("audio is silent")
    if swapped := record.meta.get("swapped"):
        notes.append(f"{swapped} swapped on purpose")
    return notes


def _facts(record: records.Record) -> dict[str, str]:
    """Of the row's file, for people."""
    probe = survey.known_probe(record)
    facts = {"file": record.media_name}
    if record.media:
        known = record.meta.get("sha256")
        facts["SHA-256"] = str(known or hashlib.sha256(record.media).hexdigest())
        facts["size"] = page.size(len(record.media))
        facts["container"] = str(probe.get("format") or "")
    if video := probe.get("video"):
        parts = [f"{video['width']} × {video['height']}"]
        parts += [f"{video['fps']:.4g} fps", f"{video['frames']:,} frames"]
        if turns := video.get("rotation"):
            parts.append(f"turned by {90 * turns}°")
        facts["video"] = ", ".join(parts)
    if audio := probe.get("audio"):
        parts = [f"{audio['rate']:,} Hz", f"{audio['channels']} channels"]
        facts["audio"] = ", ".join(parts)
    known = {"probe", "sha256"} if record.media else set()
    extra = {
        k: v for k, v in record.meta.items() if k not in known and v not in ("", None)
    }
    if extra:
        facts["meta"] = json.dumps(extra, ensure_ascii=False)[:_META]
    return facts


def summarize(
    path: str, name: str, rows: survey.Rows, found: survey.Survey
) -> page.Summary:
    """A dataset's own words about itself, and what a survey of its rows found."""
    metadata, report = records.read_metadata(path), survey.read_report(path)
    numbers, counts = found.numbers, found.counts
    seconds, size = report.get("duration_seconds"), report.get("bytes")
    return page.Summary(
        name=name,
        path=path,
        rows=sum(metadata["splits"].values()),
        listed=report.get("rows", len(rows)),
        hours=None if seconds is None else seconds / 3600,
        bytes=size,
        splits=metadata["splits"],
        modalities=report.get("modalities", {}),
        labels=report.get("labels", {}),
        coverage=(metadata.get("dataset") or {}).get("coverage", {}),
        faults=_faults(report),
        details=report.get("details", {}),
        surveyed=found.rows,
        numbers={
            "Duration": ("s", numbers["duration"]),
            "Shorter side": ("px", numbers["size"]),
            "Frame rate": ("fps", np.round(numbers["fps"], 2).tolist()),
            "Sample rate": ("kHz", [rate / 1000 for rate in numbers["rate"]]),
            "Words of text": ("", numbers["words"]),
            "File size": ("kB", [count / 1000 for count in numbers["bytes"]]),
        },
        tallies={
            "Resolution": counts["resolution"],
            "Sound": counts["audio"],
            "Container": counts["container"],
            "Script of a text": counts["script"],
            "Missing or empty": counts["missing"],
            "Fault": counts["fault"],
        },
    )


def _faults(report: Mapping[str, Any]) -> list[page.Fault]:
    """Of a build: files left out, then those used in part."""
    found = []
    for counts, files, used in (
        ("faults", "files", False),
        ("partial", "partial_files", True),
    ):
        for name, count in (report.get(counts) or {}).items():
            names = list((report.get(files) or {}).get(name, ()))
            names = list(dict.fromkeys(names))[: page.FILES_SHOWN]
            found.append(page.Fault(name, _meaning(name), count, names, used))
    return found


def _meaning(name: str) -> str:
    """Of `corrupt`, `audio_corrupt` or `caption`."""
    modality, _, rest = name.partition("_")
    if name in FAULTS:
        return FAULTS[name]
    if rest in FAULTS:
        return f"{modality}: {FAULTS[rest]}"
    return "the file of its text cannot be read" if name == "caption" else ""
