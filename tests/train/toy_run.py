"""A linear model on seeded batches, driven by the real loop; also run as a script."""

import pathlib
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmssl import trees
from mmssl.train import goodput, loop, metrics, recorder
from mmssl.train.checkpoint import Checkpointer
from mmssl.train.state import TrainState
from mmssl.train.step import StepOutput
from mmssl.types import RawBatch

ROWS, WIDTH, SPACE = 4, 6, 3
TX = optax.adam(1e-2)


class Pipeline:
    """Batch n is a function of n alone; its state is n."""

    def __init__(self, *, bad: Collection[int] = (), batches: int = 10**9):
        self.index, self.bad, self.batches = 0, bad, batches
        self.read: list[str] = []

    def get_state(self) -> dict[str, Any]:
        return {"next": self.index}

    def set_state(self, state: dict[str, Any]) -> None:
        self.index = state["next"]

    def __iter__(self) -> Iterator[loop.DeviceBatch]:
        while self.index < self.batches:
            rng = np.random.default_rng([7, self.index])
            audio = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
            if self.index in self.bad:
                audio[0, 0] = np.nan
            ids = [f"clip-{self.index}-{row}" for row in range(ROWS)]
            self.read += ids
            self.index += 1
            raw = RawBatch(
                media={"audio": audio},
                present={"audio": np.ones(ROWS, np.bool_)},
                example_id=np.arange(ROWS, dtype=np.uint32),
            )
            yield jax.device_put(raw), [{"id": i} for i in ids], 0.0, self.get_state()


def fresh_state() -> TrainState:
    w = jax.random.normal(jax.random.key(0), (WIDTH, SPACE))
    params = {"w": w, "layers": [{"b": jnp.zeros((SPACE,))}]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        heads={},
        opt_state=TX.init(params),
        harmonizer=(),
        extras={"mean": jnp.zeros((WIDTH,), jnp.bfloat16)},
        key=jax.random.key_data(jax.random.key(3)),
    )


def toy_step(state: TrainState, raw: RawBatch) -> tuple[TrainState, StepOutput]:
    x = raw.media["audio"]

    def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
        y = jnp.tanh(x @ params["w"] + params["layers"][0]["b"][None])
        return ((y - x[:, :SPACE]) ** 2).mean(), y

    (loss, y), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    finite = jnp.isfinite(loss)
    updates, opt_state = TX.update(grads, state.opt_state)
    mean = (state.extras["mean"] + x.mean(0).astype(jnp.bfloat16)) / 2
    params, opt_state, extras = trees.select(
        finite,
        (optax.apply_updates(state.params, updates), opt_state, {"mean": mean}),
        (state.params, state.opt_state, state.extras),
    )
    unit = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
    state = TrainState(
        step=state.step + 1,
        params=params,
        heads={},
        opt_state=opt_state,
        harmonizer=(),
        extras=extras,
        key=state.key,
    )
    scalars = {"loss": loss, "loss/va": loss, "finite": finite}
    # Two gradients per sample that have nothing to do with the loss.
    pulls = x.reshape(len(x), 2, -1)
    output = StepOutput(
        metrics=scalars,
        embeddings={"audio/va": unit},
        gram=(pulls[:, :, None] * pulls[:, None]).sum(-1),
        losses=("vt", "va"),
    )
    return state, output


STEP = jax.jit(toy_step, donate_argnums=0)


class Quiet:
    """A progress view that remembers."""

    def __init__(self) -> None:
        self.readings: list[recorder.Reading] = []
        self.notes: list[str] = []

    def start(self, step: int, total: int) -> None: ...

    def update(self, reading: recorder.Reading) -> None:
        self.readings.append(reading)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None: ...


def run(
    workdir: pathlib.Path,
    *,
    steps: int,
    every: int = 1000,
    keep: int = 3,
    best: Any = None,
    pipeline: Pipeline | None = None,
    step_fn: Any = STEP,
    progress: Any = None,
    fingerprint: str = "",
    **options: Any,
) -> tuple[TrainState, recorder.TrainSummary, Pipeline]:
    """What `mmssl train` does, on the toy: resume or start, train, close."""
    pipeline = pipeline or Pipeline()
    writers = metrics.JsonlWriter(workdir / "metrics.jsonl")
    conflicts = metrics.JsonlWriter(workdir / "conflict.jsonl")
    events = metrics.EventLog(workdir / "events.jsonl")
    progress = progress or Quiet()
    clock = goodput.Goodput(
        goodput.read_past(workdir / "metrics.jsonl", workdir / "events.jsonl")
    )
    checkpointer = Checkpointer(
        workdir / "checkpoints",
        every=every,
        keep=keep,
        best=best,
        fingerprint=fingerprint,
    )
    try:
        with checkpointer:
            like = jax.eval_shape(fresh_state)
            shared = {
                "checkpointer": checkpointer,
                "writers": writers,
                "conflicts": conflicts,
                "events": events,
                "progress": progress,
                "goodput": clock,
            }
            state = loop.resume(like, pipeline, **shared)
            state, summary = loop.train(
                fresh_state() if state is None else state,
                step_fn,
                iter(pipeline),
                steps=steps,
                dump_dir=workdir / "nonfinite",
                **{"log_every": 1} | shared | options,
            )
    finally:
        writers.close()
        conflicts.close()
        events.close()
    return state, summary, pipeline


def slow_step(state: TrainState, raw: RawBatch) -> tuple[TrainState, StepOutput]:
    time.sleep(0.01)
    return STEP(state, raw)


if __name__ == "__main__":
    # argv: workdir, steps, every
    _, result, _ = run(
        pathlib.Path(sys.argv[1]),
        steps=int(sys.argv[2]),
        every=int(sys.argv[3]),
        step_fn=slow_step,
    )
    sys.exit(75 if result.interrupted else 0)
