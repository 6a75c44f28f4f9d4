"""`mmssl data validate`: a dataset checked again from its shards.

Reads what training reads: hashes of the files, the schema, every record, and the media
itself, decoded completely in worker processes.
"""

import collections
import hashlib
import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

from mmssl import files
from mmssl.data import records
from mmssl.data.faults import Limits, MediaFault
from mmssl.data.intake import Progress
from mmssl.data.media import SILENCE, Probe
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

APART = 1.0
"""Seconds that sound and pictures may begin or end apart."""

DRIFT = 0.1
"""Seconds that timestamps and samples of the sound may run apart."""

OUTLIER = 10.0
"""How many times longer or shorter than the median media may be."""

WARNINGS = {
    "duplicate_media": "the same media bytes under another id",
    "empty_text": "no text, no words",
    "no_media": "a text-only row",
    "unknown_file": "a file that the build did not write",
    "silent_audio": f"no sound above {SILENCE:g} of full scale (-60 dB)",
    "black_video": "no frame of which 2% is brighter than 10%",
    "duration": f"over {OUTLIER:g} times longer or shorter than the median",
    "drift": f"timestamps and samples of the sound run apart by over {DRIFT:g} s",
    "apart": f"sound and pictures begin or end over {APART:g} s apart",
}
"""Class to meaning; may be intended. The last five are of media that were decoded."""


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


_Decoded = MediaFault | Probe | None
"""What a complete decode gave; None: the media was not decoded."""


def _decoded(
    rows: Iterable[records.Record], *, pool: DecodePool, every: int
) -> Iterator[tuple[records.Record, _Decoded]]:
    """Every record, and what decoding its media gave."""

    def decode(record: records.Record) -> MediaFault | Probe:
        try:
            return pool.probe(record.media, full=True)
        except MediaFault as e:
            return e

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
                yield done, job and job.result()
        for done, job in waiting:
            yield done, job and job.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _look(id: str, probe: Probe, warnings: _Findings) -> None:
    """What is odd about media that decode."""
    video, audio = probe.video, probe.audio
    if video and video["black"]:
        warnings.add("black_video", id)
    if audio is None:
        return
    if audio["silent"]:
        warnings.add("silent_audio", id)
    if abs(audio["drift"]) > DRIFT:
        warnings.add("drift", id, f"{audio['drift']:.2f} s at the end of the sound")
    if video:
        last = video["frames"] / video["fps"] if video["fps"] else 0.0
        begins = audio["start"] - video["start"]
        length = audio["samples"] / audio["rate"]
        ends = audio["start"] + length - (video["start"] + last)
        if max(abs(begins), abs(ends)) > APART:
            detail = f"sound begins {begins:+.1f} s and ends {ends:+.1f} s later"
            warnings.add("apart", id, detail)


def _outliers(durations: list[tuple[float, str]], warnings: _Findings) -> None:
    middle = statistics.median(seconds for seconds, _ in durations)
    for seconds, id in durations:
        if not middle / OUTLIER <= seconds <= middle * OUTLIER:
            detail = f"{seconds:.2f} s, the median is {middle:.2f} s"
            warnings.add("duration", id, detail)


def _at_build(root: pathlib.Path) -> dict[str, dict[str, list[str]]]:
    """Fault class to files, of those that the build left out or used in part."""
    try:
        report = json.loads((root / records.REPORT_FILE).read_text())
        return {"left_out": report["files"], "in_part": report["partial_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"left_out": {}, "in_part": {}}


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
      `warnings` {class: count}, `warning_ids`, `details` (lines of text), `left_out`
      and `in_part` {media fault class: files} of the build. Classes are those of
      `FAULTS` and `WARNINGS` here; `details` has the media's own fault class for
      `media`.

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
    durations: list[tuple[float, str]] = []
    with DecodePool(workers, limits) as pool:
        stream = _records(root, splits, faults)
        for record, found in _decoded(stream, pool=pool, every=every):
            rows += 1
            decoded += found is not None
            if isinstance(found, MediaFault):
                faults.add("media", record.id, f"{record.media_name}: {found}")
            elif found is not None:
                _look(record.id, found, warnings)
                durations.append((found.duration, record.id))
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
    if durations:
        _outliers(durations, warnings)
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
        **_at_build(root),
    }
