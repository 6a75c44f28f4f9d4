"""A running average of the parameters, for evaluation and export."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mmssl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Average:
    """Exponential moving average: a <- r a + (1 - r) p after every step.

    The rate r is `decay`, but at most (1 + step) / (10 + step), so that the random
    start is forgotten within the first steps.

    Attributes:
      decay: share that stays; the average reaches back about 1 / (1 - decay) steps.

    Raises:
      UserError: a decay outside (0, 1).
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise UserError(f"ema.decay: expected 0 < decay < 1, found {self.decay}")

    def rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """What stays of the average at a step, counted from 0."""
        step = step.astype(jnp.float32)
        return jnp.minimum(self.decay, (1.0 + step) / (10.0 + step))

    def init(self, params: Any) -> Any:
        """The average before the first step: a copy."""
        return jax.tree.map(jnp.copy, params)

    def update(self, average: Any, params: Any, step: Int[Array, ""]) -> Any:
        """The average after a step that ended in `params`."""
        return optax.incremental_update(params, average, 1.0 - self.rate(step))  # pyright: ignore[reportArgumentType]
