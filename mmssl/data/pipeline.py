"""The stream of batches: read ahead by Grain's threads, decoded in the view's pool.

Row j of the global batch at step s is a pure function of (seed, s, j): neither threads,
decode workers, nor the number of processes change it. So a position is one integer.
"""

import collections
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mmssl.data import order as order_lib
from mmssl.data.records import Record
from mmssl.data.sources import ReadError
from mmssl.data.views import Example, View
from mmssl.errors import UserError
from mmssl.types import RawBatch

# Before so many samples a fault share says little.
_MIN_SEEN = 200


class Source(Protocol):
    """Random access to records, as `sources.open_dataset` gives.

    One that storage does not give is a `sources.ReadError`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One process's rows of one global batch, as NumPy arrays.

    Attributes:
      raw: media [b, ...]; rows without media are zeros with present False.
      info: per row id, labels, start, window, faults, texts, and of `Pipeline.example`
        source and file; shorter than b where the last batch of an evaluation is padded.
    """

    raw: RawBatch
    info: list[dict[str, Any]]


def collate(examples: Sequence[Example]) -> HostBatch:
    """Stacks examples; those without info are padding and must come last."""
    names = sorted(examples[0]["present"])
    # RawBatch is typed for the device; on the host the same leaves are NumPy arrays.
    media: Any = {name: np.stack([e[name] for e in examples]) for name in names}
    present: Any = {
        name: np.array([e["present"][name] for e in examples]) for name in names
    }
    ids: Any = np.array([e["example_id"] for e in examples], np.uint32)
    colour: Any = None
    if "colour" in examples[0]:
        colour = np.stack([e["colour"] for e in examples])
    raw = RawBatch(media=media, present=present, example_id=ids, colour=colour)
    return HostBatch(raw, [e["info"] for e in examples if e["info"] is not None])


