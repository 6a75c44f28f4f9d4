"""`mmssl data build`: a manifest or a folder of media to a dataset.

Every media file is decoded completely, in worker processes, before anything is written,
so that training meets no file that was never decoded. A row whose media cannot be used
is left out and reported with the class of its fault. Media of which something can be
used is used: a fault of one stream is reported as `audio_<class>` or `video_<class>`
under `partial`, kept in the record's `meta.probe.faults`, and training masks what does
not decode.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmssl import files as files_lib
from mmssl.data import intake, records
from mmssl.data import manifest as manifest_lib
from mmssl.data import splits as splits_lib
from mmssl.data.faults import Limits
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build used and left out; `build_report.json` holds the same.

    Attributes:
      rows: rows of the source.
      used: rows in the dataset.
      faults: class to rows left out; used + the sum of faults = rows.
      files: class to the files left out (as the source names them), sorted.
      partial: class to rows that are used without something: `audio_<class>`,
        `video_<class>`, or `caption` for a caption file that cannot be read.
      partial_files: the files of `partial`.
      details: file to what was seen, for both kinds.
      splits: name to rows.
      leaks: byte-identical media that lie in more than one split: for each, split to
        ids.
      labels: column to {class: rows}.
      modalities: "video", "audio", "text" to rows that have it.
      duration_seconds: of all used media together.
      bytes: encoded media in the dataset.
      extra_keys: unknown keys of manifest rows, kept in `meta`, with their counts.
      dataset: what the manifest says of the data set as a whole, such as `coverage`:
        split to clips listed by its authors and clips found.
      schema_version: see records.SCHEMA_VERSION.
      seconds: how long the build took.
    """

    rows: int
    used: int
    faults: dict[str, int]
    files: dict[str, list[str]]
    partial: dict[str, int]
    partial_files: dict[str, list[str]]
    details: dict[str, list[str]]
    splits: dict[str, int]
    leaks: list[dict[str, list[str]]]
    labels: dict[str, dict[str, int]]
    modalities: dict[str, int]
    duration_seconds: float
    bytes: int
    extra_keys: dict[str, int]
    dataset: dict[str, Any]
    schema_version: int
    seconds: float


def _record(checked: intake.Checked, columns: tuple[str, ...]) -> records.Record:
    row = checked.row
    meta = dict(row.meta)
    if checked.probe is not None:
        meta |= {"probe": checked.probe, "sha256": checked.sha256}
    return records.Record(
        id=row.id,
        media=intake.read_again(checked),
        media_name=row.media,
        segments=row.segments,
        words=row.words,
        labels={column: row.labels.get(column, "") for column in columns},
        meta=meta,
    )


