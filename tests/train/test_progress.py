"""What is shown of a run."""

import io

from rich.console import Console

from mmssl.train.progress import TrainProgress, closing_table
from mmssl.train.recorder import Reading, TrainSummary
from mmssl.train.speed import Speed, Work

READING = Reading(
    step=20,
    total=120,
    loss=3.41234,
    speed=Speed(2.5, 64, 0.031, Work(tokens=4000, flops=1e9, peak=1e10)),
    goodput=0.934,
    logged=True,
)
SKIPPED = Reading(
    step=21,
    total=120,
    loss=float("nan"),
    speed=Speed(0.0, 64, 0.0, Work()),
    goodput=0.0,
    logged=False,
)


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    progress = TrainProgress(Console(file=out, width=40))
    progress.start(10, 120)
    progress.update(READING)
    progress.update(SKIPPED)
    progress.note("warning: [bold]as is")
    progress.close()
    assert out.getvalue().splitlines() == [
        "training from step 10 to 120; the first step compiles",
        "step 20/120  loss 3.412  0.4 s/step  160 samples/s  10k tokens/s  MFU 25%  "
        "data wait 3%  goodput 93%  ETA 0:00:40",
        "warning: [bold]as is",
    ]


def test_live_line_on_a_terminal():
    out = io.StringIO()
    progress = TrainProgress(Console(file=out, force_terminal=True, width=120))
    progress.start(10, 120)
    progress.update(READING)
    progress.close()
    progress.close()
    assert "step 20/120  loss 3.412" in out.getvalue()


def test_closing_table_has_it_all():
    summary = TrainSummary(
        start=10,
        step=70,
        total=120,
        seconds=125.0,
        compile_seconds=12.3,
        samples=2000,
        data_wait=0.25,
        first_loss=9.0,
        last_loss=1.8,
        skipped=2,
        speed=Speed(2.0, 64, 0.1, Work()).metrics(),
        goodput={"init": 0.02, "compile": 0.1, "data": 0.004, "step": 0.876},
        health={"health/rank/video/va": 33.333},
        interrupted="SIGTERM",
    )
    out = io.StringIO()
    Console(file=out, width=100).print(
        closing_table(summary, faults={"truncated": 3, "crash": 1})
    )
    for text in (
        "10 -> 70 of 120 (stopped by SIGTERM",
        "0:02:05 (first step 12.3 s)",
        "16.0",
        "25%",
        "9 -> 1.8",
        "0.5 s, 128 samples/s",
        "88% of the run's time went into steps (init 2%, compile 10%)",
        "33.3",
        "crash 1, truncated 3",
    ):
        assert text in out.getvalue()
