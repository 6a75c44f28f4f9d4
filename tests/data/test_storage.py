"""Reads that fail or hang: asked again, then counted; and datasets in a bucket."""

import itertools
import threading
import time
from typing import Any

import pytest

from mmssl.data.pipeline import Pipeline
from mmssl.data.records import Record, Segment, features, to_example
from mmssl.data.sources import ReadError, Reads, RecordSource, open_dataset
from mmssl.data.views import View
from mmssl.errors import UserError
from tests.data import fake_storage

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

QUICK = Reads(attempts=3, wait=0.0)


class Storage:
    """Rows of text that fail, or take long, as told: row -> what to do each time."""

    def __init__(self, rows: int, plan: dict[int, list[Any]] | None = None) -> None:
        self.rows = rows
        self.plan = {row: iter(todo) for row, todo in (plan or {}).items()}
        self.opened = self.held = self.most_held = 0
        self.lock = threading.Lock()

    def open(self) -> "Storage":
        self.opened += 1
        return self

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        with self.lock:
            self.held += 1
            self.most_held = max(self.held, self.most_held)
        try:
            todo = next(self.plan.get(row, iter(())), None)
            if isinstance(todo, Exception):
                raise todo
            time.sleep(todo or 0.002)
        finally:
            with self.lock:
                self.held -= 1
        example = to_example(Record(f"r{row}", segments=(Segment(0, 1, "a b"),)))
        columns = features([])
        return columns.deserialize_example_np(columns.serialize_example(example))


def source(storage: Storage, reads: Reads = QUICK) -> RecordSource:
    return RecordSource("data", "train", storage.open, reads)


class Words:
    """One id a word."""

    vocab_size, pad_id = 4, 0

    def encode(self, text: str) -> list[int]:
        return [2] * len(text.split())


class Pool:
    workers = 1


def make(found: RecordSource, **options: Any) -> Pipeline:
    view: Any = View(Pool(), text={"length": 3}, tokenizer=Words(), train=True)  # type: ignore[arg-type]
    settings = {"batch": 8, "seed": 0, "train": True, **options}
    return Pipeline([(found, 1.0)], view, **settings)


def test_a_read_that_fails_is_tried_again_on_a_new_reader() -> None:
    storage = Storage(4, {2: [OSError("reset"), RuntimeError()]})
    found = source(storage)
    assert found[2].id == "r2"
    assert storage.opened == 3
    assert found[1].id == "r1"
    assert storage.opened == 3  # a reader that works is kept


def test_waits_double_and_then_the_row_is_given_up(monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    storage = Storage(4, {2: [OSError("connection reset")] * 9})
    found = source(storage, Reads(attempts=4, wait=1.0))
    with pytest.raises(ReadError, match=r"row 2 .* 4 attempts .*connection reset"):
        found[2]
    assert len(waits) == 3
    assert all(n / 2 <= wait <= n for wait, n in zip(waits, (1, 2, 4), strict=True))


def test_a_slow_read_is_asked_for_again() -> None:
    storage = Storage(4, {1: [30.0], 2: [30.0] * 9})
    found = source(storage, Reads(attempts=3, wait=0.0, seconds=0.1))
    begin = time.monotonic()
    assert found[1].id == "r1"
    with pytest.raises(ReadError, match=r"TimeoutError: more than 0.1 s"):
        found[2]
    assert time.monotonic() - begin < 5


def test_reads_that_hang_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr("mmssl.data.sources._MAX_HANGING", 2)
    storage = Storage(4, {1: [30.0] * 9})
    found = source(storage, Reads(attempts=5, wait=0.0, seconds=0.05))
    with pytest.raises(ReadError, match="2 reads hang"):
        found[1]
    assert storage.held == 2


def test_a_mistake_is_not_tried_again() -> None:
    storage = Storage(4, {1: [IndexError("a bug")]})
    with pytest.raises(IndexError):
        source(storage)[1]
    assert storage.opened == 1
    cases: list[dict[str, Any]] = [{"attempts": 0}, {"wait": -1.0}, {"seconds": 0.0}]
    for wrong in cases:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Reads(**wrong)


def test_a_row_that_is_not_read_is_masked_and_counted() -> None:
    bad = {3: [OSError("gone")] * 99, 17: [OSError("gone")] * 99}
    pipeline = make(source(Storage(20, bad)), max_fault_fraction=0.5)
    found = list(itertools.islice(pipeline, 5))  # two epochs
    pipeline.close()
    assert pipeline.faults == {"read": 4}
    rows = [(i, row) for batch in found for i, row in enumerate(batch.info)]
    assert len(rows) == 40
    for batch in found:
        for i, row in enumerate(batch.info):
            unread = row["faults"] == ["read"]
            assert batch.raw.present["text"][i] == (not unread)
            assert (batch.raw.media["text"][i] != 0).any() == (not unread)
            assert row["id"] not in ("r3", "r17")
    # The others stand where they would: order does not depend on what fails.
    whole = list(itertools.islice(make(source(Storage(20))), 5))
    ids = [row["id"] for b in found for row in b.info if not row["faults"]]
    expected = [row["id"] for b in whole for row in b.info]
    assert ids == [name for name in expected if name not in ("r3", "r17")]


def test_too_many_of_them_stop_the_run_with_the_cause() -> None:
    bad = {row: [OSError("quota used up")] * 99 for row in range(0, 40, 2)}
    pipeline = make(source(Storage(40, bad), Reads(1, 0.0)), max_fault_fraction=0.2)
    with pytest.raises(UserError, match=r"'read': .*quota used up") as caught:
        list(itertools.islice(pipeline, 60))
    assert "max_fault_fraction" in str(caught.value)
    pipeline.close()


def test_no_more_records_are_held_than_there_are_threads() -> None:
    storage = Storage(1000)
    pipeline = make(source(storage, Reads()), threads=5, prefetch=64)
    list(itertools.islice(pipeline, 6))
    pipeline.close()
    assert 1 < storage.most_held <= 5


@pytest.fixture
def bucket(mixed_dataset, monkeypatch):
    with fake_storage.served(mixed_dataset[0].parent, monkeypatch) as served:
        yield served, f"gs://bucket/{mixed_dataset[0].name}", mixed_dataset[0]


def test_a_bucket_gives_what_its_folder_gives(bucket) -> None:
    served, url, folder = bucket
    here, there = (open_dataset(path, "train") for path in (folder, url))
    assert len(there) == len(here)
    for i in range(len(here)):
        assert repr(there[i]) == repr(here[i])  # a time that is NaN equals nothing
    assert all("array_record" in name for _, name in served.ranges)
    # One request for the index of a shard, and ranges from within it for records.
    assert any(first not in ("", "0") for first, _ in served.ranges)


def test_a_bucket_that_fails_or_hangs_for_a_while_costs_nothing(bucket) -> None:
    served, url, folder = bucket
    reads = Reads(attempts=4, wait=0.01, seconds=1.0)
    found, expected = (
        open_dataset(url, "train", reads=reads),
        open_dataset(folder, "train"),
    )
    served.refused = 2
    assert repr(found[0]) == repr(expected[0])
    assert served.refused == 0
    served.slow, served.seconds = 1, 5.0
    assert repr(found[1]) == repr(expected[1])
    assert served.slow == 0
    served.refused = 10**6
    with pytest.raises(ReadError, match="row 2"):
        open_dataset(url, "train", reads=reads)[2]


def test_storage_that_arrayrecord_cannot_read_is_said_so() -> None:
    with pytest.raises(UserError, match="mount"):
        open_dataset("s3://bucket/data", "train")
