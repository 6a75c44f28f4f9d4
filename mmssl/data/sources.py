"""Built datasets, in a folder or a bucket, as random-access sources of records."""

import dataclasses
import functools
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mmssl.data import records
from mmssl.errors import UserError, nearest

T = TypeVar("T")

# What storage and damaged shards raise; ArrayRecord often without a message.
_FAILED = (OSError, RuntimeError, ValueError)
# Reads of one source that may hang at once, each in a thread of its own.
_MAX_HANGING = 256


class ReadError(UserError):
    """Storage does not give a record, after all attempts."""


@dataclasses.dataclass(frozen=True)
class Reads:
    """How patient reading is.

    Attributes:
      attempts: of one read.
      wait: seconds before the second attempt; twice as long before each further one,
        less a random part, so that many readers do not come back at once.
      seconds: after which an attempt counts as failed; None: 60 from a bucket, no
        limit from a folder.
    """

    attempts: int = 4
    wait: float = 0.5
    seconds: float | None = None

    def __post_init__(self) -> None:
        seconds = 1.0 if self.seconds is None else self.seconds
        if self.attempts < 1 or self.wait < 0 or seconds <= 0:
            raise ValueError(
                f"attempts must be at least 1, wait not negative and seconds positive; "
                f"found {self}"
            )


class RecordSource:
    """The records of one split; a `grain.RandomAccessDataSource`.

    Safe to call from many threads at once; each holds one record.

    Args:
      path: the dataset's folder or bucket.
      split: a split's name or a TFDS slice of one ("train[:10%]").
      opener: makes TFDS's data source of examples; called again after a failed read.
      reads: how patient it is.

    Raises:
      ReadError: it cannot be opened.
    """

    def __init__(
        self,
        path: str,
        split: str,
        opener: Callable[[], Any],
        reads: Reads | None = None,
    ) -> None:
        self.path = path
        self.split = split
        self._reads = reads or Reads()
        self._opener = opener
        self._free = threading.BoundedSemaphore(_MAX_HANGING)
        self._data: Any = None
        self._rows = self._patiently(lambda: len(self._opened()), "cannot be opened")

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> records.Record:
        """One record.

        Raises:
          ReadError: storage does not give it, after all attempts.
          UserError: what it gives is no record of this schema.
        """
        row = int(index)
        example = self._patiently(
            lambda: self._opened()[row], f"row {row} cannot be read"
        )
        try:
            return records.from_example(example)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.path}: row {row} of split {self.split!r} is not of this schema "
                f"({type(error).__name__}: {error}); build the dataset again"
            ) from error

    def __repr__(self) -> str:
        return f"RecordSource({self.path!r}, {self.split!r})"

    def _opened(self) -> Any:
        data = self._data
        if data is None:
            data = self._data = self._opener()
        return data

    def _patiently(self, read: Callable[[], T], problem: str) -> T:
        """`read()`, again with back-off where it fails or takes too long."""
        reads, last = self._reads, None
        for attempt in range(reads.attempts):
            if attempt:
                longest = reads.wait * 2 ** (attempt - 1)
                time.sleep(random.uniform(longest / 2, longest))
            try:
                return self._within(read, reads.seconds)
            except _FAILED as error:
                last = error
                self._data = None  # a reader that failed stays so
        raise ReadError(
            f"{self.path}: split {self.split!r}: {problem}, after {reads.attempts} "
            f"attempts ({type(last).__name__}: {last}); if the storage is well, find "
            f"damaged files with `mmssl data validate {self.path}`"
        ) from last

    def _within(self, read: Callable[[], T], seconds: float | None) -> T:
        """`read()`, given up after so long.

        A read cannot be interrupted: one that is given up goes on in its thread.

        Raises:
          TimeoutError: it took longer.
        """
        if seconds is None:
            return read()
        if not self._free.acquire(timeout=seconds):
            raise TimeoutError(f"{_MAX_HANGING} reads hang")
        done: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((read(), None))
            except Exception as error:
                done.put((None, error))
            finally:
                self._free.release()

        threading.Thread(target=run, name="read", daemon=True).start()
        try:
            value, error = done.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"more than {seconds:g} s") from None
        if error is not None:
            raise error
        return value


@functools.cache
def _builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(path)


def open_dataset(
    path: str | os.PathLike[str], split: str, *, reads: Reads | None = None
) -> RecordSource:
    """Opens one split of a dataset that `mmssl data build` wrote.

    ArrayRecord reads ranges of files in local folders and in `gs://` buckets.

    Args:
      path: the dataset's folder or bucket.
      split: a split's name or a TFDS slice of one ("train[:10%]").
      reads: how patient reading is.

    Raises:
      UserError: no dataset there, another schema version, an unknown or empty split,
        damaged files, storage that ArrayRecord cannot read.
    """
    reads = reads or Reads()
    if records.in_bucket(path):
        if not str(path).startswith("gs://"):
            raise UserError(
                f"{path}: ArrayRecord reads folders and gs:// buckets; mount this "
                "storage as a folder, or copy the dataset to one"
            )
        reads = dataclasses.replace(reads, seconds=reads.seconds or 60.0)
    folder = str(path) if records.in_bucket(path) else os.path.abspath(path)
    metadata = records.read_metadata(folder)
    name = split.split("[")[0]
    if name not in metadata["splits"]:
        names = sorted(metadata["splits"])
        raise UserError(
            f"{path}: no split {name!r}, it has {names}{nearest(name, names)}"
        )

    def opener() -> Any:
        try:
            return _builder(folder).as_data_source(split=split)
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"{path}: split {split!r} cannot be opened ({error}); give a split of "
                f"{sorted(metadata['splits'])}, or a slice of one like train[:10%]"
            ) from error

    source = RecordSource(str(path), split, opener, reads)
    if len(source) == 0:
        raise UserError(f"{path}: split {split!r} is empty; build with more clips")
    return source
