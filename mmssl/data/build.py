"""`mmssl data build`: a manifest or a folder of media to a dataset.

Every media file is decoded completely, in worker processes, before it is written, so
that training meets no file that was never decoded. A row whose media cannot be used is
left out and reported with the class of its fault. Media of which something can be used
is used: a fault of one stream is reported as `audio_<class>` or `video_<class>` under
`partial`, kept in the record's `meta.probe.faults`, and training masks what does not
decode.

The work is cut into shards (shards.py), which are written here or on Apache Beam
(runners.py).
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmssl import files
from mmssl.data import intake, records, runners, shards, stores
from mmssl.data import manifest as manifest_lib
from mmssl.data import splits as splits_lib
from mmssl.data import tars as tars_lib
from mmssl.data.build_report import BuildReport, Tally
from mmssl.data.earlier import Earlier, keep
from mmssl.data.faults import Limits
from mmssl.data.pool import DecodePool
from mmssl.data.rows import Rows, mark
from mmssl.data.storage import Storage
from mmssl.errors import UserError

__all__ = ["BuildReport", "build"]

_SAMPLE = 1000
"""Media whose sizes tell how much room a dataset needs."""


def _by_split(rows: Rows, splits: Mapping[str, float]) -> dict[str, list[int]]:
    """Split to numbers of rows: splits that others are drawn into come first."""
    stated: dict[str, list[int]] = {}
    drawn: dict[str, list[int]] = {name: [] for name in splits}
    for number, row in enumerate(rows):
        if row.split:
            stated.setdefault(row.split, []).append(number)
        else:
            drawn[splits_lib.split_of(row.group or row.id, splits)].append(number)
    found = drawn if any(drawn.values()) else {}
    for name in sorted(stated):
        found[name] = sorted(found.get(name, []) + stated[name])
    return found


def _refuse_nothing(source: stores.Path, tally: Tally) -> None:
    if tally.used:
        return
    media, details = min(tally.details.items())
    counts = sorted(((len(m), name) for name, m in tally.faults.items()), reverse=True)
    raise UserError(
        f"{source}: none of its {tally.rows} rows can be used (faults: "
        f"{', '.join(f'{n} {k}' for n, k in counts)}); the first: "
        f"{media}: {details[0]}. Paths are relative to the manifest; "
        "check them, and that the files play"
    )


def _refuse_without_room(out: stores.Path, rows: Rows, numbers: Sequence[int]) -> None:
    """Says so before hours of work, by the sizes of a sample of the media."""
    if not isinstance(out, pathlib.Path) or not numbers:
        return
    sample = numbers[:: -(-len(numbers) // _SAMPLE)]
    size = 0
    for path in (rows[number].path for number in sample):
        if isinstance(path, pathlib.Path) and path.is_file():
            size += path.stat().st_size
    need = size * len(numbers) / len(sample)
    free = files.free_bytes(pathlib.Path(os.path.abspath(out)))
    if free < need:
        raise UserError(
            f"{out}: the disk is too full: the dataset needs about "
            f"{need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; make room, or "
            "choose another folder"
        )


def file_hashes(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Name to {"sha256", "bytes"} of the files in `root`."""
    return {
        path.name: {"sha256": files.sha256(path), "bytes": path.stat().st_size}
        for path in sorted(root.iterdir())
    }


@contextlib.contextmanager
def _folder(
    out: stores.Path, *, overwrite: bool, update: bool
) -> Iterator[stores.Path]:
    """Where to write: beside `out`, to be renamed; in a bucket, `out` itself."""
    marker = records.METADATA_FILE
    if isinstance(out, pathlib.Path):
        replace = overwrite or update
        with files.whole_folder(
            out, marker=marker, overwrite=replace, resume=True
        ) as new:
            yield new
        return
    there = stores.names(out)
    if there and not there & {marker, records.OUTCOMES, shards.PLAN_FILE}:
        raise UserError(
            f"{out}: not empty, and mmssl did not write it; choose another folder"
        )
    if marker in there and not update:
        if not overwrite:
            raise UserError(
                f"{out}: already there and not empty; choose another folder, or pass "
                "--overwrite to replace it"
            )
        stores.remove(out / marker)  # no dataset from here on
        if records.OUTCOMES in there:
            stores.remove(out / records.OUTCOMES)
    yield out


