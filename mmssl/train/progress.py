"""What a person sees of a run: a live line or plain ones, and the closing table."""

import datetime
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from mmssl.train.recorder import Reading, TrainSummary


class TrainProgress:
    """A live line on a terminal; elsewhere one plain line per logged step.

    Args:
      console: where to; standard output by default.
      live: None chooses by whether the console is a terminal.
      quiet: say nothing: another process does.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        live: bool | None = None,
        quiet: bool = False,
    ):
        self.console = console or Console(quiet=quiet)
        self._live = self.console.is_terminal if live is None else live
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, step: int, total: int) -> None:
        """Begins at `step` of `total`."""
        self.note(f"training from step {step} to {total}; the first step compiles")
        if self._live:
            self._bar = Progress(
                BarColumn(20),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("compiling", completed=step, total=total)
            self._bar.start()

    def update(self, reading: Reading) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, completed=reading.step, description=line(reading)
            )
        elif reading.logged:
            self.note(line(reading))

    def note(self, message: str) -> None:
        """One line, above the live one."""
        # A plain console wraps at 80 columns by default, which breaks up log lines.
        self.console.print(message, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def line(reading: Reading) -> str:
    """What there is to see of a step, in a line.

    `step 120/1200  loss 3.412  0.433 s/step  74 samples/s  12.3k tokens/s  MFU 41%
    data wait 3%  goodput 93%  ETA 0:07:47`; MFU only where the devices' peak is known.
    """
    parts = [f"step {reading.step}/{reading.total}", f"loss {reading.loss:.4g}"]
    if reading.eta_seconds is not None:
        speed = reading.speed.metrics()
        parts.append(f"{speed['step_seconds']:.3g} s/step")
        parts += _rates(speed)
        parts += [
            f"data wait {speed['data_wait']:.0%}",
            f"goodput {reading.goodput:.0%}",
            f"ETA {_clock(reading.eta_seconds)}",
        ]
    return "  ".join(parts)


def _rates(speed: Mapping[str, float]) -> list[str]:
    parts = [f"{_count(speed['samples_per_second'])} samples/s"]
    if "tokens_per_second" in speed:
        parts.append(f"{_count(speed['tokens_per_second'])} tokens/s")
    if "mfu" in speed:
        parts.append(f"MFU {speed['mfu']:.0%}")
    return parts


def closing_table(
    summary: TrainSummary, *, faults: Mapping[str, int] | None = None
) -> Table:
    """The run in one table; print it with a rich console.

    Args:
      summary: from `train`.
      faults: media faults met, by class.
    """
    table = Table(title="training", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    ending = "complete" if summary.complete else "to be continued"
    if summary.interrupted:
        ending = f"stopped by {summary.interrupted}, same command continues"
    table.add_row(
        "steps", f"{summary.start} -> {summary.step} of {summary.total} ({ending})"
    )
    table.add_row(
        "time",
        f"{_clock(summary.seconds)} (first step {summary.compile_seconds:.1f} s)",
    )
    table.add_row("samples/s", f"{summary.samples_per_second:.1f}")
    if summary.speed.get("step_seconds"):
        last = f"{summary.speed['step_seconds']:.3g} s, "
        table.add_row("last steps", last + ", ".join(_rates(summary.speed)))
    table.add_row("data wait", f"{summary.data_wait:.0%}")
    if summary.goodput:
        rest = ", ".join(
            f"{part} {share:.0%}"
            for part, share in summary.goodput.items()
            if part != "step" and round(share, 2)
        )
        share = f"{summary.goodput['step']:.0%} of the run's time went into steps"
        table.add_row("goodput", f"{share} ({rest})" if rest else share)
    table.add_row(
        "loss", f"{_number(summary.first_loss)} -> {_number(summary.last_loss)}"
    )
    for name, value in sorted(summary.health.items()):
        table.add_row(name, f"{value:.3g}")
    table.add_row("skipped steps", str(summary.skipped))
    counts = ", ".join(f"{name} {n}" for name, n in sorted((faults or {}).items()))
    table.add_row("media faults", counts or "none")
    return table


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _count(value: float) -> str:
    """`74.1`, `12.3k`, `4.56M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
