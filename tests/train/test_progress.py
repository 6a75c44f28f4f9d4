"""What is shown of a run."""

import io

from rich.console import Console

from mmssl.train.progress import TrainProgress, closing_table
from mmssl.train.recorder import Reading, TrainSummary

READING = Reading(
    step=20,
    total=120,
    loss=3.41234,
    steps_per_second=2.5,
    data_wait=0.031,
    logged=True,
)
SKIPPED = Reading(
    step=21,
    total=120,
    loss=float("nan"),
    steps_per_second=0.0,
    data_wait=0.0,
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
        "step 20/120  loss 3.412  2.5 steps/s  data wait 3%  ETA 0:00:40",
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
        "33.3",
        "crash 1, truncated 3",
    ):
        assert text in out.getvalue()
