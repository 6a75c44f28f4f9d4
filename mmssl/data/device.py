"""Batches onto devices, ahead of the step that needs them: the one crossing."""

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from mmssl.data.pipeline import HostBatch
from mmssl.types import RawBatch


class DeviceBatch(NamedTuple):
    """A batch on devices.

    Attributes:
      raw: arrays with the global batch as leading axis.
      info: of this process's rows.
      wait_seconds: how long the consumer waited for it.
      state: the data position after it; empty if the source has none.
    """

    raw: RawBatch
    info: list[dict[str, Any]]
    wait_seconds: float
    state: dict[str, Any]


class _End(NamedTuple):
    """The source is exhausted, or failed with `error`."""

    error: BaseException | None


def put(raw: RawBatch, sharding: jax.sharding.Sharding) -> RawBatch:
    """One process's rows [b / processes, ...] to global arrays [b, ...].

    Args:
      raw: NumPy arrays.
      sharding: of the leading axis, the same for all arrays.
    """
    # Explicit copies are meant here, whatever the caller's guard forbids.
    with jax.transfer_guard("allow"):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
            raw,
        )


def to_device(
    batches: Iterable[HostBatch],
    sharding: jax.sharding.Sharding,
    *,
    prefetch: int = 2,
) -> Generator[DeviceBatch, None, None]:
    """Moves batches in a background thread, `prefetch` of them ahead.

    Closing the generator, or leaving it to the garbage collector, ends the thread. An
    error of the source is raised here, at the batch that met it.

    Args:
      batches: an iterable; `get_state()`, if it has one, is read after each batch.
      sharding: of the leading axis.
      prefetch: batches held on devices beyond the one in use, at least 1.
    """
    if prefetch < 1:
        raise ValueError(f"prefetch must be at least 1, found {prefetch}")
    ready: queue.Queue[DeviceBatch | _End] = queue.Queue(maxsize=prefetch)
    stop = threading.Event()

    def offer(item: DeviceBatch | _End) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def produce() -> None:
        get_state = getattr(batches, "get_state", None)
        try:
            for found in batches:
                state = {} if get_state is None else get_state()
                offer(DeviceBatch(put(found.raw, sharding), found.info, 0.0, state))
                if stop.is_set():
                    return
            offer(_End(None))
        except BaseException as error:
            offer(_End(error))

    thread = threading.Thread(target=produce, name="to_device", daemon=True)
    thread.start()
    try:
        while True:
            begin = time.perf_counter()
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item._replace(wait_seconds=time.perf_counter() - begin)
    finally:
        stop.set()
        thread.join(timeout=60)
