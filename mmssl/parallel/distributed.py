"""Several processes as one run: their start, with a deadline and names, and their end.

`jax.distributed` finds the other processes and watches over them. Here are the choice
of how they find each other, one message where somebody is missing, and what one process
does for all.
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from mmssl.errors import AgainError, UserError, nearest
from mmssl.parallel import rollcall

T = TypeVar("T")

CLUSTERS = ("none", "auto", "tpu", "slurm", "ompi", "mpi4py", "kubernetes")
"""Who started the processes; "none": nobody, or an explicit coordinator."""

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Stand in for the explicit arguments of `initialize`."""

_LAST = 3.0
"""Seconds by which process 0 outlives the others at an error."""

_BAD_INPUT, _FAILED = -1, -2
"""Sizes that stand for what kept process 0 from an answer."""

_hosts: list[str] = []


def initialize(
    cluster: str = "none",
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    start_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Joins this process to the others of its run. Call it before any use of a device.

    With `cluster="none"` and neither explicit arguments nor their environment variables
    (`ENVIRONMENT`) it does nothing: the run is this process alone.

    Args:
      cluster: one of `CLUSTERS`; what it knows need not be given.
      coordinator: `HOST:PORT` of process 0, a port that is free there.
      processes: how many there are.
      process: which of them this is, from 0.
      start_timeout: seconds to wait for all of them.
      heartbeat_timeout: seconds without a sign of life after which a process counts as
        dead, and the others end.

    Raises:
      AgainError: a process did not come in time, and which.
      UserError: the arguments contradict each other, or the cluster is not there.
    """
    if cluster not in CLUSTERS:
        hint = nearest(cluster, CLUSTERS)
        raise UserError(
            f"unknown cluster {cluster!r}{hint}; known: {', '.join(CLUSTERS)}"
        )
    for name, value in (("start", start_timeout), ("heartbeat", heartbeat_timeout)):
        if value < 1:
            raise UserError(f"the {name} timeout must be at least 1 s, found {value}")
    if cluster == "none":
        coordinator, processes, process = _explicit(coordinator, processes, process)
        if coordinator is None:
            return
    try:
        coordinator, processes, process, devices = _detected(
            cluster, coordinator, processes, process, start_timeout
        )
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"--cluster {cluster} does not find its processes: {error}; start them "
            "with its launcher, or give --coordinator, --processes and --process"
        ) from error
    _hosts[:] = rollcall.roll_call(
        coordinator, processes=processes, process=process, timeout=start_timeout
    )
    # It carries notices of preemption between processes; see train.preemption.
    jax.config.update("jax_enable_preemption_service", True)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=start_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
    )


def _detected(
    cluster: str,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    timeout: int,
) -> tuple[str, int, int, Sequence[int] | None]:
    """What is not given, from the cluster; and the devices that are this process's."""
    ids = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices = [int(i) for i in ids.split(",")] if ids else None
    if cluster != "none":
        # Not public, but `initialize` aborts the process where somebody is missing, so
        # what it would find must be known before.
        found = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, devices, _method(cluster), timeout
        )
        coordinator, processes, process, devices = found
    if coordinator is None or processes is None or process is None:
        raise ValueError("its environment variables are not set")
    return coordinator, processes, process, devices


def _method(cluster: str) -> str | None:
    """jax's name of a way to find the others; None = the first that fits."""
    if cluster == "tpu":
        gke = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & set(os.environ)
        return "gketpu" if gke else "gcetpu"
    return {"auto": None, "kubernetes": "k8s"}.get(cluster, cluster)