class _Examples:
    """Position in this process's stream -> example: what Grain's threads call.

    Position i is row i % local of the process's part of batch i // local, which are
    its shards of the global batch one after the other.
    """

    def __init__(self, pipeline: "Pipeline", first: int) -> None:
        self._pipeline = pipeline
        self._first = first

    def __len__(self) -> int:
        p = self._pipeline
        if p.steps is None:
            return sys.maxsize // p.batch * p.local - self._first
        return p.steps * p.local - self._first

    def __getitem__(self, index: int) -> Example:
        p = self._pipeline
        step, row = divmod(int(index) + self._first, p.local)
        mine, of = p.shards
        nth, row = divmod(row, p.batch // of)
        return p.example(step * p.batch + mine[nth] * (p.batch // of) + row)

    def __repr__(self) -> str:
        return "_Examples"


@dataclasses.dataclass
class FaultsMet:
    """Media faults that the samples of one source met.

    Attributes:
      counts: fault class to samples.
      files: fault class to the first `NAMED` files, as the build's manifest named them.
    """

    NAMED = 10

    counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, file: str) -> None:
        """One sample of `file` met a fault of class `name`."""
        self.counts[name] += 1
        named = self.files.setdefault(name, [])
        if len(named) < self.NAMED and file not in named:
            named.append(file)


class Pipeline:
    """Batches for training (endless, shuffled) or evaluation (one pass, in order).

    Args:
      sources: (source, weight) pairs. Weights set the share of each source in training,
        exactly over a window: see `order.Shuffled`; evaluation reads the sources one
        after the other.
      view: makes examples; it must have been made with the same `train`.
      batch: global batch size, over all processes.
      seed: of order, windows and augmentation.
      train: endless and shuffled; each source is reshuffled every epoch.
      threads: that wait for the decode pool; None: two more than it has workers.
      prefetch: examples read ahead of the batch under way; None: one batch.
      shards: (those that this process feeds, ascending; of how many equal parts of
        the batch); see `parallel.mesh.process_rows`.
      max_fault_fraction: stop when a larger share of samples met a media fault.

    Attributes:
      met: per source, the faults of the batches given so far.
      seen: samples given so far by this process (padding excluded).
      local: rows of a batch that this process feeds.

    Raises:
      ValueError: the batch does not divide over the shards.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        view: View,
        *,
        batch: int,
        seed: int,
        train: bool,
        threads: int | None = None,
        prefetch: int | None = None,
        shards: tuple[Sequence[int], int] = ((0,), 1),
        max_fault_fraction: float = 0.1,
    ) -> None:
        if not sources or any(weight <= 0 for _, weight in sources):
            raise ValueError("sources: expected at least one, with positive weights")
        mine, of = shards
        if batch < 1 or batch % of:
            raise ValueError(
                f"global batch {batch} is not divisible by {of} shards; "
                f"nearest valid: {max(1, round(batch / of)) * of}"
            )
        if not mine or not all(0 <= shard < of for shard in mine):
            raise ValueError(f"shards {shards}: expected (indices, count), all < count")
        if view.train != train:
            raise ValueError(f"view.train is {view.train}, the pipeline's is {train}")
        self.view = view
        self.batch = batch
        self.local = batch // of * len(mine)
        self.seed = seed
        self.train = train
        self.shards = shards
        self.met = [FaultsMet() for _ in sources]
        self.seen = 0
        self._faulty = 0
        self._unread = ""
        self._max_fault_fraction = max_fault_fraction
        self._threads = view.pool.workers + 2 if threads is None else threads
        self._prefetch = self.local if prefetch is None else prefetch
        self._step = 0
        self._iterator: Iterator[HostBatch] | None = None
        self._sources = [source for source, _ in sources]
        lengths = [len(source) for source in self._sources]
        if train:
            weights = [weight for _, weight in sources]
            self._order = order_lib.Shuffled(lengths, weights, seed)
            self._total = None
        else:
            self._order = order_lib.InOrder(lengths)
            self._total = len(self._order) * view.windows

    @property
    def samples(self) -> int | None:
        """Samples of one pass, over all processes; None: endless."""
        return self._total

    @property
    def steps(self) -> int | None:
        """Batches in one pass; None: endless."""
        return None if self._total is None else -(-self._total // self.batch)

    @property
    def faults(self) -> collections.Counter[str]:
        """Fault class to count, over all sources."""
        return sum((met.counts for met in self.met), collections.Counter())

    def example(self, position: int) -> Example:
        """The example at a position of the stream of all processes.

        A record that cannot be read is a fault of class `read`, with nothing in it.
        Its `info` also has `source`, an index, and `file`, of the media.
        """
        if self._total is not None and position >= self._total:
            return self.view.empty()
        rng = np.random.default_rng([self.seed, position]) if self.train else None
        place, window = divmod(position, self.view.windows)
        source, row = self._order[place]
        try:
            record = self._sources[source][row]
        except ReadError as error:
            self._unread = str(error)
            file = f"{self._sources[source]!r}[{row}]"
            example = self.view.faulty(file, "read", window=window)
        else:
            file = record.media_name
            example = self.view(record, rng, window=window)
        example["info"] |= {"source": source, "file": file}
        return example

    def _open(self) -> Iterator[HostBatch]:
        grain = order_lib.import_grain()
        examples: Any = _Examples(self, self._step * self.local)
        options = grain.ReadOptions(
            num_threads=self._threads, prefetch_buffer_size=self._prefetch
        )
        stream = grain.MapDataset.source(examples).to_iter_dataset(options)
        return iter(stream.batch(self.local, batch_fn=collate))

    def __iter__(self) -> "Pipeline":
        """Training goes on where it is; evaluation starts over."""
        if not self.train:
            self._step = 0
            self.close()
        return self

    def __next__(self) -> HostBatch:
        """The next batch.

        Raises:
          UserError: too many samples met a media fault.
        """
        if self._iterator is None:
            self._iterator = self._open()
        found = next(self._iterator)
        self._step += 1
        self._count(found)
        return found

    def _count(self, found: HostBatch) -> None:
        self.seen += len(found.info)
        for info in found.info:
            for name in info["faults"]:
                self.met[info["source"]].add(name, info["file"])
            self._faulty += bool(info["faults"])
        share = self._faulty / max(self.seen, 1)
        if self.seen >= _MIN_SEEN and share > self._max_fault_fraction:
            unread = f" Not read, last: {self._unread}." if self._unread else ""
            raise UserError(
                f"{self._faulty} of {self.seen} samples ({share:.0%}) met a media "
                f"fault, more than data.max_fault_fraction="
                f"{self._max_fault_fraction:g}: {dict(self.faults)}; look for the "
                f"cause with `mmssl data validate`, or raise the limit.{unread}"
            )

    def get_state(self) -> dict[str, Any]:
        """The position: JSON-able, and the same in every process."""
        return {"step": self._step, "seed": self.seed, "batch": self.batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position, on any number of processes.

        Raises:
          UserError: the state belongs to another seed or global batch.
        """
        for key, mine in (("seed", self.seed), ("batch", self.batch)):
            if state[key] != mine:
                raise UserError(
                    f"the saved data position was made with {key}={state[key]}, this "
                    f"run has {key}={mine}: the order would differ; set {key} back, or "
                    "start a new workdir"
                )
        self._step = int(state["step"])
        self.close()

    def close(self) -> None:
        """Drops what was read ahead; iteration goes on from the same position."""
        if self._iterator is not None:
            close = getattr(self._iterator, "close", None)
            if close is not None:
                close()
            self._iterator = None
