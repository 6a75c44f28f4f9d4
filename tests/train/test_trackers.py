"""Trackers: what they are told, and that a network that fails stops nothing."""

import importlib
import json
import sys
import textwrap
import threading

import pytest

from mmssl.errors import UserError
from mmssl.train import trackers

FAKE_WANDB = """
    import json, pathlib

    def Settings(**options):
        return options

    class Run:
        def __init__(self, folder, options):
            self.path = folder / "calls.jsonl"
            self.tell("init", {k: v for k, v in options.items() if k != "dir"})

        def tell(self, name, value):
            with self.path.open("a") as file:
                file.write(json.dumps([name, value]) + "\\n")

        def define_metric(self, name, step_metric):
            self.tell("define_metric", [name, step_metric])

        def log(self, row):
            self.tell("log", row)

        def finish(self):
            self.tell("finish", None)

    def init(**options):
        return Run(pathlib.Path(options["dir"]), options)
"""
FAKE_MLFLOW = """
    import json, pathlib, sys, types

    class Metric:
        def __init__(self, key, value, timestamp, step):
            self.row = [key, value, step]

    entities = types.ModuleType("mlflow.entities")
    entities.Metric = Metric
    sys.modules["mlflow.entities"] = entities

    class MlflowClient:
        def __init__(self, tracking_uri):
            self.path = pathlib.Path(tracking_uri) / "calls.jsonl"

        def tell(self, *call):
            with self.path.open("a") as file:
                file.write(json.dumps(call) + "\\n")

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            self.tell("experiment", name)
            return "e1"

        def create_run(self, experiment, run_name):
            self.tell("run", experiment, run_name)
            info = types.SimpleNamespace(run_id="r1")
            return types.SimpleNamespace(info=info)

        def update_run(self, run, status):
            self.tell("again", run)

        def log_param(self, run, key, value):
            self.tell("param", run, key, value)

        def log_batch(self, run, metrics):
            self.tell("log", run, [m.row for m in metrics])

        def set_terminated(self, run):
            self.tell("finish", run)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """The two packages, as far as they are used; they write down their calls."""
    for name, text in (("wandb", FAKE_WANDB), ("mlflow", FAKE_MLFLOW)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("wandb", "mlflow", "mlflow.entities"):
        sys.modules.pop(name, None)


def told(folder):
    return [json.loads(x) for x in (folder / "calls.jsonl").read_text().splitlines()]


def send(tracker, steps):
    notes = []
    writer = trackers.TrackerWriter(tracker, notes.append)
    for step in steps:
        writer.write(step, {"loss": 1 / step})
    writer.close()
    return notes


def test_wandb_goes_on_with_its_run(fakes):
    workdir = fakes / "run"
    workdir.mkdir()
    for steps in ((1, 2), (2, 3)):
        tracker = trackers.Wandb(
            directory=workdir, config={"seed": 0}, project="p", tags=("a",)
        )
        assert send(tracker, steps) == []
    calls = told(workdir)
    assert [name for name, _ in calls] == [
        *("init", "define_metric", "log", "log", "finish")
    ] * 2
    first, again = (value for name, value in calls if name == "init")
    assert first == again
    assert (first["project"], first["name"]) == ("p", "run")
    assert (first["resume"], first["config"]) == ("allow", {"seed": 0})
    rows = [value for name, value in calls if name == "log"]
    # By an axis of its own: a run that goes back to a checkpoint takes steps again.
    assert [row["step"] for row in rows] == [1, 2, 2, 3]
    assert ["define_metric", ["*", "step"]] in calls


def test_mlflow_goes_on_with_its_run(fakes):
    workdir = fakes / "run"
    workdir.mkdir()
    for steps in ((1,), (2,)):
        tracker = trackers.Mlflow(
            directory=workdir,
            config={"optim": {"lr": 0.5}},
            experiment="e",
            tracking_uri=str(fakes),
        )
        assert send(tracker, steps) == []
    assert told(fakes) == [
        ["experiment", "e"],
        ["run", "e1", "run"],
        ["param", "r1", "optim.lr", "0.5"],
        ["log", "r1", [["loss", 1.0, 1]]],
        ["finish", "r1"],
        ["again", "r1"],
        ["log", "r1", [["loss", 0.5, 2]]],
        ["finish", "r1"],
    ]


def test_a_parameter_that_mlflow_refuses_begins_no_second_run(fakes, monkeypatch):
    def refuse(*_):
        raise ValueError("too long")

    monkeypatch.setattr(
        importlib.import_module("mlflow").MlflowClient, "log_param", refuse
    )
    tracker = trackers.Mlflow(
        directory=fakes, config={"seed": 0}, experiment="e", tracking_uri=str(fakes)
    )
    (note,) = send(tracker, (1, 2, 3))
    assert "mlflow is behind: too long" in note
    assert [name for name, *_ in told(fakes)] == [
        *("experiment", "run", "again", "log", "log", "finish")
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_there_is_named_with_its_extra(
    tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    option = {"wandb": {"project": "p"}, "mlflow": {"experiment": "e"}}[name]
    with pytest.raises(UserError, match=rf"log\.{name} needs .*mmssl\[{name}\]"):
        trackers.TRACKERS[name](directory=tmp_path, config={}, **option)


class Flaky:
    """A service that is not there at first, or never answers."""

    name = "flaky"

    def __init__(self, *, failures=0, stuck=False):
        self.failures, self.stuck = failures, stuck
        self.rows, self.closed, self.go = [], False, threading.Event()

    def open(self):
        if self.stuck:
            self.go.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host\nand a page more")

    def log(self, step, metrics):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("timed out")
        self.rows.append((step, metrics["loss"]))

    def close(self):
        self.closed = True


def test_a_network_that_fails_is_told_once_and_tried_again():
    tracker = Flaky(failures=3)
    (note,) = send(tracker, range(1, 7))
    assert "flaky is behind: no route to host; training goes on" in note
    assert [step for step, _ in tracker.rows] == [4, 5, 6]
    assert tracker.closed


def test_a_service_that_never_answers_holds_up_nothing():
    tracker, notes = Flaky(stuck=True), []
    writer = trackers.TrackerWriter(tracker, notes.append, patience=0.05)
    for step in range(2 * trackers.QUEUED):
        writer.write(step, {"loss": 0.0})
    writer.close()
    assert "not all rows were sent within" in notes[0]
    thread = next(t for t in threading.enumerate() if t.name == "flaky")
    tracker.go.set()
    thread.join(10)
    # The newest rows were kept.
    assert tracker.rows[-1][0] == 2 * trackers.QUEUED - 1
    assert len(tracker.rows) < 1.01 * trackers.QUEUED
