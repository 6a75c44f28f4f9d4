"""What each finished step leaves behind: rows, events, dumps, and the run's summary."""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax

from mmssl.errors import UserError, nearest
from mmssl.train import conflict
from mmssl.train import health as health_lib
from mmssl.train.goodput import Goodput
from mmssl.train.metrics import (
    EventLog,
    JsonlWriter,
    MetricWriter,
    disk_error,
    finite,
)
from mmssl.train.speed import Speed, Work

_WINDOW = 50
"""Steps over which speed and data wait are measured."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One finished step, for people to watch.

    Attributes:
      step: steps taken, of `total`.
      loss: NaN where the step was skipped.
      speed: over the last steps.
      goodput: share of the run's wall time that went into steps that count.
      logged: whether the step's metrics were written.
    """

    step: int
    total: int
    loss: float
    speed: Speed
    goodput: float
    logged: bool

    @property
    def eta_seconds(self) -> float | None:
        if not self.speed.steps_per_second:
            return None
        return (self.total - self.step) / self.speed.steps_per_second


class ProgressView(Protocol):
    """Shows readings as they come."""

    def start(self, step: int, total: int) -> None: ...

    def update(self, reading: Reading) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """What one call of `train` did.

    Attributes:
      start: steps taken before it.
      step: steps taken after it, of `total`.
      seconds: wall time, the first step's compilation included.
      compile_seconds: of the first step's compilation, or of finding it compiled.
      samples: examples trained on.
      data_wait: share of the time after the first step spent waiting for data.
      first_loss: of its first finite step; None without one.
      last_loss: of its last finite step.
      skipped: steps whose loss or gradient was not finite.
      speed: of its last steps.
      goodput: what the run's wall time went to, former sessions included; see
        `goodput.PARTS`.
      health: the last health metrics.
      interrupted: the signal that stopped it, or None.
    """

    start: int
    step: int
    total: int
    seconds: float = 0.0
    compile_seconds: float = 0.0
    samples: int = 0
    data_wait: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    skipped: int = 0
    speed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    goodput: Mapping[str, float] = dataclasses.field(default_factory=dict)
    health: Mapping[str, float] = dataclasses.field(default_factory=dict)
    interrupted: str | None = None

    @property
    def complete(self) -> bool:
        return self.step >= self.total

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Dispatched:
    """A step under way on the device.

    Attributes:
      step: its number, from 1.
      metrics: scalars on the device, `loss` and `finite` among them.
      health: health metrics on the device, only where the step is logged.
      cosines: of the losses' gradients, where the step is logged and has Gramians.
      ids: ids of the batch's examples, as far as this process read them.
      rows: examples in the batch.
      wait: seconds waited for the batch.
    """

    step: int
    metrics: Mapping[str, jax.Array]
    health: Mapping[str, jax.Array] | None
    cosines: conflict.Cosines | None
    ids: Sequence[str]
    rows: int
    wait: float