@contextlib.contextmanager
def _kept_if_worth(root: stores.Path) -> Iterator[None]:
    """After a failure finished shards stay for the next call, and nothing else.

    A dataset stays, too: in a bucket `root` is the one that is updated.
    """
    try:
        yield
    except BaseException:
        there = stores.names(root)
        whole = records.METADATA_FILE in there
        if not whole and not stores.names(root / records.OUTCOMES):
            for name in there:
                stores.remove(root / name)
        raise


def _counter(
    tasks: Sequence[shards.Task],
    left: Sequence[shards.Task],
    progress: intake.Progress | None,
) -> runners.Count:
    """Adds what was done before to the rows that are done now."""
    total, waiting = (sum(task.rows for task in some) for some in (tasks, left))
    message = "decoding"
    if before := len(tasks) - len(left):
        message += f"; {before} of {len(tasks)} shards were done before"

    def count(rows: int) -> None:
        if progress:
            progress(total - waiting + rows, total, message)

    if before:
        count(0)
    return count


def _finish(
    root: stores.Path,
    described: pathlib.Path,
    outcomes: Collection[str],
    *,
    metadata: dict[str, Any],
    report: BuildReport,
) -> None:
    """Adds the JSON files, the one that makes it a dataset last; removes leavings."""
    for path in described.iterdir():
        stores.write(root / path.name, path.read_text())
    facts = dataclasses.asdict(report)
    stores.write(root / records.REPORT_FILE, json.dumps(facts, indent=2) + "\n")
    stores.write(root / records.METADATA_FILE, json.dumps(metadata, indent=2) + "\n")
    leavings = (stores.PARTIAL, shards.PLAN_FILE, shards.TASKS_FILE, shards.DATASET)
    for name in stores.names(root) - metadata["files"].keys():
        if name.startswith(leavings):
            stores.remove(root / name)
    for name in stores.names(root / records.OUTCOMES) - set(outcomes):
        stores.remove(root / records.OUTCOMES / name)


