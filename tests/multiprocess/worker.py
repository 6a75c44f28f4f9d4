"""One process of a toy run: `mmssl train`, its start and its end, around a tiny model.

    python worker.py train --config toy:STEPS[:FAULT:PROCESS:BATCH] --workdir W ...

FAULT happens to one process before it reads a batch: `kill`, `usr1`, `hang`.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mmssl import cli, outputs
from mmssl.commands import train as command
from mmssl.data import device
from mmssl.parallel import distributed
from mmssl.parallel import mesh as mesh_lib
from mmssl.train import goodput, heartbeat, loop, metrics
from mmssl.train.checkpoint import Checkpointer
from mmssl.train.preemption import REQUEUE_EXIT_CODE
from mmssl.train.watchdog import Watchdog
from tests.train import toy_run

SIGNALS = {"kill": signal.SIGKILL, "usr1": signal.SIGUSR1}
SAVE_EVERY = 3


def batches(
    pipeline: toy_run.Pipeline, mesh: jax.sharding.Mesh, fault: list[str]
) -> Iterator[loop.DeviceBatch]:
    """This process's rows of each batch, as global arrays."""
    shards, parts = mesh_lib.process_rows(mesh)
    rows = np.arange(toy_run.ROWS).reshape(parts, -1)[list(shards)].ravel().tolist()
    for raw, info, wait, state in pipeline:
        if fault[1:] == [str(jax.process_index()), str(pipeline.index)]:
            if fault[0] == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), SIGNALS[fault[0]])
        if fault[:1] == ["usr1"] and pipeline.index >= int(fault[2]):
            time.sleep(0.5)  # a notice travels; so few steps would be over before it
        mine = jax.tree.map(lambda x: jax.device_get(x)[rows], raw)
        own = [info[row] for row in rows]
        yield device.put(mine, mesh_lib.batch_sharding(mesh)), own, wait, state


def run(workdir: pathlib.Path, steps: int, fault: list[str]) -> int:
    """As `runs.train`, with the toy's model and data."""
    mesh = mesh_lib.make_mesh({"data": -1})
    whole, rows = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
    step = jax.jit(
        toy_run.toy_step,
        donate_argnums=0,
        in_shardings=(whole, rows),
        out_shardings=(whole, None),
    )
    fresh = jax.jit(toy_run.fresh_state, out_shardings=whole)
    clock, pipeline = goodput.Goodput(), toy_run.Pipeline()
    limits = {"data": 4.0, "step": 10.0} if "hang" in fault else {}
    writers, conflicts, events = (
        kind(outputs.log(workdir, f"{name}.jsonl"))
        for kind, name in (
            (metrics.JsonlWriter, "metrics"),
            (metrics.JsonlWriter, "conflict"),
            (metrics.EventLog, "events"),
        )
    )
    watchdog = Watchdog(
        workdir,
        clock,
        process=jax.process_index(),
        processes=jax.process_count(),
        heartbeat=0.5,
        **limits,
    )
    with Checkpointer(workdir / "checkpoints", every=SAVE_EVERY) as saves, watchdog:
        shared: dict[str, Any] = {
            "checkpointer": saves,
            "writers": writers,
            "conflicts": conflicts,
            "events": events,
            "progress": toy_run.Quiet(),
            "goodput": clock,
        }
        like = jax.eval_shape(fresh)
        state = loop.resume(like, pipeline, **shared)
        _, summary = loop.train(
            fresh() if state is None else state,
            step,
            batches(pipeline, mesh, fault),
            steps=steps,
            dump_dir=workdir / "nonfinite",
            log_every=1,
            **shared,
        )
    return REQUEUE_EXIT_CODE if summary.interrupted else 0


def pretrain(arguments: argparse.Namespace) -> int:
    pathlib.Path(arguments.workdir).mkdir(parents=True, exist_ok=True)
    _, steps, *fault = arguments.config.split(":")
    print("hosts", distributed.hosts(), flush=True)
    return run(pathlib.Path(arguments.workdir), int(steps), fault)


if __name__ == "__main__":
    # Beats of processes that the machine has no time for must not count as silence.
    heartbeat.PATIENCE = 8
    command.pretrain = pretrain
    sys.exit(cli.main())
