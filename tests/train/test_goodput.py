"""Where the time of a run went, over its restarts."""

import contextlib
import json

import pytest

from mmssl.train.goodput import PARTS, Goodput, read_past
from mmssl.train.speed import Speed, Work
from tests.train import toy_run


class Clock:
    """Moves when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_is_counted_once():
    clock = Clock()
    goodput = Goodput(clock=clock)
    clock.now += 3
    goodput.begin()
    with goodput.part("compile"):
        clock.now += 5
        with goodput.part("data"):
            clock.now += 1
    with contextlib.suppress(KeyError), goodput.part("eval"):
        clock.now += 7
        raise KeyError
    clock.now += 4
    want = {"init": 3, "compile": 5, "data": 1, "eval": 7, "step": 4}
    assert goodput.seconds == dict.fromkeys(PARTS, 0.0) | want
    assert sum(goodput.shares.values()) == pytest.approx(1)
    assert goodput.shares["step"] == pytest.approx(4 / 20)


def start(time, lost=0.0):
    return {"time": time, "event": "start", "lost": lost}


def row(time):
    return {"time": time, "step": 1}


@pytest.mark.parametrize(
    ("past", "since", "lost_now", "lost"),
    [
        # The first session.
        ([], 0, 0, 0),
        # Stopped in order: what it did after saving is no lost work.
        ([start(10), row(40), {"time": 45, "event": "interrupted"}], 44, 0, 0),
        # Killed at 90 after a checkpoint at 60; killed before any.
        ([start(10), row(50), row(90)], 60, 30, 30),
        ([start(10), row(50), row(90)], 0, 80, 80),
        # Killed twice since the same checkpoint; the hours between are nobody's.
        ([start(10), row(90), start(1000, 30), row(1020)], 60, 20, 50),
        # What was lost before the checkpoint is in it already.
        ([start(10), row(90), start(1000, 30), row(1020), row(1090)], 1050, 40, 40),
    ],
)
def test_lost_work_is_what_came_after_the_checkpoint(past, since, lost_now, lost):
    goodput = Goodput(past, clock=Clock())
    goodput.resumed({"init": 1.0, "lost": 100.0}, since=since)
    assert goodput.lost_now == lost_now
    assert goodput.seconds["lost"] == 100 + lost
    assert goodput.seconds["init"] == 1


def test_the_past_is_read_without_its_torn_lines(tmp_path):
    (tmp_path / "a").write_text('{"time": 2}\n{"time": 3, "st')
    (tmp_path / "b").write_text('[1]\n{"time": 1, "event": "start"}\n{"x": 1}\n')
    found = read_past(tmp_path / "a", tmp_path / "b", tmp_path / "none")
    assert found == [{"time": 1, "event": "start"}, {"time": 2}]


def test_shares_outlive_a_restart(tmp_path):
    """Of a run killed after step 6, with a checkpoint at 4, and resumed."""
    toy_run.run(tmp_path, steps=6, every=4, step_fn=toy_run.slow_step)
    events = tmp_path / "events.jsonl"
    told = [json.loads(line) for line in events.read_text().splitlines()]
    killed = [e for e in told if e["event"] != "end"]
    events.write_text("".join(json.dumps(e) + "\n" for e in killed))
    last = tmp_path / "checkpoints" / "6" / "manifest.json"
    last.unlink()
    at = json.loads((tmp_path / "checkpoints" / "4" / "manifest.json").read_text())
    ended = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    _, summary, _ = toy_run.run(tmp_path, steps=8)
    (_, second) = [
        json.loads(line)
        for line in events.read_text().splitlines()
        if '"start"' in line
    ]
    assert second["lost"] == pytest.approx(ended["time"] - at["time"], abs=0.002)
    saved = json.loads((tmp_path / "checkpoints" / "8" / "manifest.json").read_text())[
        "spent"
    ]
    assert saved["lost"] == pytest.approx(second["lost"], abs=0.002)
    for part in ("compile", "step"):
        assert saved[part] > at["spent"][part] > 0
    assert sum(summary.goodput.values()) == pytest.approx(1)
    rows = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert sum(rows[-1][f"goodput/{part}"] for part in PARTS) == pytest.approx(1)
    assert rows[-1]["goodput/lost"] > 0


def test_what_is_not_known_of_the_work_is_left_out():
    speed = Speed(2.0, 8, 0.1, Work())
    assert speed.metrics() == {
        "steps_per_second": 2.0,
        "samples_per_second": 16.0,
        "data_wait": 0.1,
        "step_seconds": 0.5,
    }
    known = Speed(2.0, 8, 0.1, Work(tokens=100, flops=3e9, peak=12e9)).metrics()
    assert (known["tokens_per_second"], known["mfu"]) == (200.0, 0.5)
    assert known["flops_per_second"] == 6e9
    unknown = Speed(2.0, 8, 0.1, Work(tokens=100, flops=3e9)).metrics()
    assert "mfu" not in unknown
