"""From an encoder and losses to one gradient, through weights per sample and loss."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmssl.errors import UserError
from mmssl.gradients import cotangents as ct
from mmssl.gradients import trim as trim_lib
from mmssl.gradients.curriculum import Curriculum
from mmssl.gradients.engines import (
    Embedding,
    Engine,
    Plain,
    Pulled,
    Tower,
    Vmap,
    Weigh,
)
from mmssl.gradients.statistics import summarise
from mmssl.gradients.weightings import Sum, Weighting
from mmssl.types import Metrics, Params


@dataclasses.dataclass(frozen=True)
class Harmonizer:
    """Engine, rule and filters. Holds no arrays; its state is passed in.

    `trim` and the curriculum filter first, the rule realigns what they keep.

    Attributes:
      weighting: Gramians [..., k, k] -> weights [..., k].
      curriculum: which samples count, by their conflict; None = all.
      trim: which samples a loss keeps, by its values; None = all.
      engine: where Gramians come from; not asked where nothing reads them.
      group: samples whose gradients are summed before they are compared: 1 = each by
        itself, n, or 0 = the whole batch (PCGrad).
      micro_batch: samples whose activations are held at once, at the price of a second
        forward; 0 = all. The losses still see the whole batch.
      monitor: compute Gramians and their statistics though nothing needs them.

    Raises:
      UserError: an engine whose Gramians mean nothing to the rule.
    """

    weighting: Weighting = dataclasses.field(default_factory=Sum)
    curriculum: Curriculum | None = None
    trim: trim_lib.Trim | None = None
    engine: Engine = dataclasses.field(default_factory=Vmap)
    group: int = 1
    micro_batch: int = 0
    monitor: bool = False

    def __post_init__(self) -> None:
        if self.weighting.uses_gramian and isinstance(self.engine, Embedding):
            raise UserError(
                "harmonizer.engine 'embedding' is a proxy whose norms are not those of "
                f"gradients: weighting {type(self.weighting).__name__!r} cannot use "
                "it. Use it with a curriculum, or take engine 'subset' or 'exact'"
            )
        for name in ("group", "micro_batch"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"harmonizer.{name}: expected 0 or more, found "
                    f"{getattr(self, name)}"
                )

    @property
    def reads_gramian(self) -> bool:
        """Whether a step needs Gramians at all."""
        needed = self.weighting.uses_gramian or self.curriculum is not None
        return needed or self.monitor

    def init(self) -> dict[str, Any]:
        """State before the first step."""
        return {
            "engine": self.engine.init() if self.reads_gramian else {},
            "curriculum": self.curriculum.init() if self.curriculum else {},
        }

    def loss_weights(self, names: Sequence[str]) -> Float[Array, "k"]:
        """Constant weights of the losses: those of a rule that reads no Gramian."""
        k = len(names)
        if self.weighting.uses_gramian:
            return jnp.ones(k)
        return self.weighting(jnp.zeros((k, k)), names=names, key=jax.random.key(0))

    def keep(
        self, gram: Float[Array, "g k k"], names: Sequence[str], state: Any, step: Any
    ) -> Float[Array, "g"]:
        """The curriculum's weight of each sample or group."""
        if self.curriculum is None:
            return jnp.ones(gram.shape[0])
        return self.curriculum.keep(
            gram, names=names, state=state["curriculum"], step=step
        )

    def weigher(
        self, names: Sequence[str], state: Any, step: Any, key: Key[Array, ""]
    ) -> Weigh:
        """Gramians -> weights, by curriculum and rule."""

        def weigh(gram: Float[Array, "g k k"]) -> Float[Array, "g k"]:
            keep = self.keep(gram, names, state, step)
            if not self.weighting.uses_gramian:
                return jnp.broadcast_to(keep[:, None], gram.shape[:-1])
            return keep[:, None] * self.weighting(gram, names=names, key=key)

        return weigh


@dataclasses.dataclass(frozen=True)
class Backward:
    """Everything one backward gives.

    Attributes:
      params: gradient of the encoder.
      heads: gradient of the losses' own parameters, not harmonized: each belongs to
        one loss.
      total: the weighted sum of the losses.
      losses: by name, unweighted.
      aux: what the loss function returned beside its losses.
      state: the harmonizer's next state.
      metrics: conflict statistics and what was trimmed, name to scalar.
      gram: [g, k, k] of the weighted losses; None without.
    """

    params: Params
    heads: Params
    total: Float[Array, ""]
    losses: dict[str, Float[Array, ""]]
    aux: Any
    state: Any
    metrics: Metrics
    gram: Float[Array, "g k k"] | None