def _explicit(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str | None, int | None, int | None]:
    """The arguments, where absent from the environment: all three, or none."""
    given: list[Any] = [coordinator, processes, process]
    for i, name in enumerate(ENVIRONMENT):
        text = os.environ.get(name)
        if given[i] is None and text:
            if i and not text.isdecimal():
                raise UserError(f"{name}: expected a number, found {text!r}")
            given[i] = int(text) if i else text
    found = dict(zip(("--coordinator", "--processes", "--process"), given, strict=True))
    missing = [name for name, value in found.items() if value is None]
    if len(missing) == 3:
        return None, None, None
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing: a run of several processes needs "
            f"{', '.join(found)} (or {', '.join(ENVIRONMENT)}), or --cluster"
        )
    address, count, index = str(given[0]), int(given[1]), int(given[2])
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"--coordinator: expected HOST:PORT, found {address!r}")
    if not 0 <= index < count:
        raise UserError(f"--process {index} is not one of {count}: they count from 0")
    return address, count, index


def several() -> bool:
    """Whether this process is one of a run of several."""
    return jax.distributed.is_initialized()


def first() -> bool:
    """Whether this is the process that writes, prints and decides for all."""
    return jax.process_index() == 0


def hosts() -> list[str]:
    """The machine of each process, in their order."""
    return list(_hosts) or [socket.gethostname()]


def from_first(ask: Callable[[], T]) -> T:
    """What process 0 finds, in every process. All processes call it together.

    Args:
      ask: is called in process 0 only; gives what JSON holds.

    Raises:
      UserError: `ask` met bad input; in process 0 its own error.
      AgainError: it failed otherwise, as at a disk; in process 0 its own error.
    """
    if not several():
        return ask()
    found, failure, size = b"", None, 0
    if first():
        try:
            found = json.dumps(ask()).encode()
            size = len(found)
        except Exception as error:
            again = isinstance(error, AgainError) or not isinstance(error, UserError)
            failure, size = error, _FAILED if again else _BAD_INPUT
    with jax.transfer_guard("allow"):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(size)))
        if failure is not None:
            raise failure
        if size < 0:
            kind = UserError if size == _BAD_INPUT else AgainError
            raise kind("process 0 cannot go on: see its message")
        data = np.frombuffer(found or bytes(size), np.uint8)
        return json.loads(bytes(multihost_utils.broadcast_one_to_all(data)))


def gather(value: Any) -> list[Any]:
    """What JSON holds of each process, in their order. All call it together."""
    if not several():
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with jax.transfer_guard("allow"):
        sizes = multihost_utils.process_allgather(np.int32(len(data)))
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: len(data)] = data
        found = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(found, sizes)]


def agreed(ask: Callable[[], T]) -> T:
    """`ask()`; where it fails in one process, all fail, and none waits for it.

    Raises:
      UserError: bad input, or a disk, in another process; in it its own error.
      RuntimeError: another process failed otherwise.
    """
    answer: Any = None
    failure: Exception | None = None
    try:
        answer = ask()
    except Exception as error:
        failure = error
    mild = isinstance(failure, (UserError, OSError))
    said = gather([mild, str(failure)] if failure else None)
    if failure is not None:
        # Where another one met a bug, all must end.
        if mild and not all(entry[0] for entry in said if entry):
            raise RuntimeError("another process failed: see its message") from failure
        raise failure
    failures = [(i, *entry) for i, entry in enumerate(said) if entry]
    for i, mild, message in sorted(failures, key=lambda found: found[1]):
        raise (UserError if mild else RuntimeError)(f"process {i}: {message}")
    return answer


def fetch(x: jax.Array) -> np.ndarray:
    """A global array on the host, whole. All processes call it together."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return jax.device_get(x)
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(x, tiled=True)


def total(x: np.ndarray) -> np.ndarray:
    """The sum over the processes of an array. All processes call it together."""
    return np.asarray(multihost_utils.process_allgather(x)).sum(0)


def leave(code: int) -> NoReturn:
    """Ends this process after an error, without waiting for the others as jax would.

    They may be waiting for this one, in a step. Where all met the same error, each ends
    with its own code: process 0, without which the others abort, goes last.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if first():
        time.sleep(_LAST)
    os._exit(code)
