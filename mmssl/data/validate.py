"""`mmssl data validate`: a dataset checked again from its shards.

Reads what training reads: hashes of the files, the schema, every record, and the media
itself, decoded completely in worker processes.
"""

import collections
import hashlib
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

from mmssl import files
from mmssl.data import records
from mmssl.data.faults import Limits, MediaFault
from mmssl.data.intake import Progress
from mmssl.data.pool import DecodePool

FAULTS = {
    "file_missing": "a file of the dataset is not there",
    "file_changed": "a file's SHA-256 or size is not the one at build",
    "split_unreadable": "files of the split are damaged; its rows were not checked",
    "rows_missing": "a split has other than its stated number of rows",
    "record": "a record does not have this schema",
    "labels": "a record's label columns are not the dataset's",
    "duplicate_id": "an id more than once in the dataset",
    "times": "a text whose end is before its start, or with half a time",
    "media": "media that the build could decode and that does not decode now",
}
"""Class to meaning; any of them makes a dataset not ok."""

WARNINGS = {
    "duplicate_media": "the same media bytes under another id",
    "empty_text": "no text, no words",
    "no_media": "a text-only row",
    "unknown_file": "a file that the build did not write",
}
"""Class to meaning; may be intended."""


class _Findings:
    def __init__(self, classes: dict[str, str]) -> None:
        self._classes = classes
        self.ids: dict[str, list[str]] = collections.defaultdict(list)
        self.details: list[str] = []

    def add(self, name: str, id: str, detail: str = "") -> None:
        self.ids[name].append(id)
        meaning = detail or self._classes[name]
        self.details.append(f"{id}: {name}: {meaning}")

    def counts(self) -> dict[str, int]:
        return {name: len(ids) for name, ids in sorted(self.ids.items())}


def _check_files(
    root: pathlib.Path,
    expected: dict[str, dict[str, Any]],
    faults: _Findings,
    warnings: _Findings,
) -> None:
    for name, facts in expected.items():
        path = root / name
        if not path.is_file():
            faults.add("file_missing", name)
        elif path.stat().st_size != facts["bytes"]:
            size = f"{path.stat().st_size} bytes, {facts['bytes']} at build"
            faults.add("file_changed", name, size)
        elif files.sha256(path) != facts["sha256"]:
            faults.add("file_changed", name, "SHA-256 differs from the one at build")
    own = {records.METADATA_FILE, records.REPORT_FILE, records.OUTCOMES, *expected}
    for path in sorted(root.iterdir()):
        if path.name not in own and not path.name.startswith("tokenizer."):
            warnings.add("unknown_file", path.name)


