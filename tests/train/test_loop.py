"""The loop: resume equals no interruption, faults are skipped, dumped and counted."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from mmssl import trees
from mmssl.errors import UserError
from mmssl.train.hooks import Hook, StoppedError
from mmssl.train.retention import Best
from tests.train import toy_run

STEPS = 40


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(workdir: pathlib.Path, name: str) -> list[dict[str, Any]]:
    return [r for r in rows(workdir / "events.jsonl") if r["event"] == name]


def curve(workdir: pathlib.Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in rows(workdir / "metrics.jsonl")]


def conflicts(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in r.items() if k != "time"}
        for r in rows(workdir / "conflict.jsonl")
    ]


def assert_same_bits(left: Any, right: Any) -> None:
    left, right = trees.named_leaves(left), trees.named_leaves(right)
    assert left.keys() == right.keys()
    for name in left:
        a, b = np.asarray(left[name]), np.asarray(right[name])
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: state, data, workdir."""
    workdir = tmp_path_factory.mktemp("whole")
    state, summary, pipeline = toy_run.run(workdir, steps=STEPS)
    assert summary.complete
    return state, pipeline, workdir


def test_resume_equals_uninterrupted(whole, tmp_path):
    state, pipeline, workdir = whole
    read = []
    for steps in (7, 8, 23, STEPS):
        resumed, summary, part = toy_run.run(tmp_path, steps=steps, every=5)
        read += part.read
        assert summary.step == steps
    assert_same_bits(resumed, state)
    assert read == pipeline.read
    ahead = toy_run.Pipeline()
    ahead.set_state(pipeline.get_state())
    assert next(iter(part))[1] == next(iter(ahead))[1]
    assert curve(tmp_path) == curve(workdir)
    assert conflicts(tmp_path) == conflicts(workdir)
    assert [e["step"] for e in events(tmp_path, "resume")] == [7, 8, 23]


def start(workdir: pathlib.Path, *, every: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, toy_run.__file__, str(workdir), "100000", str(every)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
    )


def wait_for_row(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < step:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[1].decode())
        time.sleep(0.003)


