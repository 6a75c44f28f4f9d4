"""The one train step. Objectives, model, harmonizer and optimizer are values."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mmssl import rng, trees
from mmssl.gradients import Harmonizer, Tower, backward
from mmssl.optim.ema import Average
from mmssl.parallel import rules
from mmssl.train.state import TrainState
from mmssl.types import (
    Batch,
    Encoded,
    EncodeFn,
    Metrics,
    Objective,
    Params,
    PrepareFn,
    RawBatch,
    Recorded,
    RecordFn,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What a step tells its loop.

    Attributes:
      metrics: scalars; `finite` is False where the update was skipped.
      embeddings: `modality/space` to [b, e], L2-normalised.
      gram: [g, k, k] of the losses' gradients per sample or group; None where the
        harmonizer reads none.
      losses: names of the k losses, in the order of `gram`.
    """

    metrics: Metrics
    embeddings: Mapping[str, jax.Array]
    gram: Float[Array, "g k k"] | None
    losses: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


StepFn = Callable[[TrainState, RawBatch], tuple[TrainState, StepOutput]]


def make_step(
    *,
    prepare: PrepareFn,
    encode: EncodeFn,
    record: RecordFn,
    objectives: Mapping[str, Objective],
    harmonizer: Harmonizer,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema: Average | None = None,
) -> StepFn:
    """Builds `step(state, raw) -> (state, output)`; the caller jits it once.

    A step whose loss or gradient is not finite changes nothing but the step count and
    says so in `metrics["finite"]`: nothing is replaced by zeros, nothing is hidden.

    Args:
      prepare: raw media to tokens.
      encode: row-wise encoder.
      record: the same, for harmonizers that look inside it.
      objectives: by name; their losses are the k rows of the seam.
      harmonizer: weights per sample and loss.
      tx: optimizer over {"params", "heads"}.
      schedule: learning rate by step, for the log.
      ema: the running average of the parameters; as given to `state.init_state`.
    """
    reads_tokens = any(objective.reads_tokens for objective in objectives.values())

    def step(state: TrainState, raw: RawBatch) -> tuple[TrainState, StepOutput]:
        key = state.typed_key
        batch = prepare(raw, key=rng.stream(key, "drop_token", state.step))
        rows = raw.example_id.shape[0]
        keys = rng.per_row(rng.stream(key, "dropout", state.step), rows)
        towers = {
            name: _tower(name, encode, record, reads_tokens)
            for name in batch.modalities
        }

        def losses(heads: Any, parts: Any) -> tuple[dict[str, jax.Array], Any]:
            encoded = Encoded(
                tokens={m: own["tokens"] for m, own in parts.items() if reads_tokens},
                pooled={m: own["pooled"] for m, own in parts.items()},
            )
            outputs = {
                name: objective(
                    heads[name],
                    state.extras[name],
                    encoded,
                    batch,
                    key=rng.stream(key, f"objective/{name}", state.step),
                    step=state.step,
                )
                for name, objective in objectives.items()
            }
            return merged({n: out.losses for n, out in outputs.items()}), outputs

        back = backward(
            towers,
            state.params,
            (batch, keys),
            losses,
            state.heads,
            harmonizer=harmonizer,
            state=state.harmonizer,
            step=state.step,
            key=rng.stream(key, "harmonizer", state.step),
            present={name: own.present for name, own in batch.modalities.items()},
            per_sample=lambda outputs: merged(
                {name: out.per_sample for name, out in outputs.items()}
            ),
        )
        grads = rules.at_rest({"params": back.params, "heads": back.heads})
        grad_norm = trees.global_norm(grads)
        finite = jnp.isfinite(back.total) & jnp.isfinite(grad_norm)

        old = {"params": state.params, "heads": state.heads}
        updates, opt_state = tx.update(grads, state.opt_state, old)
        new = optax.apply_updates(old, updates)
        extras = {name: out.state for name, out in back.aux.items()}
        average = ema.update(state.ema, new, state.step) if ema else state.ema
        kept, opt_state, harmonizer_state, extras, average = trees.select(
            finite,
            (new, opt_state, back.state, extras, average),
            (old, state.opt_state, state.harmonizer, state.extras, state.ema),
        )
        metrics = {
            "loss": back.total,
            **{f"loss/{name}": value for name, value in back.losses.items()},
            **merged({name: out.metrics for name, out in back.aux.items()}),
            **back.metrics,
            "grad_norm": grad_norm,
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": finite,
        }
        embeddings = merged({name: out.embeddings for name, out in back.aux.items()})
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=kept["params"],
            heads=kept["heads"],
            opt_state=opt_state,
            harmonizer=harmonizer_state,
            extras=extras,
            ema=average,
        )
        return state, StepOutput(
            metrics=metrics,
            embeddings=embeddings,
            gram=back.gram,
            losses=tuple(back.losses),
        )

    return step


def _tower(name: str, encode: EncodeFn, record: RecordFn, reads_tokens: bool) -> Tower:
    """One modality of the encoder, on rows (batch, keys)."""

    def select(out: Encoded) -> dict[str, jax.Array]:
        # Zero cotangents of tokens that nobody reads would still run their backward.
        tokens = {"tokens": out.tokens[name]} if reads_tokens else {}
        return {"pooled": out.pooled[name], **tokens}

    def only(batch: Batch) -> Batch:
        return dataclasses.replace(batch, modalities={name: batch.modalities[name]})

    def encoded(params: Params, rows: Any) -> dict[str, jax.Array]:
        batch, keys = rows
        return select(encode(params, only(batch), keys=keys))

    def recorded(params: Params, rows: Any) -> Recorded:
        batch, keys = rows
        return record(params, only(batch), keys=keys, select=select)

    return Tower(encoded, recorded)


def merged(by_objective: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Flat names; one that two objectives give gets its objective's prefix."""
    names = [name for values in by_objective.values() for name in values]
    return {
        name if names.count(name) == 1 else f"{objective}/{name}": value
        for objective, values in by_objective.items()
        for name, value in values.items()
    }