def build(
    *,
    manifest: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    tars: Sequence[str] | None = None,
    out: str | os.PathLike[str],
    splits: Mapping[str, float] | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    storage: Storage | None = None,
    pool: DecodePool | None = None,
    shard_rows: int = shards.ROWS,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
    overwrite: bool = False,
    update: bool = False,
    progress: intake.Progress | None = None,
) -> BuildReport:
    """Builds the dataset `out`: it appears whole, or not at all.

    What was finished when a build ended too early is kept, and the same call goes on
    from there. The dataset depends neither on that nor on runner and workers.

    Args:
      manifest: a JSONL file (see manifest.read_manifest), here or in a bucket; or
      folder: media files with text beside them (see manifest.scan_folder); or
      tars: tar files of them, paths or patterns (see tars.scan).
      out: a new folder, here or in a bucket; gets ArrayRecord shards, TFDS's own JSON
        files, `mmssl.json` (schema version, label columns, coverage, SHA-256 of every
        file), `build_report.json`, and what became of each row in `outcomes/`.
      splits: name to fraction, by hash of a row's group, or of its id (see
        splits.split_of), for rows that state no split; default {"train": 0.9, "test":
        0.1}. A split that gets no row is not written.
      workers: decoding processes of this machine; default one per core.
      limits: what one file may cost.
      storage: how media are stored; default: as they are.
      pool: an open pool to use instead of workers, without a runner.
      shard_rows: of one shard, on average between half of it and all.
      runner: of Apache Beam; None: this process, with its decoding processes.
      beam_options: KEY=VALUE of the runner.
      overwrite: replace `out` if it is a dataset of mmssl.
      update: keep what the dataset `out`, if there is one, has of the source's rows,
        and add the others; its rows that the source no longer has are dropped.
      progress: called with (done, total, "decoding").

    Raises:
      UserError: bad input (see manifest.py and splits.py), no usable row, `out` exists
        or cannot be updated, the disk is full, or there is no such runner.
      ValueError: not exactly one of manifest, folder and tars.
    """
    if sum(given is not None for given in (manifest, folder, tars)) != 1:
        raise ValueError("give exactly one of manifest, folder and tars")
    started = time.monotonic()
    splits = {"train": 0.9, "test": 0.1} if splits is None else dict(splits)
    splits_lib.check_splits(splits)
    workers = workers or os.cpu_count() or 1
    options = runner and runners.options(runner, workers, beam_options)
    if runner == "DataflowRunner" and not stores.is_url(out):
        raise UserError(
            f"{out}: workers of Dataflow do not see this machine's disk; give URLs, "
            "such as gs://bucket/data, for --out and the media"
        )
    if manifest is not None:
        source = manifest_lib.read_manifest(manifest)
    elif tars is not None:
        source = tars_lib.scan(tars)
    else:
        source = manifest_lib.scan_folder(folder or "")
    place, by_split = stores.place(out), _by_split(source.rows, splits)
    settings = shards.Settings(
        source.label_columns, limits or Limits(), storage or Storage()
    )
    from mmssl.data import builder  # with TFDS

    with (
        _folder(place, overwrite=overwrite, update=update) as root,
        _kept_if_worth(root),
        tempfile.TemporaryDirectory() as scratch,
    ):
        (root / records.OUTCOMES).mkdir(parents=True, exist_ok=True)
        kept = Earlier()
        if update and (place / records.METADATA_FILE).exists():
            kept = keep(place, root, source.rows, by_split, settings=settings)
        new = {
            split: [i for i in numbers if mark(source.rows.lines[i]) not in kept.marks]
            for split, numbers in by_split.items()
        }
        if settings.storage.kind == "original":
            _refuse_without_room(place, source.rows, [*itertools.chain(*new.values())])
        tasks = shards.plan(
            root,
            source.rows,
            new,
            settings=settings,
            most=shard_rows,
            taken=kept.taken,
        )
        outcomes = sorted([*kept.outcomes, *(task.outcome for task in tasks)])
        tally = Tally(by_split)

        def work(runner: str | None, options: Any) -> Mapping[str, list[int]]:
            left = shards.left(root, tasks)
            runners.run(
                root,
                left,
                settings=settings,
                runner=runner,
                options=options,
                workers=workers,
                pool=pool,
                count=_counter(tasks, left, progress),
            )
            for outcome in shards.outcomes(root, outcomes):
                tally.add(outcome)
            return tally.lengths

        described = builder.prepare(
            scratch,
            label_columns=source.label_columns,
            work=work,
            runner=runner,
            options=options,
        )
        if not tally.used:  # the media may be put right
            for task in tasks:
                stores.remove(root / records.OUTCOMES / task.outcome)
        _refuse_nothing(source.source, tally)
        report = BuildReport(
            **tally.fields(),
            extra_keys=dict(source.extra_keys),
            dataset=dict(source.dataset),
            shards=len(tally.files),
            kept=len(kept.outcomes),
            dropped=kept.dropped,
            seconds=time.monotonic() - started,
        )
        metadata = {
            "schema_version": records.SCHEMA_VERSION,
            "label_columns": list(source.label_columns),
            "splits": report.splits,
            "dataset": report.dataset,
            "storage": dataclasses.asdict(settings.storage),
            "settings": settings.key(),
            "files": dict(sorted((tally.files | file_hashes(described)).items())),
        }
        _finish(root, described, outcomes, metadata=metadata, report=report)
    return report
