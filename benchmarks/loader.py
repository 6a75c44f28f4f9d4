"""The loader's samples/s beside the decode limit: the same clips, without a loader.

python benchmarks/loader.py --out loader.json
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import harness

from mmssl import commands, streams
from mmssl.data.clips import ClipRequest
from mmssl.errors import UserError

CONFIG = harness.ROOT / "configs" / "demo.py"

Job = tuple[bytes, ClipRequest]
"""One call of the decoder: encoded media, and what of it is wanted."""

_jobs: list[Job] = []  # of a decoding process


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "loader",
        about="Samples/s of the training pipeline alone (no model), beside the rate at "
        "which as\nmany bare processes decode the very same clips and do nothing else.",
        example="python benchmarks/loader.py --data data/mine --config configs/grid.py",
    )
    made.add_argument(
        "--data",
        metavar="DIR",
        help="a dataset (default: a demo world of 200 clips is made, quick: 48)",
    )
    made.add_argument(
        "--config", metavar="PATH[:ARG]", default=str(CONFIG), help="a recipe"
    )
    made.add_argument("--rounds", metavar="N", type=int, help="default: 10 (quick: 2)")
    made.add_argument(
        "--batches", metavar="N", type=int, help="a round; default: 8 (quick: 2)"
    )
    return made


class Recorder:
    """A decode pool that notes what it is asked for."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.workers = pool.workers
        self.calls: list[Job] = []

    def probe(self, src: Any, *, full: bool = True) -> Any:
        return self._pool.probe(src, full=full)

    def clip(self, src: Any, request: ClipRequest) -> Any:
        self.calls.append((src, request))
        return self._pool.clip(src, request)


def _take(jobs: list[Job]) -> None:
    _jobs[:] = jobs


def _decode(index: int) -> bool:
    """Decodes one job here and drops the result: nothing is sent back but this."""
    from mmssl.data import media
    from mmssl.data.faults import MediaFault

    try:
        media.decode_clip(*_jobs[index])
    except MediaFault:
        return False
    return True


def demo_dataset(folder: pathlib.Path, *, clips: int) -> str:
    """Writes a demo world and builds it, with a word tokenizer."""
    from mmssl.data import build, demo, tokenizer

    progress = commands.counter("clips")
    demo.write_demo(folder / "media", clips=clips, progress=progress)
    manifest = folder / "media" / "manifest.jsonl"
    build.build(manifest=manifest, out=folder / "data", progress=progress)
    tokenizer.train_tokenizer(dataset=folder / "data", kind="word")
    return str(folder / "data")


def recorded(config: dict[str, Any], pool: Any, *, samples: range) -> list[Job]:
    """What the decoder is asked for by these samples of the stream.

    Args:
      config: of the run.
      pool: decodes them.
      samples: positions in the stream.

    Raises:
      UserError: some samples have no media.
    """
    from mmssl.experiment import Experiment

    # One thread: calls come in the order of the stream.
    single = {**config, "data": {**config["data"], "threads": 1}}
    recorder: Any = Recorder(pool)
    stream = streams.train_pipeline(Experiment(single), recorder)
    with contextlib.closing(stream):
        while stream.seen < samples.stop:
            found = next(stream)
            if not all(
                any(present[row] for m, present in found.raw.present.items())
                for row in range(len(found.info))
            ):
                raise UserError("a sample has nothing in it: every clip needs media")
    if len(recorder.calls) < samples.stop:
        raise UserError(
            f"{len(recorder.calls)} of {samples.stop} samples have media; this "
            "benchmark needs a dataset in which all have"
        )
    return recorder.calls[samples.start : samples.stop]


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """Rounds of: the loader, then the bare decoders."""
    from mmssl import config as config_lib
    from mmssl.data.pool import DecodePool
    from mmssl.experiment import Experiment

    quick = arguments.quick
    rounds = arguments.rounds or (2 if quick else 10)
    batches = arguments.batches or (2 if quick else 8)
    with contextlib.ExitStack() as stack:
        path = arguments.data
        if path is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmssl-"))
            path = demo_dataset(pathlib.Path(made), clips=48 if quick else 200)
        small = ["--config.batch=8"] if quick else []
        overrides = [f"--config.data.path={path}", *small, *arguments.overrides]
        config = config_lib.load(arguments.config, overrides)
        batch = config["batch"]
        pool = stack.enter_context(DecodePool(config["data"]["workers"]))
        # The first batch fills the loader's buffers and is not timed.
        jobs = recorded(config, pool, samples=range(batch, batch * (1 + batches)))
        bare = stack.enter_context(
            multiprocessing.get_context("spawn").Pool(pool.workers, _take, (jobs,))
        )
        stream = streams.train_pipeline(Experiment(config), pool)
        stack.callback(stream.close)
        start = stream.get_state()

        def load() -> float:
            stream.set_state(start)
            next(stream)
            begin = time.perf_counter()
            for _ in range(batches):
                next(stream)
            seconds = time.perf_counter() - begin
            stream.close()
            time.sleep(0.5)  # the clips that were under way
            return seconds

        def decode() -> float:
            begin = time.perf_counter()
            done = bare.map(_decode, range(len(jobs)), chunksize=1)
            seconds = time.perf_counter() - begin
            if not all(done):
                raise UserError(
                    f"{done.count(False)} of {len(done)} clips do not decode"
                )
            return seconds

        decode()  # imports the decoder in every process
        load()
        times: dict[str, list[float]] = {"loader": [], "decode": []}
        for _ in range(rounds):
            times["loader"].append(load())
            times["decode"].append(decode())
        workers, threads = pool.workers, config["data"]["threads"] or pool.workers + 2
    samples = len(jobs)
    rates = {name: [samples / s for s in t] for name, t in times.items()}
    share = harness.ratios(rates["loader"], rates["decode"])
    per_core = [r / workers for r in rates["loader"]]
    summary = {
        "loader_samples_per_second": harness.spread(rates["loader"], unit="1/s"),
        "loader_samples_per_second_per_worker": harness.spread(per_core, unit="1/s"),
        "decode_samples_per_second": harness.spread(rates["decode"], unit="1/s"),
        "loader_over_decode": harness.spread(share),
    }
    settings = {
        "dataset": "given" if arguments.data else "demo",
        "config": os.path.basename(arguments.config),
        "data": {k: config["data"][k] for k in ("seconds", "video", "audio", "text")},
        "batch": batch,
        "batches": batches,
        "rounds": rounds,
        "workers": workers,
        "threads": threads,
    }
    return harness.Measured(summary, settings, {"seconds": times})


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
