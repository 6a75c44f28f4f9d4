"""How fast the loader is alone: by stage, and beside the machine's decode limit."""

import collections
import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mmssl import costs, doctor, streams
from mmssl.data import bare, device, pipeline
from mmssl.data.clips import ClipRequest
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.parallel import mesh as mesh_lib

STAGES = {
    "read": "threads: storage to record",
    "decode": "worker processes; crop, size and mirroring too",
    "augment": "threads: draws, noise, the window's texts",
    "tokenize": "threads: texts to ids",
    "collate": "one thread: examples to a batch",
    "transfer": "one thread: host to device",
}
"""Stage to where it runs."""

_BATCH = 32
_ROUNDS = 3
_MFU = 0.4


class _Clock:
    """Adds up what calls take, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def of(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - begin

        return timed


class Recorder:
    """A decode pool that notes what it is asked for.

    Attributes:
      jobs: the calls that brought something, in order.
    """

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool
        self.workers = pool.workers
        self.probe = pool.probe
        self.jobs: list[bare.Job] = []

    def clip(self, src: bytes, request: ClipRequest) -> Any:
        found = self._pool.clip(src, request)
        if not found.faults:
            self.jobs.append((src, request))
        return found


class _Timed:
    """What it wraps, with one method timed."""

    def __init__(self, wrapped: Any, method: str, stage: str, clock: _Clock) -> None:
        self._wrapped = wrapped
        setattr(self, method, clock.of(stage, getattr(wrapped, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class _TimedSource:
    def __init__(self, source: pipeline.Source, clock: _Clock) -> None:
        self._source = source
        self._get = clock.of("read", source.__getitem__)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return self._get(index)


def loader_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all that only training needs set to the simplest.

    The batch is small, so that a pod's does not have to fit here, and goes to the
    devices that there are.
    """
    plain = {**config, "mesh": {"data": -1}, "harmonizer": {"weighting": "sum"}}
    mesh = mesh_lib.make_mesh(plain["mesh"])
    batch = mesh_lib.round_up(min(config["batch"], _BATCH), mesh)
    return {**plain, "batch": batch}


def measure(config: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """Measures the loader of a config.

    Args:
      config: resolved.
      seconds: about how long it takes, starting processes excluded.

    Returns:
      `stages` {name: ms per sample, in one thread}, `loader` and `decode` (samples/s:
      median, min, max), `loader_over_decode` of rounds in turn, `samples_per_core`,
      and what was used: `workers`, `threads`, `cores`, `batch`.

    Raises:
      UserError: the dataset has no media that decodes.
    """
    experiment = Experiment(loader_only(config))
    sharding = mesh_lib.batch_sharding(experiment.mesh)
    with streams.open_pool(experiment) as pool:
        stages, jobs = _stages(experiment, pool, sharding, seconds * 0.3)
        if not jobs:
            raise UserError(
                "no sample of this config has media that decodes: there is no decode "
                "limit to compare with; look at it with `mmssl data validate`"
            )
        with bare.decoders(jobs, pool.workers) as decoders:
            rates = _rates(experiment, pool, decoders, len(jobs), seconds * 0.7)
    shares = [a / b for a, b in zip(rates["loader"], rates["decode"], strict=True)]
    cores = doctor.cores()
    return {
        "stages": stages,
        **{name: _spread(values) for name, values in rates.items()},
        "loader_over_decode": _spread(shares),
        "samples_per_core": statistics.median(rates["loader"])
        / min(cores, pool.workers),
        "workers": pool.workers,
        "threads": streams.reading_threads(experiment, pool),
        "cores": cores,
        "batch": experiment.config["batch"],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values)}


def _stages(
    experiment: Experiment, pool: DecodePool, sharding: Any, seconds: float
) -> tuple[dict[str, float], list[bare.Job]]:
    """(milliseconds per sample of each stage, what was decoded)."""
    clock, recorder = _Clock(), Recorder(pool)
    read = [(_TimedSource(s, clock), w) for s, w in streams.train_sources(experiment)]
    stream = streams.train_pipeline(experiment, pool, read=read)
    view: Any = stream.view
    view.pool = _Timed(recorder, "clip", "decode", clock)
    if view.tokenizer is not None:
        view.tokenizer = _Timed(view.tokenizer, "encode", "tokenize", clock)
    example = clock.of("example", stream.example)
    collate = clock.of("collate", pipeline.collate)

    def transfer(found: pipeline.HostBatch) -> None:
        jax.block_until_ready(device.put(found.raw, sharding))

    transfer(collate([stream.example(i) for i in range(stream.local)]))  # warm
    clock.seconds.clear()
    recorder.jobs.clear()
    samples, end = 0, time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        rows = [example(samples + i) for i in range(stream.local)]
        clock.of("transfer", transfer)(collate(rows))
        samples += stream.local
    total = clock.seconds
    total["augment"] = total["example"] - sum(
        total[stage] for stage in ("read", "decode", "tokenize")
    )
    return {s: 1e3 * total[s] / samples for s in STAGES}, recorder.jobs


def _rates(
    experiment: Experiment,
    pool: DecodePool,
    decoders: bare.Decoders,
    jobs: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Samples/s of the loader and of bare decoding, in turns."""
    rates: dict[str, list[float]] = {"loader": [], "decode": []}
    stream = streams.train_pipeline(experiment, pool)
    with contextlib.closing(stream):
        next(stream)  # fills what is read ahead
        for _ in range(_ROUNDS):
            begin, before = time.perf_counter(), stream.seen
            while time.perf_counter() - begin < seconds / (2 * _ROUNDS):
                next(stream)
            rates["loader"].append(
                (stream.seen - before) / (time.perf_counter() - begin)
            )
            stream.close()  # or it would go on reading ahead
            done, spent = 0, 0.0
            while spent < seconds / (2 * _ROUNDS):
                spent += decoders.seconds(timeout=300)[0]
                done += jobs
            rates["decode"].append(done / spent)
            next(stream)
    return rates


def need(
    experiment: Experiment, *, step_seconds: float | None, topology: str | None
) -> dict[str, Any] | None:
    """Samples/s that one accelerator asks for, at the config's own batch.

    Args:
      experiment: of the config as it is.
      step_seconds: of a step, measured; or
      topology: `v5e-256`: on paper, at 40% of the chips' peak.

    Returns:
      `step_seconds`, `accelerators`, `samples_per_second` of each, `source`; None where
      neither is given.
    """
    if step_seconds is None and topology is None:
        return None
    chip, count = (None, 1) if topology is None else costs.topology(topology)
    source = "given"
    if step_seconds is None:
        assert chip is not None
        flops = costs.step_flops(experiment)
        step_seconds = flops / (chip.flops * count * _MFU)
        source = f"on paper: {topology} at {_MFU:.0%} of its peak"
    rate = experiment.config["batch"] / step_seconds / count
    return {
        "step_seconds": step_seconds,
        "accelerators": count,
        "samples_per_second": rate,
        "source": source,
    }
