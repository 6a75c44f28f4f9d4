"""From one row of a dataset to what the page shows of it."""

import hashlib
import json
import math

import numpy as np

from mmssl.data import preview, records, survey, text
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from mmssl.report import dataset as page
from mmssl.report.clip import Clip
from mmssl.viewer import training as training_lib

_TEXTS = 5
_PIECES = 80
_META = 1000
# Frames of a strip, by the shape of the frames.
_STRIP_ASPECT, _STRIP_LEAST, _STRIP_MOST = 8.5, 3, 16


class Look:
    """From a row's index to its card; safe to call from many threads.

    Args:
      rows: of a dataset.
      pool: decodes.
      tokenizer: of the dataset; None: no tokens are shown.
      training: what a config makes of the rows, or None.
    """

    def __init__(
        self,
        rows: survey.Rows,
        pool: DecodePool,
        tokenizer: text.Tokenizer | None,
        training: training_lib.Training | None,
    ) -> None:
        self._rows = rows
        self._pool = pool
        self._tokenizer = tokenizer
        self._training = training

    def __call__(self, index: int) -> Clip:
        split, row = self._rows.place(index)
        place = f"{split}, row {row:,}"
        try:
            record = self._rows[index]
        except UserError as error:
            facts = {"cannot be read": str(error)}
            return Clip(index, place, place, faults={"row": "read"}, facts=facts)
        draw = None
        if self._training is not None:
            draw = self._training(record, index)
        middle = None if draw is None else draw.start + draw.seconds / 2
        shown = preview.preview(record, self._pool, around=middle)
        spectrum = None
        if shown.audio is not None:
            spectrum = _spectrum(shown.audio)
        return Clip(
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
    made = training_lib.log_mel(padded, rate=preview.RATE, window=4 * hop, hop=hop)
    return np.asarray(made[0, : max(1, len(audio) // hop)])


def _strip(frames: np.ndarray) -> np.ndarray:
    """As many of the frames as fill a strip, each the middle of its part."""
    _, height, width, _ = frames.shape
    count = round(_STRIP_ASPECT * height / width)
    count = min(max(count, _STRIP_LEAST), _STRIP_MOST, len(frames))
    return frames[((np.arange(count) + 0.5) / count * len(frames)).astype(int)]


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
