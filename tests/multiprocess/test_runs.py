"""Real processes: they equal one, stop together, and one that is lost ends them all."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from mmssl import trees
from mmssl.train import heartbeat
from mmssl.train.checkpoint import Checkpointer
from tests.conftest import ROOT
from tests.multiprocess.ports import free_port
from tests.train import toy_run

STEPS = 12
REQUEUE = 75
ABORTED = -6
"""By the runtime, which does not wait for process 0 when it has gone."""


class Processes:
    """`count` of them, started together; `wait` gives exit codes and what they said."""

    def __init__(self, workdir: pathlib.Path, count: int, *, fault: str = ""):
        address = f"localhost:{free_port()}"
        self.begin = time.monotonic()
        self.running = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.multiprocess.worker", "train"),
                    *("--config", f"toy:{STEPS}{fault}", "--workdir", str(workdir)),
                    *("--coordinator", address, "--processes", str(count)),
                    *("--process", str(process), "--heartbeat-timeout", "30"),
                ],
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for process in range(count)
        ]

    def wait(self) -> tuple[list[int], list[str]]:
        said = [process.communicate(timeout=120)[0] for process in self.running]
        return [process.returncode for process in self.running], said


def state_of(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], int]:
    with Checkpointer(workdir / "checkpoints") as saves:
        restored = saves.restore(jax.eval_shape(toy_run.fresh_state))
    leaves = trees.named_leaves(restored.state)
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}, restored.step


def curve(workdir: pathlib.Path) -> dict[int, float]:
    text = (workdir / "metrics.jsonl").read_text()
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in this one process: final state and losses."""
    workdir = tmp_path_factory.mktemp("alone")
    toy_run.run(workdir, steps=STEPS)
    return state_of(workdir)[0], curve(workdir)


def assert_equals(workdir: pathlib.Path, alone: Any) -> None:
    state, step = state_of(workdir)
    assert step == STEPS
    for name, leaf in alone[0].items():
        # Means over rows are summed in another order.
        np.testing.assert_allclose(
            state[name].astype(np.float64),
            leaf.astype(np.float64),
            rtol=1e-5,
            atol=1e-6,
            err_msg=name,
        )
    losses = curve(workdir)
    assert losses.keys() == alone[1].keys()
    for step, loss in alone[1].items():
        assert losses[step] == pytest.approx(loss, rel=1e-5), step


def test_a_notice_to_one_stops_all_and_two_equal_one(tmp_path, alone):
    codes, said = Processes(tmp_path, 2, fault=":usr1:1:5").wait()
    assert codes == [REQUEUE, REQUEUE], "\n".join(said)
    host = socket.gethostname()
    assert f"hosts {[host, host]}" in said[0]
    events = (tmp_path / "events.jsonl").read_text().splitlines()
    stopped = json.loads(events[-1])
    assert stopped["event"] == "interrupted"
    _, step = state_of(tmp_path)
    assert 5 <= step == stopped["step"] < STEPS
    assert max(curve(tmp_path)) == step
    codes, said = Processes(tmp_path, 2).wait()
    assert codes == [0, 0], "\n".join(said)
    assert_equals(tmp_path, alone)
    for process in range(2):
        beat = heartbeat.read(tmp_path, process)
        assert beat is not None
        assert (beat.stage, beat.step) == (heartbeat.ENDED, STEPS)


def test_one_killed_ends_all_and_another_number_goes_on(tmp_path, alone):
    codes, said = Processes(tmp_path, 2, fault=":kill:1:8").wait()
    assert codes == [REQUEUE, -9], "\n".join(said)
    assert "lost process 1 on" in said[0]
    assert "continues from its last checkpoint" in said[0]
    _, step = state_of(tmp_path)
    assert step in (3, 6)
    # The rest of it in this process, whose eight devices are another mesh.
    toy_run.run(tmp_path, steps=STEPS)
    assert_equals(tmp_path, alone)


def test_a_read_that_hangs_is_named_with_its_stack(tmp_path):
    codes, said = Processes(tmp_path, 2, fault=":hang:1:6").wait()
    assert codes[1] == REQUEUE, "\n".join(said)
    assert codes[0] in (REQUEUE, ABORTED), "\n".join(said)
    assert "process 1 on" in said[1]
    assert "is stuck in 'data' of step 6, longer than watchdog.data=4 s" in said[1]
    stacks = tmp_path / "heartbeat" / "process_1.stacks.txt"
    for text in (said[1], stacks.read_text()):
        assert "worker.py" in text
        assert "in batches" in text
