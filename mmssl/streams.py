"""The data of a run: decode pool, streams of batches, what the datasets hold."""

import collections
import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmssl import config as config_lib
from mmssl import files
from mmssl.data import pipeline, records, sources, views
from mmssl.data.faults import FAULTS, Limits
from mmssl.data.pool import DecodePool
from mmssl.experiment import Experiment
from mmssl.parallel import distributed
from mmssl.parallel import mesh as mesh_lib


@contextlib.contextmanager
def open_pool(experiment: Experiment) -> Iterator[DecodePool]:
    """Worker processes under the config's limits."""
    data = experiment.config["data"]
    limits = config_lib.build(Limits, "data.limits", **(data.get("limits") or {}))
    with DecodePool(data.get("workers"), limits) as pool:
        yield pool


def make_view(experiment: Experiment, pool: DecodePool, **kwargs: Any) -> views.View:
    """From records to examples as the config wants them; `train`, `windows` added."""
    for name, part in views.PARTS.items():
        entry = experiment.view_kwargs[name]
        if entry is not None:
            config_lib.build(part, f"data.{name}", **entry)  # names a mistyped key
    return config_lib.build(
        views.View,
        "data",
        pool=pool,
        tokenizer=experiment.tokenizer,
        **experiment.view_kwargs,
        **kwargs,
    )


def make_reads(experiment: Experiment) -> sources.Reads:
    """How patient reading is, by the config."""
    entry = experiment.config["data"].get("reads") or {}
    return config_lib.build(sources.Reads, "data.reads", **entry)


def reading_threads(experiment: Experiment, pool: DecodePool) -> int:
    """Threads that read and wait for the pool; a bucket's answers take their time."""
    remote = any(records.in_bucket(path) for path, _ in experiment.datasets)
    return experiment.config["data"].get("threads") or (
        pool.workers + (16 if remote else 2)
    )


def train_sources(experiment: Experiment) -> list[tuple[pipeline.Source, float]]:
    """The datasets' training splits and their weights."""
    split, reads = (
        experiment.config["data"].get("split", "train"),
        make_reads(experiment),
    )
    return [
        (sources.open_dataset(path, split, reads=reads), weight)
        for path, weight in experiment.datasets
    ]


def train_pipeline(
    experiment: Experiment,
    pool: DecodePool,
    *,
    read: Sequence[tuple[pipeline.Source, float]] | None = None,
) -> pipeline.Pipeline:
    """The endless stream of training batches, this process's rows.

    Args:
      experiment: the config's parts.
      pool: decodes the media.
      read: sources and weights; None: `train_sources`.

    Raises:
      UserError: the batch does not divide, see `Experiment.check_rows`.
    """
    experiment.check_rows()
    data = experiment.config["data"]
    return pipeline.Pipeline(
        train_sources(experiment) if read is None else read,
        make_view(experiment, pool, train=True),
        batch=experiment.config["batch"],
        seed=experiment.config["seed"],
        train=True,
        threads=reading_threads(experiment, pool),
        shards=mesh_lib.process_rows(experiment.mesh),
        max_fault_fraction=data.get("max_fault_fraction", 0.1),
    )


class _Some:
    """At most so many of a source's records, evenly over it."""

    def __init__(self, source: pipeline.Source, most: int) -> None:
        self._source, self._count = source, min(most, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> records.Record:
        return self._source[int(index) * len(self._source) // self._count]


def eval_pipeline(
    experiment: Experiment,
    pool: DecodePool,
    *,
    path: str,
    split: str,
    batch: int,
    windows: int,
    clips: int | None = None,
) -> pipeline.Pipeline:
    """One pass over a split, in order, without augmentation: this process's rows.

    Args:
      experiment: how its data is seen.
      pool: decodes.
      path: a dataset.
      split: of it.
      batch: at least; rounded up to what the mesh divides.
      windows: of each clip.
      clips: that many at most, evenly over the split; None = all.
    """
    found = sources.open_dataset(path, split, reads=make_reads(experiment))
    return pipeline.Pipeline(
        [(found if clips is None else _Some(found, clips), 1.0)],
        make_view(experiment, pool, train=False, windows=windows),
        batch=mesh_lib.round_up(batch, experiment.mesh),
        seed=0,
        train=False,
        threads=reading_threads(experiment, pool),
        shards=mesh_lib.process_rows(experiment.mesh),
        max_fault_fraction=1.0,
    )


def faults(data: pipeline.Pipeline) -> list[pipeline.FaultsMet]:
    """Media faults met so far in all processes, per source; all call it together.

    The files are some of those that this process met.
    """
    counts = np.array([[met.counts[name] for name in FAULTS] for met in data.met])
    # Processes that feed the same rows have met the same ones.
    counts = distributed.total(counts) * data.batch // data.local // jax.process_count()
    return [
        pipeline.FaultsMet(
            +collections.Counter(dict(zip(FAULTS, row, strict=True))), met.files
        )
        for row, met in zip(counts.tolist(), data.met, strict=True)
    ]


def describe(experiment: Experiment) -> dict[str, Any]:
    """The datasets of a run and what they hold, its tokenizer, for data.json."""
    found = []
    for path, weight in experiment.datasets:
        metadata = records.read_metadata(path)
        report = json.loads((records.folder(path) / records.REPORT_FILE).read_text())
        found.append(
            {
                "path": path,
                "weight": weight,
                "splits": metadata["splits"],
                "fingerprint": fingerprint(path),
                **{k: report[k] for k in ("used", "faults", "modalities")},
                "partial": report.get("partial", {}),
                "fault_files": {
                    name: some[:3]
                    for kind in ("files", "partial_files")
                    for name, some in report.get(kind, {}).items()
                },
                "hours": report["duration_seconds"] / 3600,
                "coverage": metadata.get("dataset", {}).get("coverage", {}),
            }
        )
    described: dict[str, Any] = {"datasets": found, "hardware": hardware()}
    if experiment.tokenizer_path is not None:
        described["tokenizer"] = tokenizer_hash(experiment)
    return described


def fingerprint(path: str) -> str:
    """SHA-256 of a dataset's content, by the hashes of its files."""
    return files.sha256_of_json(records.read_metadata(path)["files"])


def tokenizer_hash(experiment: Experiment) -> str | None:
    """SHA-256 of the tokenizer's file; None without text."""
    path = experiment.tokenizer_path
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def hardware() -> str:
    """The accelerators of this run, in words."""
    kinds = [d.device_kind for d in jax.devices()]
    counts = ", ".join(f"{kinds.count(k)} x {k}" for k in sorted(set(kinds)))
    return f"{counts} ({platform.machine()} host, jax {jax.__version__})"
