"""The record: what one row of a built dataset holds, and the schema's version.

Owns the mapping between `Record` and the features that TFDS stores, and the metadata
file that every dataset carries. All features are stock TFDS features, so a dataset can
be read by code that does not import mmssl.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmssl.errors import UserError

SCHEMA_VERSION = 1
"""Version of the features below; a dataset of another version is refused."""

METADATA_FILE = "mmssl.json"
"""Schema version, label columns, coverage, the SHA-256 of every file of the dataset."""

REPORT_FILE = "build_report.json"
"""What the build used and left out."""

OUTCOMES = "outcomes"
"""Folder of what became of each row, a file for each shard; read by a later build."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A text with its time: seconds from the start of the media.

    Attributes:
      start: seconds, or NaN: the text belongs to the whole clip.
      end: seconds, >= start, or NaN together with start.
      text: never empty.
    """

    start: float
    end: float
    text: str

    @property
    def timed(self) -> bool:
        """False where the text belongs to the whole clip."""
        return not math.isnan(self.start)


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """One spoken word and its time in seconds."""

    start: float
    end: float
    word: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One clip: encoded media, its text with times, labels.

    Attributes:
      id: unique within a dataset.
      media: an encoded file: as it was, or stored anew; empty: a text-only row.
      media_name: the file's path as the manifest gave it; "" without media.
      segments: texts, ordered by start; untimed ones first.
      words: timed words, ordered by start.
      labels: column to class name; "" where the row has no such label. Every record
        of a dataset has the same columns.
      meta: JSON-able extras: the manifest row's `meta`; for media also `probe` (the
        build's complete decode, the fields of media.Probe, with the fault class of a
        modality that cannot be used) and `sha256` of the media; for media stored anew
        `source`: `sha256` of the file, `start` and `end` in it in seconds.
    """

    id: str
    media: bytes = b""
    media_name: str = ""
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def example_id(id: str) -> int:
    """The uint32 by which a batch knows a record: first 4 bytes of the id's SHA-256."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:4], "big")


def features(label_columns: Sequence[str]) -> Any:
    """The `tfds.features.FeaturesDict` of a dataset with these label columns.

    Encoded media is a scalar of bytes; texts are UTF-8; times are float32 seconds.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    columns: dict[str, Any] = {
        "id": text(),
        "media": tfds.features.Scalar(dtype=np.object_),
        "media_name": text(),
        "segments": tfds.features.Sequence(
            {"start": np.float32, "end": np.float32, "text": text()}
        ),
        "words": tfds.features.Sequence(
            {"start": np.float32, "end": np.float32, "word": text()}
        ),
        "meta": text(),
    }
    if label_columns:
        columns["labels"] = {name: text() for name in label_columns}
    return tfds.features.FeaturesDict(columns)


def _columns(items: Iterable[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    rows = list(items)
    return {name: [getattr(row, name) for row in rows] for name in names}


def to_example(record: Record) -> dict[str, Any]:
    """The values that `features` encodes; the inverse of `from_example`."""
    example: dict[str, Any] = {
        "id": record.id,
        "media": record.media,
        "media_name": record.media_name,
        "segments": _columns(record.segments, ("start", "end", "text")),
        "words": _columns(record.words, ("start", "end", "word")),
        "meta": json.dumps(record.meta, sort_keys=True),
    }
    if record.labels:
        example["labels"] = dict(record.labels)
    return example


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _timed(table: Mapping[str, Any], name: str) -> list[tuple[float, float, str]]:
    rows = zip(table["start"], table["end"], table[name], strict=True)
    return [(float(start), float(end), _text(text)) for start, end, text in rows]


def from_example(example: Mapping[str, Any]) -> Record:
    """A record from what a TFDS data source yields.

    Raises:
      KeyError, ValueError: the example does not have this schema.
    """
    return Record(
        id=_text(example["id"]),
        media=bytes(example["media"]),
        media_name=_text(example["media_name"]),
        segments=tuple(Segment(*row) for row in _timed(example["segments"], "text")),
        words=tuple(Word(*row) for row in _timed(example["words"], "word")),
        labels={k: _text(v) for k, v in example.get("labels", {}).items()},
        meta=json.loads(_text(example["meta"])),
    )


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether it names object storage, like `gs://bucket/data`."""
    return "://" in os.fspath(path)


def folder(path: str | os.PathLike[str]) -> Any:
    """The `etils.epath.Path` of a folder or bucket."""
    from etils import epath

    return epath.Path(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of the dataset in folder `path`, its schema version checked.

    Returns:
      `schema_version`, `label_columns` (list of str), `splits` {name: rows},
      `files` {file name: {"sha256", "bytes"}}, `dataset` {as in the manifest; absent
      where an older release built it}.

    Raises:
      UserError: no dataset there, an unreadable metadata file, or another schema
        version.
    """
    file = folder(path) / METADATA_FILE
    remedy = f"build one with `mmssl data build --manifest M.jsonl --out {path}`"
    try:
        if not file.is_file():
            there = file.parent.is_dir()
            state = f"no {METADATA_FILE}" if there else "no such folder"
            raise UserError(f"{path}: not a dataset of mmssl: {state} there; {remedy}")
        text = file.read_text()
    except ImportError as e:
        raise UserError(f"{path}: nothing here opens it: {e}") from e
    try:
        metadata = json.loads(text)
        found = metadata["schema_version"]
        if found == SCHEMA_VERSION:
            _ = metadata["label_columns"], metadata["splits"], metadata["files"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{file}: not readable as dataset metadata: {e!r}; {remedy}"
        ) from e
    if found != SCHEMA_VERSION:
        raise UserError(
            f"{file}: dataset schema version {found}, expected {SCHEMA_VERSION} (this "
            "release of mmssl); build the dataset again with this release, or install "
            "the release that built it"
        )
    return metadata


def coverage(path: str | os.PathLike[str], split: str) -> dict[str, int | None] | None:
    """How much of a public data set's split the dataset in folder `path` has.

    Returns:
      `listed` and `found` clips of the split, or of the whole set where none is
      published; None where the manifest did not say.

    Raises:
      UserError: as `read_metadata`.
    """
    counts = read_metadata(path).get("dataset", {}).get("coverage", {})
    return counts.get(split) or counts.get("all")