@pytest.mark.slow
def test_kill_then_resume_equals_uninterrupted(whole, tmp_path):
    state, pipeline, workdir = whole
    # Saves follow one another without a gap, so the kill lands in one.
    process = start(tmp_path, every=1)
    wait_for_row(tmp_path, 11, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')  # what a kill within a write leaves
    resumed, summary, part = toy_run.run(tmp_path, steps=STEPS, every=7)
    assert 5 <= summary.start < STEPS
    assert_same_bits(resumed, state)
    assert part.read == pipeline.read[summary.start * toy_run.ROWS :]
    assert curve(tmp_path) == curve(workdir)


@pytest.mark.slow
def test_sigterm_saves_and_exits_for_requeue(whole, tmp_path):
    process = start(tmp_path, every=100000)
    wait_for_row(tmp_path, 3, process)
    process.terminate()
    assert process.wait(timeout=30) == 75, process.communicate()[1].decode()
    process.communicate()
    stopped = events(tmp_path, "interrupted")[0]
    assert stopped["signal"] == "SIGTERM"
    assert rows(tmp_path / "metrics.jsonl")[-1]["step"] == stopped["step"] < STEPS
    resumed, summary, _ = toy_run.run(tmp_path, steps=STEPS)
    assert summary.start == stopped["step"]
    assert_same_bits(resumed, whole[0])


def test_signal_finishes_the_step_and_saves(tmp_path):
    def stop(step: int, state: Any, told: Any) -> dict[str, float]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return {}

    former = signal.getsignal(signal.SIGUSR1)
    _, summary, _ = toy_run.run(tmp_path, steps=9, hooks=[Hook(every=1, run=stop)])
    assert (summary.step, summary.interrupted) == (4, "SIGUSR1")
    assert not summary.complete
    assert signal.getsignal(signal.SIGUSR1) is former
    _, summary, _ = toy_run.run(tmp_path, steps=9)
    assert (summary.start, summary.step, summary.interrupted) == (4, 9, None)


def test_a_run_that_is_told_to_stop_evaluates_no_more(tmp_path):
    done = []

    def judge(step: int, state: Any, told: Any) -> dict[str, float]:
        done.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    _, summary, _ = toy_run.run(tmp_path, steps=9, hooks=[Hook(every=1, run=judge)])
    assert (done, summary.step) == ([1, 2], 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_hook_that_is_told_to_stop_ends_at_once(tmp_path):
    def judge(step: int, state: Any, told: Any) -> dict[str, float]:
        assert told() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert told() == "SIGTERM"
        raise StoppedError

    best = Best("eval/recall")
    hooks = [Hook(every=2, run=judge)]
    _, summary, _ = toy_run.run(tmp_path, steps=9, hooks=hooks, best=best, every=2)
    assert (summary.step, summary.interrupted) == (2, "SIGTERM")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert [r["step"] for r in rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert not events(tmp_path, "warning")


@pytest.mark.parametrize("best", [None, Best("eval/recall")])
@pytest.mark.parametrize("error", [UserError("not finite"), OSError("gone")])
def test_a_failing_hook_costs_its_metrics_alone(tmp_path, best, error):
    def judge(step: int, state: Any, told: Any) -> dict[str, float]:
        raise error

    hooks, quiet = [Hook(every=2, run=judge)], toy_run.Quiet()
    options = {"hooks": hooks, "best": best, "every": 2, "progress": quiet}
    _, summary, _ = toy_run.run(tmp_path, steps=5, **options)
    assert summary.complete
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["2", "4", "5"]
    told = events(tmp_path, "warning")
    assert [e["step"] for e in told] == [2, 4, 5]
    assert f"no evaluation at step 4: {error}" in told[1]["message"]
    assert sum("no evaluation" in note for note in quiet.notes) == 3


@pytest.mark.parametrize("best", [None, Best("eval/recall")])
def test_a_bug_in_a_hook_does_not_lose_the_checkpoint(tmp_path, best):
    def judge(step: int, state: Any, told: Any) -> dict[str, float]:
        raise TypeError("a bug")

    hooks = [Hook(every=2, run=judge)]
    with pytest.raises(TypeError, match="a bug"):
        toy_run.run(tmp_path, steps=9, hooks=hooks, best=best, every=2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_second_ctrl_c_aborts_at_once(tmp_path):
    # A shell starts background jobs with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(step: int, state: Any, told: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt):
        toy_run.run(tmp_path, steps=9, hooks=[Hook(every=3, run=interrupt)])
    assert [r["step"] for r in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_complete_run_is_left_alone(tmp_path):
    state, _, _ = toy_run.run(tmp_path, steps=3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    progress = toy_run.Quiet()
    again, summary, pipeline = toy_run.run(tmp_path, steps=3, progress=progress)
    assert_same_bits(again, state)
    assert (summary.start, summary.step, summary.samples) == (3, 3, 0)
    assert pipeline.read == []
    assert "already at step 3 of 3" in progress.notes[-1]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_nonfinite_step_is_skipped_dumped_and_counted(tmp_path):
    pipeline = toy_run.Pipeline(bad={2, 3, 6})
    state, summary, _ = toy_run.run(
        tmp_path, steps=9, pipeline=pipeline, max_nonfinite=3
    )
    assert summary.skipped == 3
    assert int(state.step) == 9
    assert int(state.opt_state[0].count) == 6
    dump = json.loads((tmp_path / "nonfinite" / "step_3.json").read_text())
    assert dump["ids"] == [f"clip-2-{row}" for row in range(toy_run.ROWS)]
    assert dump["metrics"]["loss"] is None
    told = [(e["step"], e["in_a_row"]) for e in events(tmp_path, "nonfinite")]
    assert told == [(3, 1), (4, 2), (7, 1)]
    losses = dict(curve(tmp_path))
    assert losses[3] is None
    assert losses[5] is not None


def test_nonfinite_steps_in_a_row_stop_the_run(tmp_path):
    pipeline = toy_run.Pipeline(bad=range(4, 99))
    with pytest.raises(UserError, match=r"3 steps in a row \(steps 5 to 7\)"):
        toy_run.run(tmp_path, steps=30, every=4, pipeline=pipeline, max_nonfinite=3)
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert len(list((tmp_path / "nonfinite").iterdir())) == 3
    # At most the one step already under way came after the last bad one.
    assert len(pipeline.read) <= 8 * toy_run.ROWS
    state, summary, _ = toy_run.run(tmp_path, steps=6)
    assert (summary.start, summary.skipped) == (4, 0)
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in conflicts(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_the_streak_outlives_a_checkpoint_between(tmp_path):
    pipeline = toy_run.Pipeline(bad=range(1, 99))
    with pytest.raises(UserError, match="4 steps in a row"):
        toy_run.run(tmp_path, steps=30, every=2, pipeline=pipeline, max_nonfinite=4)


def test_end_of_data_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"ended before step 4.*data\.path"):
        toy_run.run(tmp_path, steps=9, pipeline=toy_run.Pipeline(batches=3))


def test_rows_only_when_due_and_hooks_write_theirs(tmp_path):
    seen = []

    def evaluate(step: int, state: Any, told: Any) -> dict[str, float]:
        # A transfer both ways: hooks may, the loop may not.
        seen.append((step, int(state.step + np.int32(0))))
        return {"eval/recall": 0.5}

    progress = toy_run.Quiet()
    _, summary, _ = toy_run.run(
        tmp_path,
        steps=10,
        log_every=4,
        hooks=[Hook(every=6, run=evaluate)],
        progress=progress,
    )
    assert seen == [(6, 6), (10, 10)]
    written = rows(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in written] == [4, 6, 8, 10, 10]
    assert written[1]["eval/recall"] == 0.5
    names = {"loss", "health/rank/audio/va", "data_wait", "samples_per_second"}
    assert names <= written[0].keys()
    assert [r.step for r in progress.readings] == list(range(1, 11))
    assert [r.step for r in progress.readings if r.logged] == [4, 8, 10]
    assert summary.samples == 10 * toy_run.ROWS
    assert summary.first_loss == progress.readings[0].loss
    assert summary.last_loss == progress.readings[-1].loss == written[-2]["loss"]


def test_metrics_are_fetched_one_step_behind(tmp_path):
    order = []

    class Watching(toy_run.Quiet):
        def update(self, reading):
            order.append(f"settled {reading.step}")

    def step_fn(state, raw):
        order.append("dispatched")
        return toy_run.STEP(state, raw)

    toy_run.run(tmp_path, steps=3, step_fn=step_fn, progress=Watching())
    assert order == [
        *("dispatched", "dispatched", "settled 1"),
        *("dispatched", "settled 2", "settled 3"),
    ]


def test_implicit_transfers_in_the_loop_are_refused(tmp_path):
    def leaky(state, raw):
        state, output = toy_run.STEP(state, raw)
        _ = output.metrics["loss"] + np.float32(1.0)
        return state, output

    with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device"):
        toy_run.run(tmp_path, steps=2, step_fn=leaky)


def test_collapse_is_told_once(tmp_path):
    def collapsed(state, raw):
        state, output = toy_run.STEP(state, raw)
        output.embeddings["audio/va"] = same
        return state, output

    same = jax.device_put(np.eye(toy_run.SPACE, dtype=np.float32)[[0] * toy_run.ROWS])
    toy_run.run(tmp_path, steps=8, step_fn=collapsed)
    (event,) = events(tmp_path, "collapse")
    assert event["step"] == 2
    assert "spread of audio/va is 0 " in event["message"]
