"""Where the shards of a build are written: in this process, or on Apache Beam."""

import atexit
import contextlib
import functools
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmssl.data import records, shards, stores
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError

LOCAL = "DirectRunner"
"""Beam's runner with processes of this machine."""

_LOOK_SECONDS = 1.0

Count = Callable[[int], None]
"""Called with rows done so far, of all tasks."""


def run(
    root: stores.Path,
    tasks: Sequence[shards.Task],
    *,
    settings: shards.Settings,
    runner: str | None,
    options: Any,
    workers: int,
    pool: DecodePool | None,
    count: Count,
) -> None:
    """Does the tasks.

    Args:
      root: has their plan; gets shards and outcomes.
      runner: of Apache Beam; None: this process.
      options: what `options` gives for the runner.
      workers: decoding processes of this machine, together.
      pool: an open pool to use instead, without a runner.
      count: gets the progress.
    """
    if not tasks:
        return
    if runner is None:
        with contextlib.ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(DecodePool(workers, settings.limits))
            _here(root, tasks, settings=settings, pool=pool, count=count)
        return
    # A worker of a cluster has one process per core; here there may be fewer tasks
    # than cores.
    decoders = -(-workers // min(workers, len(tasks))) if runner == LOCAL else 1
    _on_beam(
        root,
        tasks,
        settings=settings,
        runner=runner,
        options=options,
        decoders=decoders,
        count=count,
    )


def _here(
    root: stores.Path,
    tasks: Sequence[shards.Task],
    *,
    settings: shards.Settings,
    pool: DecodePool,
    count: Count,
) -> None:
    """One shard after the other; the pool decodes."""
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        count(done)

    for task in tasks:
        shards.write(root, task, settings=settings, pool=pool, count=one)


def default() -> str | None:
    """Beam's local runner where Beam is installed."""
    return LOCAL if importlib.util.find_spec("apache_beam") else None


def options(runner: str, workers: int, extra: Sequence[str]) -> Any:
    """Beam's `PipelineOptions`.

    Args:
      workers: processes of the local runner.
      extra: KEY=VALUE or KEY, as the runner calls them.

    Raises:
      UserError: Beam is not installed.
    """
    logging.disable(logging.WARNING)  # Beam tells of what it does not find
    try:
        import apache_beam  # noqa: F401  all of it, while nobody listens
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as e:
        raise UserError(
            f"--runner {runner} needs Apache Beam: run `pip install 'mmssl[beam]'`, or "
            f"leave --runner out ({e})"
        ) from e
    finally:
        logging.disable(logging.NOTSET)
    flags = [f"--{pair.removeprefix('--')}" for pair in extra]
    if runner == LOCAL:
        local = (
            "direct_running_mode=multi_processing",
            f"direct_num_workers={workers}",
            "default_sdk_harness_log_level=ERROR",
        )
        # First, so that the user's own come last and win.
        flags = [*(f"--{pair}" for pair in local), *flags]
    return PipelineOptions(flags)


@functools.cache
def _pool(decoders: int, settings: shards.Settings) -> DecodePool:
    """One for all threads of a Beam process."""
    pool = DecodePool(decoders, settings.limits)
    atexit.register(pool.close)
    return pool


@functools.cache
def _follow(driver: int) -> None:
    """Ends this process soon after the driver, which is not always its parent."""

    def look() -> None:
        while True:
            try:
                os.kill(driver, 0)
            except OSError:  # nobody's number, or another user's by now
                os._exit(1)
            time.sleep(_LOOK_SECONDS)

    threading.Thread(target=look, daemon=True).start()


def _tasks(_: Any, *, root: str) -> Iterator[shards.Task]:
    return shards.read_tasks(stores.place(root))


def _write(
    task: shards.Task,
    *,
    root: str,
    settings: shards.Settings,
    decoders: int,
    driver: int | None,
) -> None:
    if driver is not None:
        _follow(driver)
    pool = _pool(decoders, settings)
    shards.write(stores.place(root), task, settings=settings, pool=pool)


@contextlib.contextmanager
def _watched(
    root: stores.Path, tasks: Sequence[shards.Task], count: Count
) -> Iterator[None]:
    """Counts the rows of the outcomes that appear, wherever they are written."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            there = stores.names(root / records.OUTCOMES)
            count(sum(task.rows for task in tasks if task.outcome in there))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _on_beam(
    root: stores.Path,
    tasks: Sequence[shards.Task],
    *,
    settings: shards.Settings,
    runner: str,
    options: Any,
    decoders: int,
    count: Count,
) -> None:
    """A pipeline whose elements are tasks; the shards never pass through it.

    It reads the tasks from a file, as they are not to be a part of its own description:
    Dataflow takes 10 MB of that.

    Args:
      decoders: decoding processes of each Beam process.
    """
    import apache_beam as beam

    name = stores.absolute(root)
    write = functools.partial(
        _write,
        root=name,
        settings=settings,
        decoders=decoders,
        driver=os.getpid() if runner == LOCAL else None,
    )
    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
    except (ValueError, ImportError) as e:
        raise UserError(f"--runner {runner}: {e}") from e
    shards.write_tasks(root, tasks)
    with _watched(root, tasks, count), pipeline:
        _ = (
            pipeline
            | beam.Impulse()
            | "Tasks" >> beam.FlatMap(functools.partial(_tasks, root=name))
            | "Spread" >> beam.Reshuffle()
            | "Write shards" >> beam.Map(write)
        )
    count(sum(task.rows for task in tasks))
