"""A shard: the unit of a build's work, done or not done.

Rows go into shards by the hash of their id, so a shard's content depends on its rows
and the settings alone: not on the runner, the number of workers, or an interruption.
Its outcomes file is written after it and carries the hash of rows and settings in its
name: where that file is, nothing is left to do. The tasks share one plan, a file with
the rows of all shards, and pass nothing else to each other; on a cluster a second file
has the tasks themselves.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

from mmssl import files
from mmssl.data import intake, records, stores
from mmssl.data.faults import Limits
from mmssl.data.pool import DecodePool
from mmssl.data.rows import Rows, decode, mark
from mmssl.data.storage import Storage

ROWS = 256
"""Rows of a shard, on average between half of this and all of it."""

DATASET = "mmssl_clips"
"""The dataset's name for TFDS; names of shards begin with it."""

PLAN_FILE = "plan.jsonl"

TASKS_FILE = "plan-tasks.jsonl"

_READERS = 16

Outcome = dict[str, Any]
"""What became of a shard: `split`, `index`, `file` ({name, rows, bytes, sha256}; None
where no row could be used) and `rows` (see `_outcome`)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all shards share; it is a part of every shard's key.

    Attributes:
      label_columns: every record has exactly these labels.
      limits: what one file may cost.
      storage: how media are stored.
    """

    label_columns: tuple[str, ...]
    limits: Limits = dataclasses.field(default_factory=Limits)
    storage: Storage = dataclasses.field(default_factory=Storage)

    def key(self) -> str:
        """The hash of everything that changes what a row becomes."""
        values = [records.SCHEMA_VERSION, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to write.

    Attributes:
      split: of the dataset.
      index: of the shard in its split.
      key: SHA-256 of the settings and the rows.
      start, stop: where its rows are in the plan, in bytes.
      rows: how many.
    """

    split: str
    index: int
    key: str
    start: int
    stop: int
    rows: int

    @property
    def outcome(self) -> str:
        """The file in the folder of outcomes that is there when the shard is done."""
        return f"{self.split}-{self.index:05d}-{self.key[:16]}.json"


def file_name(split: str, index: int) -> str:
    """Of a shard. Without their number, so that a dataset grows without renaming."""
    return f"{DATASET}-{split}.array_record-{index:05d}"


def _buckets(rows: Rows, numbers: Iterable[int], most: int) -> list[list[int]]:
    """Numbers of rows in an order of chance, cut into shards by the same hash.

    The number of buckets is a power of two, so that a few rows more or less change the
    buckets they are in and no other.
    """
    ordered = sorted(numbers, key=rows.ranks.__getitem__)
    count = 1
    while len(ordered) > count * most:
        count *= 2
    found: list[list[int]] = [[] for _ in range(count)]
    for number in ordered:
        found[rows.ranks[number] * count >> 64].append(number)
    return [numbers for numbers in found if numbers]


def plan(
    root: stores.Path,
    rows: Rows,
    by_split: Mapping[str, Iterable[int]],
    *,
    settings: Settings,
    most: int,
    taken: Mapping[str, Iterable[int]],
) -> list[Task]:
    """Writes the plan of `root`; returns its tasks.

    Args:
      by_split: split to the numbers of its rows.
      most: rows of a shard.
      taken: split to shard numbers that are in use.
    """
    tasks, at = [], 0
    with stores.new_file(root / PLAN_FILE) as path, path.open("wb") as file:
        for split, numbers in by_split.items():
            free = _free(set(taken.get(split, ())))
            for index, bucket in zip(free, _buckets(rows, numbers, most)):
                digest, start = hashlib.sha256(settings.key().encode()), at
                for number in bucket:
                    line = rows.lines[number] + b"\n"
                    digest.update(line)
                    at += file.write(line)
                key, size = digest.hexdigest(), len(bucket)
                tasks.append(Task(split, index, key, start, at, size))
    _forget_others(root, tasks)
    return tasks


def _forget_others(root: stores.Path, tasks: Iterable[Task]) -> None:
    """Outcomes of other rows under a shard's number: its file is written again."""
    own = {task.outcome.rpartition("-")[0]: task.outcome for task in tasks}
    for name in stores.names(root / records.OUTCOMES):
        if own.get(name.rpartition("-")[0], name) != name:
            stores.remove(root / records.OUTCOMES / name)


def left(root: stores.Path, tasks: Iterable[Task]) -> list[Task]:
    """Those that no build has done."""
    there = stores.names(root / records.OUTCOMES)
    return [task for task in tasks if task.outcome not in there]


def write_tasks(root: stores.Path, tasks: Iterable[Task]) -> None:
    """Writes them for `read_tasks`, which another machine may call."""
    with stores.new_file(root / TASKS_FILE) as path, path.open("w") as file:
        file.writelines(json.dumps(vars(task)) + "\n" for task in tasks)


def read_tasks(root: stores.Path) -> Iterator[Task]:
    """What `write_tasks` wrote."""
    with (root / TASKS_FILE).open() as file:
        for line in file:
            yield Task(**json.loads(line))


def _free(taken: set[int]) -> Iterator[int]:
    index = 0
    while True:
        if index not in taken:
            yield index
        index += 1


def _lines(root: stores.Path, task: Task, settings: Settings) -> list[bytes]:
    """A task's rows, if the plan is still the one that the task is of."""
    with (root / PLAN_FILE).open("rb") as file:
        file.seek(task.start)
        text = file.read(task.stop - task.start)
    if hashlib.sha256(settings.key().encode() + text).hexdigest() != task.key:
        raise RuntimeError(f"{root}: another build has changed the plan; end one")
    return text.split(b"\n")[:-1]


def _record(checked: intake.Checked, columns: tuple[str, ...]) -> records.Record:
    row = checked.row
    meta = dict(row.meta)
    if checked.probe is not None:
        meta |= {"probe": checked.probe, "sha256": checked.sha256}
    return records.Record(
        id=row.id,
        media=checked.media,
        media_name=row.media,
        segments=row.segments,
        words=row.words,
        labels={column: row.labels.get(column, "") for column in columns},
        meta=meta,
    )


def _outcome(name: str, checked: intake.Checked) -> dict[str, Any]:
    """What the report needs to know of a row."""
    row = checked.row
    found = {"row": name, "id": row.id, "media": row.media}
    if checked.fault:
        return found | {"fault": checked.fault}
    modalities = ("video", "audio", "text")
    return found | {
        "partial": checked.partial,
        "labels": dict(row.labels),
        "modalities": [name for name in modalities if checked.has(name)],
        "seconds": checked.probe["duration"] if checked.probe else 0.0,
        "records": len(checked.pieces) or 1,
        "bytes": sum(len(p.media) for p in checked.pieces) or len(checked.media),
        "sha256": checked.sha256,
    }


def write(
    root: stores.Path,
    task: Task,
    *,
    settings: Settings,
    pool: DecodePool,
    count: Callable[[], None] | None = None,
) -> None:
    """Does one task: decodes its rows, writes those that decode, then its outcomes.

    A worker may outlive its build, and find the next one of other rows in its folder:
    it looks at the plan before and after its work, and renames nothing over the other.

    Args:
      root: the folder of shards and plan.
      count: called after each row.

    Raises:
      RuntimeError: the plan is another build's.
    """
    from mmssl.data import builder

    planned = [(mark(line), decode(line)) for line in _lines(root, task, settings)]
    rows = []

    def used() -> Iterator[records.Record]:
        storage = settings.storage
        checked = intake.check_rows(
            [row for _, row in planned], pool=pool, storage=storage
        )
        for (name, _), found in zip(planned, checked, strict=True):
            rows.append(_outcome(name, found))
            if found.fault is None:
                for part in intake.parts(found, storage):
                    yield _record(part, settings.label_columns)
            if count:
                count()

    file = None
    target = root / file_name(task.split, task.index)
    with stores.new_file(target) as path:
        written = builder.write_shard(path, used(), settings.label_columns)
        if written:
            facts = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
            file = {"name": target.name, "rows": written, **facts}
        else:
            path.unlink()
        _lines(root, task, settings)
    done = {"split": task.split, "index": task.index, "file": file, "rows": rows}
    stores.write(root / records.OUTCOMES / task.outcome, json.dumps(done))


def outcomes(root: stores.Path, names: Iterable[str]) -> Iterator[Outcome]:
    """The outcomes of these names in the dataset `root`, in this order."""

    def read(name: str) -> Outcome:
        return json.loads((root / records.OUTCOMES / name).read_text())

    waiting = list(names)
    with futures.ThreadPoolExecutor(_READERS) as executor:
        for at in range(0, len(waiting), 4 * _READERS):
            yield from executor.map(read, waiting[at : at + 4 * _READERS])