def backward(
    towers: Mapping[str, Tower],
    params: Params,
    rows: Any,
    loss_fn: ct.LossFn,
    heads: Params,
    *,
    harmonizer: Harmonizer,
    state: Any,
    step: Int[Array, ""],
    key: Key[Array, ""],
    present: Mapping[str, Bool[Array, "b"]] | None = None,
    per_sample: Callable[[Any], Mapping[str, Float[Array, "b"]]] | None = None,
) -> Backward:
    """One forward, one cheap backward per loss to the seam, one harmonized backward.

    Args:
      towers: the encoder's parts by name; row i of an output depends on row i only.
      params: what the towers share and own.
      rows: what the towers read; every leaf leads with the batch axis.
      loss_fn: (heads, {tower: encoded}) -> ({name: scalar}, aux); may couple samples.
      heads: parameters of the losses.
      harmonizer: chooses the weights.
      state: the harmonizer's state.
      step: the training step.
      key: for rules that draw at random.
      present: tower -> which samples have that modality; None = all. A loss that reads
        a tower which a sample lacks is not compared for that sample.
      per_sample: what `loss_fn` returned beside its losses -> each loss's value per
        sample; `trim` needs it.

    Raises:
      UserError: sizes that do not divide, see the engines; `trim` without the values of
        a loss.
    """
    engine = harmonizer.engine if harmonizer.reads_gramian else Plain()
    batch = jax.tree.leaves(rows)[0].shape[0]
    group = harmonizer.group or batch
    micro = harmonizer.micro_batch or batch
    if micro < batch:
        encoded = _encoded(towers, params, rows, group, micro)
        pullback = None
    else:
        encoded, pullback = engine.vjp(towers, params, rows, group=group)
    c = ct.per_loss(loss_fn, heads, encoded, present)
    fixed = harmonizer.loss_weights(c.names)
    plain, c = c.losses, c.scaled(fixed)
    trimmed: Metrics = {}
    if harmonizer.trim is not None:
        values = _values(per_sample(c.aux) if per_sample else {}, c.names)
        kept = harmonizer.trim.keep(values, c.present, names=c.names, step=step)
        c = c.weighed(trim_lib.scale(kept, c.present))
        trimmed = trim_lib.metrics(kept, c.present, c.names)
    weigh = harmonizer.weigher(c.names, state, step, key)
    if pullback is None:
        pulled = _accumulated(
            engine, towers, params, rows, c, weigh, state["engine"], step, group, micro
        )
    else:
        pulled = pullback(c, weigh, state["engine"], step)
    grads, metrics, next_state = pulled.grads, {**trimmed, **pulled.metrics}, state
    if pulled.gram is not None:
        gram = pulled.gram
        keep = harmonizer.keep(gram, c.names, state, step)
        weights = pulled.weights / jnp.where(keep > 0, keep, 1)[:, None]
        metrics |= summarise(gram, weights, keep, c.names)
        own = state["curriculum"]
        if harmonizer.curriculum is not None:
            scale = harmonizer.curriculum.scale(keep)
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
            own = harmonizer.curriculum.update(own, gram, c.names, step)
        next_state = {"engine": pulled.state, "curriculum": own}
    return Backward(
        params=grads,
        heads=ct.combine_heads(c.heads),
        total=c.losses.sum(),
        losses=dict(zip(c.names, plain, strict=True)),
        aux=c.aux,
        state=next_state,
        metrics=metrics,
        gram=pulled.gram,
    )


def _values(
    by_name: Mapping[str, Float[Array, "b"]], names: Sequence[str]
) -> Float[Array, "b k"]:
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(
            f"harmonizer.trim ranks samples by their losses, but there are no values "
            f"per sample of {missing}; give them, or remove trim"
        )
    found = jnp.stack([by_name[name] for name in names], 1).astype(jnp.float32)
    return jax.lax.stop_gradient(found)


# -- micro-batches ---------------------------------------------------------------------


def _split(x: jax.Array, group: int, micro: int) -> jax.Array:
    """[b, ...] -> [m, micro, ...]: each part takes every m-th group.

    Strided, so that rows stay on the device that has them when a batch is sharded.
    """
    parts = x.shape[0] // micro
    split = x.reshape(micro // group, parts, group, *x.shape[1:])
    return split.swapaxes(0, 1).reshape(parts, micro, *x.shape[1:])


def _joined(x: jax.Array, group: int, micro: int) -> jax.Array:
    """The inverse of `_split`."""
    split = x.reshape(x.shape[0], micro // group, group, *x.shape[2:])
    return split.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _parts(rows: Any, group: int, micro: int) -> Any:
    batch = jax.tree.leaves(rows)[0].shape[0]
    if batch % micro or micro % group:
        raise UserError(
            f"harmonizer.micro_batch {micro} must divide the batch of {batch}, and "
            f"harmonizer.group {group} (0 = the batch) must divide it"
        )
    return jax.tree.map(lambda x: _split(x, group, micro), rows)


def _encoded(
    towers: Mapping[str, Tower], params: Params, rows: Any, group: int, micro: int
) -> dict[str, Any]:
    """The whole batch's outputs, nothing kept for a backward."""
    out = jax.lax.map(
        lambda own: {name: tower.encode(params, own) for name, tower in towers.items()},
        _parts(rows, group, micro),
    )
    return jax.tree.map(lambda x: _joined(x, group, micro), out)


def _accumulated(
    engine: Engine,
    towers: Mapping[str, Tower],
    params: Params,
    rows: Any,
    c: ct.Cotangents,
    weigh: Weigh,
    state: Any,
    step: Any,
    group: int,
    micro: int,
) -> Pulled:
    """Forward again and harmonized backward, one micro-batch at a time."""
    cotangents = jax.tree.map(
        lambda x: jax.vmap(lambda own: _split(own, group, micro))(x).swapaxes(0, 1),
        c.encoded,
    )
    present = _split(c.present, group, micro)

    def one(carry: Any, own: Any) -> tuple[Any, Any]:
        total, state = carry
        rows, encoded, present = own
        _, pullback = engine.vjp(towers, params, rows, group=group)
        part = dataclasses.replace(c, encoded=encoded, present=present)
        pulled = pullback(part, weigh, state, step)
        total = jax.tree.map(jnp.add, total, pulled.grads)
        return (total, pulled.state), (pulled.gram, pulled.weights, pulled.metrics)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, state), (gram, weights, metrics) = jax.lax.scan(
        one, (zeros, state), (_parts(rows, group, micro), cotangents, present)
    )
    return Pulled(
        grads=grads,
        gram=None if gram is None else _joined(gram, 1, gram.shape[1]),
        weights=_joined(weights, 1, weights.shape[1]),
        state=state,
        metrics={name: value.mean() for name, value in metrics.items()},
    )
