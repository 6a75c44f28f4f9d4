"""From an encoder and losses to one gradient, through weights per sample and loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmssl.gradients import cotangents as ct
from mmssl.gradients.weightings import Sum, Weighting


@dataclasses.dataclass(frozen=True)
class Weighed:
    """A harmonizer's answer.

    Attributes:
      weights: [b, k] for the encoder's cotangents.
      loss_weights: [k] for the heads, which belong to one loss each.
      state: the harmonizer's next state.
    """

    weights: Float[Array, "b k"]
    loss_weights: Float[Array, "k"]
    state: Any


@dataclasses.dataclass(frozen=True)
class Harmonizer:
    """Chooses the weights [b, k]. Holds no arrays; its state is passed in."""

    weighting: Weighting = dataclasses.field(default_factory=Sum)

    def init(self) -> Any:
        """State before the first step."""
        return {}

    def weigh(
        self, names: tuple[str, ...], rows: int, state: Any, *, step: Int[Array, ""]
    ) -> Weighed:
        """Weights for a batch of `rows` samples and the losses `names`."""
        del step  # constant weights; schedules read it
        per_loss = self.weighting.loss_weights(names)
        return Weighed(
            weights=jnp.broadcast_to(per_loss, (rows, len(names))),
            loss_weights=per_loss,
            state=state,
        )


@dataclasses.dataclass(frozen=True)
class Backward:
    """Everything one backward gives: gradients, the losses, and the new state."""

    params: Any
    heads: Any
    total: Float[Array, ""]
    losses: dict[str, Float[Array, ""]]
    aux: Any
    state: Any


def backward(
    encode: Callable[[Any], Any],
    params: Any,
    loss_fn: ct.LossFn,
    heads: Any,
    *,
    harmonizer: Harmonizer,
    state: Any,
    step: Int[Array, ""],
) -> Backward:
    """One forward, one cheap backward per loss to the seam, one full backward.

    Args:
      encode: params -> encoded, a pytree whose leaves lead with the batch axis, row i
        depending on sample i only.
      params: what `encode` is differentiated in.
      loss_fn: (heads, encoded) -> ({name: scalar}, aux).
      heads: parameters of the losses; they get the plain weighted gradient.
      harmonizer: chooses the weights.
      state: the harmonizer's state.
      step: the training step.
    """
    encoded, pullback = jax.vjp(encode, params)
    rows = jax.tree.leaves(encoded)[0].shape[0]
    c = ct.per_loss(loss_fn, heads, encoded)
    weighed = harmonizer.weigh(c.names, rows, state, step=step)
    (param_grads,) = pullback(ct.combine(c.encoded, weighed.weights))
    return Backward(
        params=param_grads,
        heads=ct.combine_heads(c.heads, weighed.loss_weights),
        total=(weighed.loss_weights * c.losses).sum(),
        losses=dict(zip(c.names, c.losses, strict=True)),
        aux=c.aux,
        state=weighed.state,
    )
