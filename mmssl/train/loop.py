"""The training loop: batches in, steps dispatched, checkpoints out.

It knows no model, objective or dataset: the step, the state and the data are values.
"""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax

from mmssl.errors import UserError
from mmssl.parallel import distributed
from mmssl.train import conflict
from mmssl.train.checkpoint import Checkpointer
from mmssl.train.goodput import Goodput
from mmssl.train.health import health
from mmssl.train.hooks import Hook, StoppedError, Told
from mmssl.train.metrics import EventLog, JsonlWriter, MetricWriter
from mmssl.train.preemption import Preemption
from mmssl.train.profile import Profile
from mmssl.train.recorder import Dispatched, ProgressView, Recorder, TrainSummary
from mmssl.train.speed import Work
from mmssl.types import RawBatch

S = TypeVar("S", bound="Stepping")

DeviceBatch = tuple[RawBatch, Sequence[Mapping[str, Any]], float, dict[str, Any]]
"""Batch on the device, info of each example (`id`), seconds waited for it, and the
data iterator's state (JSON) after it."""


class Stepping(Protocol):
    """A pytree that counts its steps: int32 scalar `step`."""

    @property
    def step(self) -> jax.Array: ...


class Output(Protocol):
    """Scalars `metrics` (`loss`, `finite`, ...), `embeddings` {m/space: [b, e]}, and
    `gram` [g, k, k] of the gradients of `losses`, or None."""

    @property
    def metrics(self) -> Mapping[str, jax.Array]: ...

    @property
    def embeddings(self) -> Mapping[str, jax.Array]: ...

    @property
    def gram(self) -> jax.Array | None: ...

    @property
    def losses(self) -> Sequence[str]: ...


class JittedStep(Protocol[S]):
    """Donates the state. Where `finite` is False it changed nothing but the count."""

    def __call__(self, state: S, raw: RawBatch, /) -> tuple[S, Output]: ...


class Seekable(Protocol):
    """A data pipeline that continues from a state it gave."""

    def set_state(self, state: dict[str, Any], /) -> None: ...


def resume(
    like: S,
    pipeline: Seekable,
    *,
    checkpointer: Checkpointer,
    writers: MetricWriter,
    conflicts: JsonlWriter,
    events: EventLog,
    progress: ProgressView,
    goodput: Goodput,
) -> S | None:
    """Puts state, data and metrics back to the newest undamaged checkpoint.

    Call before the first batch is read. Damaged checkpoints are passed over with a
    warning event. Rows of metrics and conflicts after the restored step are dropped:
    the run writes them again.

    Args:
      like: the state, abstract or concrete, with the shardings to restore to.
      goodput: told what was spent before, and what is lost.

    Returns:
      The state, or None where there is no checkpoint: start from a fresh one.

    Raises:
      UserError: see `Checkpointer.restore`.
    """
    if distributed.from_first(checkpointer.latest) is None:
        writers.truncate(0)
        conflicts.truncate(0)
        goodput.resumed({}, since=0.0)
        return None
    restored = checkpointer.restore(like)
    for warning in restored.warnings:
        events.write("warning", message=warning, step=restored.step)
        progress.note(f"warning: {warning}; going back to step {restored.step}")
    writers.truncate(restored.step)
    conflicts.truncate(restored.step)
    pipeline.set_state(restored.data_state)
    goodput.resumed(restored.spent, since=restored.time)
    events.write("resume", step=restored.step)
    return restored.state