def _by_class(
    checked: Iterable[intake.Checked],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(class to files left out, class to files used in part), all sorted."""
    whole: dict[str, list[str]] = collections.defaultdict(list)
    partial: dict[str, list[str]] = collections.defaultdict(list)
    for c in checked:
        if c.fault:
            whole[c.fault[0]].append(c.row.media)
            continue
        for name in sorted({name for name, _ in c.partial}):
            partial[name].append(c.row.media)
    return (
        {name: sorted(files) for name, files in sorted(whole.items())},
        {name: sorted(files) for name, files in sorted(partial.items())},
    )


def _leaks(by_split: Mapping[str, list[intake.Checked]]) -> list[dict[str, list[str]]]:
    """Media that lie in more than one split, each as {split: ids}."""
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for split, rows in by_split.items():
        for c in rows:
            if c.sha256:
                found[c.sha256].setdefault(split, []).append(c.row.id)
    return [places for places in found.values() if len(places) > 1]


def _split_names(
    rows: Iterable[manifest_lib.Row], splits: Mapping[str, float]
) -> list[str]:
    """The splits that rows state, and those that others are drawn into."""
    stated = {row.split for row in rows}
    drawn = list(splits) if "" in stated else []
    return [*drawn, *sorted(stated - {"", *drawn})]


def _report(
    checked: list[intake.Checked],
    split_names: Iterable[str],
    by_split: Mapping[str, list[intake.Checked]],
) -> dict[str, Any]:
    used = [c for c in checked if c.fault is None]
    files, partial_files = _by_class(checked)
    details = collections.defaultdict(list)
    labels = collections.defaultdict(collections.Counter)
    for c in checked:
        for name, detail in (c.fault and (c.fault,)) or c.partial:
            details[c.row.media].append(f"{name}: {detail}")
    for c in used:
        for column, value in c.row.labels.items():
            labels[column][value] += 1
    names = ("video", "audio", "text")
    return {
        "rows": len(checked),
        "used": len(used),
        "faults": {name: len(paths) for name, paths in files.items()},
        "files": files,
        "partial": {name: len(paths) for name, paths in partial_files.items()},
        "partial_files": partial_files,
        "details": dict(sorted(details.items())),
        "splits": {name: len(by_split.get(name, ())) for name in split_names},
        "leaks": _leaks(by_split),
        "labels": {k: dict(sorted(v.items())) for k, v in sorted(labels.items())},
        "modalities": {name: sum(c.has(name) for c in used) for name in names},
        "duration_seconds": sum(c.probe["duration"] for c in used if c.probe),
        "bytes": sum(c.bytes for c in used),
        "schema_version": records.SCHEMA_VERSION,
    }


def _refuse_nothing(source: pathlib.Path, checked: list[intake.Checked]) -> None:
    faults = [(c.row.media, *c.fault) for c in checked if c.fault]
    if len(faults) < len(checked):
        return
    media, name, detail = faults[0]
    counts = collections.Counter(name for _, name, _ in faults).most_common()
    raise UserError(
        f"{source}: none of its {len(checked)} rows can be used (faults: "
        f"{', '.join(f'{n} {k}' for k, n in counts)}); the first: "
        f"{media}: {name}: {detail}. Paths are relative to the manifest; "
        "check them, and that the files play"
    )


def _refuse_without_room(out: pathlib.Path, need: int) -> None:
    free = files_lib.free_bytes(pathlib.Path(os.path.abspath(out)))
    if free < need:
        raise UserError(
            f"{out}: the disk is too full: the dataset needs about "
            f"{need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; make room, or "
            "choose another folder"
        )


def file_hashes(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Name to {"sha256", "bytes"} of the files in `root`."""
    return {
        path.name: {"sha256": files_lib.sha256(path), "bytes": path.stat().st_size}
        for path in sorted(root.iterdir())
    }


def _write(
    root: pathlib.Path,
    used: Mapping[str, list[intake.Checked]],
    columns: tuple[str, ...],
    progress: intake.Progress | None,
) -> pathlib.Path:
    from mmssl.data import builder

    total, done = sum(map(len, used.values())), 0

    def split(rows: list[intake.Checked]) -> Iterator[records.Record]:
        nonlocal done
        for checked in rows:
            yield _record(checked, columns)
            done += 1
            if progress:
                progress(done, total, "writing")

    makers = {name: lambda rows=rows: split(rows) for name, rows in used.items()}
    return builder.write(root, label_columns=columns, splits=makers)


def build(
    *,
    manifest: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    splits: Mapping[str, float] | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    pool: DecodePool | None = None,
    overwrite: bool = False,
    progress: intake.Progress | None = None,
) -> BuildReport:
    """Builds the dataset `out`: it appears whole, or not at all.

    Args:
      manifest: a JSONL file (see manifest.read_manifest); or
      folder: media files with text beside them (see manifest.scan_folder).
      out: a new folder; gets ArrayRecord shards, TFDS's own JSON files, `mmssl.json`
        (schema version, label columns, coverage, SHA-256 of every file) and
        `build_report.json`.
      splits: name to fraction, by hash of a row's group, or of its id (see
        splits.split_of), for rows that state no split; default {"train": 0.9, "test":
        0.1}. A split that gets no row is not written.
      workers: decoding processes; default one per core.
      limits: what one file may cost.
      pool: an open pool to use instead of workers and limits.
      overwrite: replace `out` if it is a dataset of mmssl.
      progress: called with (done, total, "decoding" | "writing").

    Raises:
      UserError: bad input (see manifest.py and splits.py), no usable row, `out` exists,
        or the disk is full.
      ValueError: not exactly one of manifest and folder.
    """
    if (manifest is None) == (folder is None):
        raise ValueError("give exactly one of manifest and folder")
    started = time.monotonic()
    splits = {"train": 0.9, "test": 0.1} if splits is None else dict(splits)
    splits_lib.check_splits(splits)
    if manifest is not None:
        source = manifest_lib.read_manifest(manifest)
    else:
        source = manifest_lib.scan_folder(folder or "")
    out = pathlib.Path(out)
    with files_lib.whole_folder(
        out, marker=records.METADATA_FILE, overwrite=overwrite
    ) as new:
        with contextlib.ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(DecodePool(workers, limits))
            checked = intake.check_rows(source.rows, pool=pool, progress=progress)
        _refuse_nothing(source.source, checked)
        used: dict[str, list[intake.Checked]] = {}
        for c in (c for c in checked if c.fault is None):
            drawn = splits_lib.split_of(c.row.group or c.row.id, splits)
            used.setdefault(c.row.split or drawn, []).append(c)
        report = _report(checked, _split_names(source.rows, splits), used)
        _refuse_without_room(out, report["bytes"])
        shards = _write(new / "tfds", used, source.label_columns, progress)
        metadata = {
            "schema_version": records.SCHEMA_VERSION,
            "label_columns": list(source.label_columns),
            "splits": report["splits"],
            "dataset": dict(source.dataset),
            "files": file_hashes(shards),
        }
        result = BuildReport(
            **report,
            extra_keys=dict(source.extra_keys),
            dataset=dict(source.dataset),
            seconds=time.monotonic() - started,
        )
        _finish(new, shards, metadata=metadata, report=dataclasses.asdict(result))
    return result


def _finish(
    new: pathlib.Path,
    shards: pathlib.Path,
    *,
    metadata: dict[str, Any],
    report: dict[str, Any],
) -> None:
    """Moves the shards to the root of `new`, beside the two JSON files."""
    for path in list(shards.iterdir()):
        path.rename(new / path.name)
    shutil.rmtree(new / "tfds")
    for name, value in (
        (records.REPORT_FILE, report),
        (records.METADATA_FILE, metadata),
    ):
        (new / name).write_text(json.dumps(value, indent=2) + "\n")