def _records(
    root: pathlib.Path, splits: dict[str, int], faults: _Findings
) -> Iterator[records.Record]:
    """All records that parse; the rest are faults."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(root)
    except Exception as e:  # TFDS raises what its JSON and protobuf readers raise
        for name in splits:
            faults.add("split_unreadable", name, f"TFDS cannot open the folder: {e}")
        return
    damaged = faults.ids.get("file_missing", []) + faults.ids.get("file_changed", [])
    for name, rows in splits.items():
        if not rows:
            continue
        own = [f for f in damaged if f"-{name}.array_record" in f or f.endswith("json")]
        if own:
            faults.add("split_unreadable", name, f"damaged: {', '.join(own)}")
            continue
        try:
            source = builder.as_data_source(name)
            found = len(source)
        except Exception as e:  # ArrayRecord raises RuntimeError, TFDS several others
            faults.add("split_unreadable", name, str(e).split("\n")[0])
            continue
        if found != rows:
            faults.add("rows_missing", name, f"{found} rows, {rows} at build")
        for i in range(found):
            try:
                yield records.from_example(source[i])
            except Exception as e:  # a damaged record: any of the parsers' errors
                faults.add("record", f"{name}[{i}]", repr(e))


def _check_record(
    record: records.Record, columns: set[str], faults: _Findings, warnings: _Findings
) -> None:
    if set(record.labels) != columns:
        detail = f"columns {sorted(record.labels)}, the dataset has {sorted(columns)}"
        faults.add("labels", record.id, detail)
    for timed in (*record.segments, *record.words):
        whole = math.isnan(timed.start) and math.isnan(timed.end)
        if not whole and not timed.start <= timed.end:
            faults.add("times", record.id, f"{timed.start} to {timed.end}")
            break
    if not record.segments and not record.words:
        warnings.add("empty_text", record.id)
    if not record.media:
        warnings.add("no_media", record.id)


def _decoded(
    rows: Iterable[records.Record], *, pool: DecodePool, every: int
) -> Iterator[tuple[records.Record, MediaFault | None, bool]]:
    """Every record with its media's fault and whether its media was decoded."""

    def decode(record: records.Record) -> MediaFault | None:
        try:
            pool.probe(record.media, full=True)
        except MediaFault as e:
            return e
        return None

    # Few records are in flight, so memory holds few media.
    waiting: collections.deque[tuple[records.Record, Any]] = collections.deque()
    executor = futures.ThreadPoolExecutor(pool.workers)
    try:
        for i, record in enumerate(rows):
            job = None
            if every and i % every == 0 and record.media:
                job = executor.submit(decode, record)
            waiting.append((record, job))
            if len(waiting) > 2 * pool.workers:
                done, job = waiting.popleft()
                yield done, job and job.result(), job is not None
        for done, job in waiting:
            yield done, job and job.result(), job is not None
    finally:
        executor.shutdown(cancel_futures=True)


def validate(
    path: str | os.PathLike[str],
    *,
    media: int | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Checks the dataset in folder `path`.

    Args:
      path: written by `build`.
      media: decode the media of about that many records, evenly spaced; None decodes
        all of it, 0 none.
      workers: decoding processes; default one per core.
      limits: what one media item may cost.
      progress: called with (done, total, message).

    Returns:
      `ok` (no faults), `schema_version`, `rows`, `splits` {name: rows},
      `media_decoded`, `faults` {class: count}, `ids` {class: ids or file names},
      `warnings` {class: count}, `warning_ids`, `details` (lines of text). Classes are
      those of `FAULTS` and `WARNINGS` here; `details` has the media's own fault class
      for `media`.

    Raises:
      UserError: no dataset there, or one of another schema version.
      ValueError: `media` below 0.
    """
    if media is not None and media < 0:
        raise ValueError(f"media must be at least 0, or None for all; found {media}")
    root = pathlib.Path(path)
    metadata = records.read_metadata(root)
    faults, warnings = _Findings(FAULTS), _Findings(WARNINGS)
    _check_files(root, metadata["files"], faults, warnings)
    splits, columns = metadata["splits"], set(metadata["label_columns"])
    total, rows, decoded = sum(splits.values()), 0, 0
    every = 1 if media is None else media and max(1, total // media)
    ids: set[str] = set()
    by_media: dict[bytes, str] = {}
    with DecodePool(workers, limits) as pool:
        stream = _records(root, splits, faults)
        for record, fault, was_decoded in _decoded(stream, pool=pool, every=every):
            rows += 1
            decoded += was_decoded
            if fault:
                faults.add("media", record.id, f"{record.media_name}: {fault}")
            if record.id in ids:
                faults.add("duplicate_id", record.id)
            ids.add(record.id)
            if record.media:
                key = hashlib.sha256(record.media).digest()
                first = by_media.setdefault(key, record.id)
                if first != record.id:
                    warnings.add("duplicate_media", record.id, f"also {first}")
            _check_record(record, columns, faults, warnings)
            if progress:
                progress(rows, total, "checking")
    return {
        "ok": not faults.ids,
        "schema_version": metadata["schema_version"],
        "rows": rows,
        "splits": splits,
        "media_decoded": decoded,
        "faults": faults.counts(),
        "ids": dict(faults.ids),
        "warnings": warnings.counts(),
        "warning_ids": dict(warnings.ids),
        "details": faults.details + warnings.details,
    }