def train(
    state: S,
    step_fn: JittedStep[S],
    data: Iterator[DeviceBatch],
    *,
    steps: int,
    checkpointer: Checkpointer,
    writers: MetricWriter,
    conflicts: JsonlWriter,
    events: EventLog,
    progress: ProgressView,
    dump_dir: str | os.PathLike[str],
    log_every: int = 10,
    max_nonfinite: int = 10,
    hooks: Sequence[Hook] = (),
    goodput: Goodput | None = None,
    work: Work | None = None,
    profile: Profile | None = None,
) -> tuple[S, TrainSummary]:
    """Trains from `state.step` to `steps`; every batch read is a step taken.

    Metrics of a step are fetched after the next one is dispatched, so the device never
    waits for the host. A checkpoint holds the state and the data position after
    exactly the same batch. On the first SIGTERM, SIGUSR1 or Ctrl-C the step under way
    is finished and saved.

    Args:
      state: fresh, or what `resume` gave. It is donated.
      step_fn: jitted, donates its state.
      data: endless; see `DeviceBatch`.
      steps: where the run ends, counted from its very beginning.
      checkpointer: saves at its own pace, at the last step, and when interrupted.
      writers: get a row every `log_every` steps and at the last.
      conflicts: gets one at the same steps, if the step gives Gramians; see `conflict`.
      events: log of what is out of the ordinary.
      progress: what a person watches.
      dump_dir: where a step that was not finite leaves `step_N.json` with the ids of
        its batch.
      log_every: steps between rows.
      max_nonfinite: steps in a row without a finite loss and gradient that end the run.
      hooks: run between steps, but not once a signal came; their metrics are written.
        A checkpoint of the same step is saved before, or after where its retention
        ranks by a metric `eval/...`. One that fails costs no more than its metrics.
      goodput: the clock of the whole session, begun before this call; None = begun now.
      work: of a step, for tokens per second and utilisation.
      profile: of some of the steps.

    Returns:
      The last state, and what happened. `summary.interrupted` names the signal.

    Raises:
      UserError: too many steps in a row were not finite, a checkpoint could not be
        saved, or the data ended.
    """
    if log_every < 1 or max_nonfinite < 1:
        raise UserError(
            f"log.every and max_nonfinite must be at least 1, found {log_every} and "
            f"{max_nonfinite}"
        )
    start = int(jax.device_get(state.step))
    goodput, profile = goodput or Goodput(), profile or Profile()
    recorder = Recorder(
        start=start,
        total=steps,
        writers=writers,
        conflicts=conflicts,
        events=events,
        progress=progress,
        max_nonfinite=max_nonfinite,
        dump_dir=pathlib.Path(dump_dir),
        goodput=goodput,
        work=work,
    )
    if start >= steps:
        progress.note(
            f"already at step {start} of {steps}: nothing to do; more `steps` are "
            "another schedule, so give them a new workdir"
        )
        return state, recorder.summary(start)

    step, interrupted = start, None
    best = checkpointer.retention.best and checkpointer.retention.best.metric
    events.write("start", step=start, total=steps, lost=round(goodput.lost_now, 3))
    progress.start(start, steps)
    if work is not None and work.flops and not work.peak:
        progress.note("no MFU: there are no figures of what these devices can do")

    def keep_at(
        state: S,
        data_state: dict[str, Any],
        step: int,
        found: Mapping[str, float],
        best: str | None,
    ) -> None:
        with goodput.part("checkpoint"):
            # Rows up to a checkpoint are on disk before it counts.
            writers.flush()
            checkpointer.save(
                state,
                data_state,
                step=step,
                metrics=recorder.measured(found, step=step, best=best),
                spent=goodput.seconds,
            )

    goodput.begin(start + 1)
    try:
        with Preemption() as preemption, jax.transfer_guard("disallow"):
            while step < steps and interrupted is None:
                step += 1
                goodput.step = step
                profile.before(step)
                with goodput.part("data"):
                    raw, info, wait, data_state = _next(data, step)
                # The first call compiles, and returns before the step has run.
                with goodput.part("compile" if step == start + 1 else "step"):
                    state, output = step_fn(state, raw)
                logged = step % log_every == 0 or step == steps
                gram = output.gram if logged else None
                recorder.settle()
                recorder.dispatched(
                    Dispatched(
                        step=step,
                        metrics=output.metrics,
                        health=health(output.embeddings) if logged else None,
                        cosines=None
                        if gram is None
                        else conflict.measure(gram, output.losses),
                        ids=[str(row["id"]) for row in info],
                        rows=raw.example_id.shape[0],
                        wait=wait,
                    )
                )
                if told := profile.after(step, state):
                    progress.note(told)
                interrupted = preemption.requested()
                # Who was told to stop saves, and does nothing else.
                wanted = () if interrupted else hooks
                due = [hook for hook in wanted if hook.due(step, total=steps)]
                save = step == steps or interrupted or checkpointer.due(step)
                if due or save:
                    recorder.settle()
                keep = functools.partial(keep_at, state, data_state, step)
                # Before the hooks, which may fail; unless they say how good it is.
                ranked = bool(due and best and best.startswith("eval/"))
                if save and not ranked:
                    keep({}, best)
                if due:
                    told = preemption.requested
                    try:
                        with goodput.part("eval"), jax.transfer_guard("allow"):
                            found = _run(due, step, state, told, events, progress)
                    except Exception:
                        if save and ranked:
                            keep({}, None)
                        raise
                    if found:
                        writers.write(step, found)
                    interrupted = preemption.requested()
                    if ranked if save else interrupted:
                        keep(found, best if found else None)
            with goodput.part("checkpoint"):
                checkpointer.wait()
    finally:
        profile.close()
        progress.close()
        writers.flush()
    summary = recorder.summary(step, interrupted=interrupted)
    counts = {
        "seconds": round(summary.seconds, 3),
        "samples": summary.samples,
        "skipped": summary.skipped,
    }
    if interrupted:
        events.write("interrupted", step=step, signal=interrupted, **counts)
    else:
        events.write("end", step=step, **counts)
    return state, summary


def _run(
    hooks: Sequence[Hook],
    step: int,
    state: Any,
    told: Told,
    events: EventLog,
    progress: ProgressView,
) -> dict[str, float]:
    """Metrics of all; one that fails for want of data or disk gives none."""
    found: dict[str, float] = {}
    for hook in hooks:
        try:
            found |= hook.run(step, state, told)
        except StoppedError:
            break
        except (UserError, OSError) as error:
            message = f"no evaluation at step {step}: {error}"
            events.write("warning", step=step, message=message)
            progress.note(f"warning: {message}")
    return found


def _next(data: Iterator[DeviceBatch], step: int) -> DeviceBatch:
    try:
        return next(data)
    except StopIteration:
        raise UserError(
            f"the data ended before step {step}; training needs an endless stream: "
            "give data.path a split with at least one batch of usable examples"
        ) from None