class Recorder:
    """Settles steps one behind their dispatch, so that the device never waits."""

    def __init__(
        self,
        *,
        start: int,
        total: int,
        writers: MetricWriter,
        conflicts: JsonlWriter,
        events: EventLog,
        progress: ProgressView,
        max_nonfinite: int,
        dump_dir: pathlib.Path,
        goodput: Goodput | None = None,
        work: Work | None = None,
    ):
        self._start, self._total = start, total
        self._writers, self._conflicts = writers, conflicts
        self._events, self._progress = events, progress
        self._max_nonfinite, self._dump_dir = max_nonfinite, dump_dir
        self._goodput, self._work = goodput or Goodput(), work or Work()
        self._begin = self._after_first = time.perf_counter()
        self._compiled_before = self._goodput.seconds["compile"]
        self._compile_seconds = 0.0
        self._times: collections.deque[tuple[float, float]] = collections.deque(
            maxlen=_WINDOW + 1
        )
        self._wait = self._samples = self._skipped = self._streak = self._rows = 0
        self._sums: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._summed, self._unranked_told = 0, False
        self._losses: list[float] = []
        self._health: dict[str, float] = {}
        self._collapsed_before = self._collapse_told = self._fallback = False
        self._pending: Dispatched | None = None

    def dispatched(self, step: Dispatched) -> None:
        """Notes a step as under way; the one before it must be settled."""
        self._pending = step
        self._samples += step.rows
        self._rows = step.rows
        now = time.perf_counter()
        if self._times:
            self._wait += step.wait
        else:  # the first step compiles: speed is measured after it
            self._after_first = now
            spent = self._goodput.seconds["compile"]
            self._compile_seconds = spent - self._compiled_before
            self._events.write(
                "first_step", step=step.step, seconds=round(self._compile_seconds, 3)
            )
            self._progress.note(f"first step compiled in {self._compile_seconds:.1f} s")
        self._times.append((now, self._wait))

    def settle(self) -> None:
        """Fetches the step under way and records it; without one, does nothing.

        Raises:
          UserError: `max_nonfinite` steps in a row were not finite.
        """
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        metrics = _fetched(done.metrics)
        if metrics["finite"]:
            self._streak = 0
            self._losses = [*self._losses[:1], metrics["loss"]]
            for name, value in metrics.items():
                self._sums[name] += value
            self._summed += 1
        if done.health is not None:
            self._health = _fetched(done.health)
            self._write_row(done, metrics)
            self._watch_collapse(done.step)
        if done.cosines is not None:
            ids = done.ids if len(done.ids) == done.rows else ()
            if row := conflict.row(done.cosines, ids):
                self._conflicts.write(done.step, row)
        self._watch_audit(done.step, metrics)
        self._progress.update(
            Reading(
                step=done.step,
                total=self._total,
                loss=metrics["loss"],
                speed=self._speed(),
                goodput=self._goodput.shares["step"],
                logged=done.health is not None,
            )
        )
        if not metrics["finite"]:
            self._skip(done, metrics)

    def measured(
        self, found: Mapping[str, float], *, step: int, best: str | None
    ) -> dict[str, float]:
        """Metrics of a checkpoint: means over the finite steps since the last call.

        Args:
          found: metrics of hooks at this step, which come first.
          step: of the checkpoint.
          best: what it is to be ranked by; a warning tells once where it is not there.
        """
        means = {n: total / self._summed for n, total in self._sums.items()}
        self._sums.clear()
        self._summed = 0
        metrics = {**means, **found}
        if best and best not in metrics and not self._unranked_told:
            self._unranked_told = True
            self._warn(
                f"checkpoint {step} is not ranked: checkpoint.best.metric {best!r} was "
                f"not measured{nearest(best, metrics)}. An evaluation's metric counts "
                "only where it runs at the step of a checkpoint: make evals.every a "
                "divisor of checkpoint.every",
                step=step,
            )
        return metrics

    def _warn(self, message: str, *, step: int) -> None:
        self._events.write("warning", step=step, message=message)
        self._progress.note(f"warning: {message}")

    def summary(self, step: int, *, interrupted: str | None = None) -> TrainSummary:
        after = time.perf_counter() - self._after_first
        return TrainSummary(
            start=self._start,
            step=step,
            total=self._total,
            seconds=time.perf_counter() - self._begin,
            compile_seconds=self._compile_seconds,
            samples=self._samples,
            data_wait=self._wait / after if after else 0.0,
            first_loss=self._losses[0] if self._losses else None,
            last_loss=self._losses[-1] if self._losses else None,
            skipped=self._skipped,
            speed=self._speed().metrics(),
            goodput=self._goodput.shares,
            health=self._health,
            interrupted=interrupted,
        )

    def _speed(self) -> Speed:
        rate = wait = 0.0
        if len(self._times) > 1:
            (first, waited), (last, total) = self._times[0], self._times[-1]
            span = max(last - first, 1e-9)
            rate = (len(self._times) - 1) / span
            wait = min((total - waited) / span, 1.0)
        return Speed(rate, self._rows, wait, self._work)

    def _write_row(self, done: Dispatched, metrics: dict[str, float]) -> None:
        shares = {f"goodput/{n}": x for n, x in self._goodput.shares.items()}
        row = {**metrics, **self._health, **self._speed().metrics(), **shares}
        self._writers.write(done.step, row)

    def _watch_collapse(self, step: int) -> None:
        warning = health_lib.collapse_warning(self._health)
        # Two in a row: a fresh model may leave its narrow cone within a few steps.
        if warning and self._collapsed_before and not self._collapse_told:
            self._events.write("collapse", step=step, message=warning)
            self._progress.note(f"warning: step {step}: {warning}")
            self._collapse_told = True
        if not warning:
            self._collapse_told = False
        self._collapsed_before = warning is not None

    def _watch_audit(self, step: int, metrics: Mapping[str, float]) -> None:
        fallback = metrics.get("audit/fallback", 0.0) > 0
        if fallback == self._fallback:
            return
        self._fallback = fallback
        rmse, sign, effect = (metrics[f"audit/{n}"] for n in ("rmse", "sign", "effect"))
        found = (
            f"cosines are off by {rmse:.3f} (rms), {sign:.1%} have the right sign, the "
            f"gradient is off by {effect:.2f} of what harmonization changes"
        )
        if fallback:
            message = (
                "harmonizer.engine.metric no longer stands for all parameters in "
                f"scope: {found}; comparing all of them from now on, which is slower"
            )
        else:
            message = (
                "harmonizer.engine.metric stands for all parameters in scope again: "
                f"{found}"
            )
        self._events.write("audit", step=step, fallback=fallback, message=message)
        self._progress.note(f"{'warning: ' * fallback}step {step}: {message}")

    def _skip(self, done: Dispatched, metrics: dict[str, float]) -> None:
        self._skipped += 1
        self._streak += 1
        path = self._dump_dir / f"step_{done.step}.json"
        dump = {"step": done.step, "ids": list(done.ids), "metrics": finite(metrics)}
        try:
            self._dump_dir.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dump, indent=1))
        except OSError as error:
            raise disk_error(path, error) from error
        self._events.write(
            "nonfinite", step=done.step, in_a_row=self._streak, dump=str(path)
        )
        self._progress.note(
            f"warning: step {done.step} skipped: its loss or gradient is not finite; "
            f"ids of its batch in {path}"
        )
        if self._streak >= self._max_nonfinite:
            raise UserError(
                f"the loss or gradient was not finite for {self._streak} steps in a "
                f"row (steps {done.step - self._streak + 1} to {done.step}), the limit "
                f"is {self._max_nonfinite}; look at the examples named in "
                f"{self._dump_dir}, then run the same command again: it continues "
                "from the last checkpoint. Or lower optim.peak_lr, in a new workdir"
            )


def _fetched(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
