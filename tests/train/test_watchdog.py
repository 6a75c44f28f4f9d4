"""Signs of life, what they say of others, and the end of a process that hangs."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from mmssl import workdir as workdir_lib
from mmssl.errors import AgainError, UserError
from mmssl.train import heartbeat, watchdog
from mmssl.train.goodput import Goodput
from mmssl.train.heartbeat import Beat
from mmssl.train.watchdog import Watchdog
from tests.conftest import ROOT


def beat(process=0, *, ago=0.0, host="host-a", stage="step", step=5, every=0.1):
    return Beat(process, host, 7, step, stage, 1.0, time.time() - ago, every)


def place(folder: pathlib.Path, *beats: Beat) -> None:
    (folder / heartbeat.FOLDER).mkdir(exist_ok=True)
    for one in beats:
        heartbeat.write(folder, one)


def test_beats_tell_step_and_part_and_the_end(tmp_path):
    clock = Goodput()
    with Watchdog(tmp_path, clock, heartbeat=0.01):
        clock.begin(3)
        clock.step = 5
        with clock.part("checkpoint"):
            time.sleep(0.1)
            found = heartbeat.read(tmp_path, 0)
    assert found is not None
    assert (found.step, found.stage, found.pid) == (5, "checkpoint", os.getpid())
    assert found.host == socket.gethostname()
    ended = heartbeat.read(tmp_path, 0)
    assert ended is not None
    assert (ended.stage, ended.silent) == (heartbeat.ENDED, False)


def test_compiling_and_the_first_two_steps_count_as_the_start(tmp_path):
    clock = Goodput()
    dog = Watchdog(tmp_path, clock)
    assert dog._where()[0] == "start"
    clock.begin(8)
    for step, stage in ((8, "start"), (9, "start"), (10, "step")):
        clock.step = step
        assert dog._where()[:2] == (stage, step)
        with clock.part("data"):
            assert dog._where()[0] == "data"


def test_those_furthest_behind_come_first(tmp_path):
    place(
        tmp_path,
        beat(0),
        beat(1, stage="data"),
        beat(2, ago=9),
        beat(3, step=4),
    )
    (tmp_path / heartbeat.FOLDER / "process_4.json").write_text('{"process": 4')
    order = [one.process for one in heartbeat.read_all(tmp_path, 6)]
    assert order == [3, 2, 1, 0]


def test_silence_is_told_once_and_not_of_a_former_session(tmp_path, capfd):
    dog = Watchdog(tmp_path, Goodput(), processes=3)
    dog._begin -= 100
    place(tmp_path, beat(1, ago=50, host="host-b"), beat(2, ago=500, host="host-c"))
    for _ in range(2):
        dog._tell_of_silence("step", 5)
    said = capfd.readouterr().err
    assert said.count("process 1 on host-b: step 5") == 1
    assert "host-c" not in said


@pytest.mark.parametrize(
    ("options", "told"), [({"step": -1.0}, "step"), ({"heartbeat": 0.0}, "heartbeat")]
)
def test_limits_out_of_range_are_refused(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        Watchdog(tmp_path, Goodput(), **options)


@pytest.mark.parametrize(
    ("cause", "blamed"),
    [
        (RuntimeError("connection reset by peer"), True),
        (TimeoutError("barrier timed out"), True),
        (OSError(28, "No space left on device"), False),
        (UserError("bad input"), False),
        (None, False),
    ],
)
def test_a_save_fails_where_another_process_is_lost(
    tmp_path, monkeypatch, capsys, cause, blamed
):
    monkeypatch.setattr(watchdog.distributed, "leave", sys.exit)
    settled = []
    dog = Watchdog(
        tmp_path,
        Goodput(),
        processes=2,
        settle=lambda: settled.append(not dog._stop.is_set()),
    )
    monkeypatch.setattr(dog, "_others", lambda: [beat(1, ago=9)])
    error = AgainError("checkpoint 3 could not be saved")
    error.__cause__ = cause
    with pytest.raises(SystemExit if blamed else AgainError), dog:
        raise error
    assert ("lost process 1 on host-a" in capsys.readouterr().err) == blamed
    # A save under way would wait for the lost one; else it ends under watch.
    assert settled == ([] if blamed else [True])


HANGS = """
import pathlib, sys, time
from mmssl.train import goodput, watchdog
clock = goodput.Goodput()
with watchdog.Watchdog(pathlib.Path(sys.argv[1]), clock, step=0.3, heartbeat=0.1):
    clock.begin()
    clock.step = 9
    def a_step_that_hangs():
        time.sleep(60)
    a_step_that_hangs()
"""


def test_a_step_that_hangs_ends_the_process_with_its_stack(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert ended.returncode == watchdog.REQUEUE_EXIT_CODE, ended.stderr
    told = f"process 0 on {socket.gethostname()} is stuck in 'step' of step 9"
    stacks = (tmp_path / heartbeat.FOLDER / "process_0.stacks.txt").read_text()
    for text in (ended.stderr, stacks):
        assert told in text
        assert "in a_step_that_hangs" in text


STORAGE_HANGS = """
from mmssl.train import heartbeat, watchdog
heartbeat.write = heartbeat.read_all = lambda *_: time.sleep(60)
watchdog._PATIENCE = 0.2
"""


def test_storage_that_hangs_stops_no_watchdog(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", "import time" + STORAGE_HANGS + HANGS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )
    assert ended.returncode == watchdog.REQUEUE_EXIT_CODE, ended.stderr
    assert "is stuck in 'step' of step 9" in ended.stderr
    assert "in a_step_that_hangs" in ended.stderr


def test_storage_that_hangs_holds_up_no_end(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(heartbeat, "write", lambda *_: go.wait(60))
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.05)
    begin = time.monotonic()
    with Watchdog(tmp_path, Goodput(), heartbeat=0.01):
        pass
    assert time.monotonic() - begin < 30
    go.set()


def test_a_workdir_alive_elsewhere_is_refused(tmp_path, monkeypatch):
    place(tmp_path, beat(ago=1))
    monkeypatch.setattr(time, "sleep", lambda _: place(tmp_path, beat(step=6)))
    with (
        pytest.raises(AgainError, match=r"host-a is training in .* step 6"),
        workdir_lib.locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("former", "waited"),
    [
        ({"ago": 1}, True),
        ({"ago": 3600}, False),
        ({"ago": 1, "stage": heartbeat.ENDED}, False),
        ({"ago": 1, "host": socket.gethostname()}, False),
    ],
)
def test_a_workdir_of_a_dead_run_is_taken(tmp_path, monkeypatch, former, waited):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    place(tmp_path, beat(**former))
    with workdir_lib.locked(tmp_path):
        assert bool(slept) == waited


def test_a_second_process_is_told_to_come_again(tmp_path):
    with (
        workdir_lib.locked(tmp_path),
        pytest.raises(AgainError, match="another process is training"),
        workdir_lib.locked(tmp_path),
    ):
        pass


def test_a_beat_is_plain_json(tmp_path):
    place(tmp_path, beat(3))
    found = json.loads(heartbeat.path(tmp_path, 3).read_text())
    assert (found["process"], found["host"]) == (3, "host-a")
