"""All that a run carries from one step to the next."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, UInt32

from mmssl import rng
from mmssl.gradients import Harmonizer
from mmssl.types import Objective, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; checkpoints hold it whole.

    Attributes:
      step: steps taken.
      params: encoder parameters, float32.
      heads: objective name to head parameters.
      opt_state: of the optimizer over {"params", "heads"}.
      harmonizer: the harmonizer's state.
      extras: objective name to objective state (batch statistics, queues).
      key: data of the run's constant base key; steps fold into it.
    """

    step: Int[Array, ""]
    params: Params
    heads: dict[str, Params]
    opt_state: Any
    harmonizer: Any
    extras: dict[str, Any]
    key: UInt32[Array, "..."]

    @property
    def typed_key(self) -> Key[Array, ""]:
        """The base key, typed: raw data is what checkpoints can hold."""
        return jax.random.wrap_key_data(self.key)


def init_state(
    key: Key[Array, ""],
    *,
    init_params: Callable[[Key[Array, ""]], Params],
    objectives: Mapping[str, Objective],
    widths: Mapping[str, int],
    harmonizer: Harmonizer,
    tx: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step; jit it with the shardings you want.

    Args:
      key: the run's base key.
      init_params: key -> encoder parameters.
      objectives: by name, as in the config.
      widths: pooled width per modality, for the heads.
      harmonizer: its state is part of the run's.
      tx: the optimizer.
    """
    params = init_params(rng.stream(key, "init/encoder"))
    heads, extras = {}, {}
    for name, objective in objectives.items():
        heads[name], extras[name] = objective.init(
            rng.stream(key, f"init/{name}"), widths
        )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        heads=heads,
        opt_state=tx.init({"params": params, "heads": heads}),
        harmonizer=harmonizer.init(),
        extras=extras,
        key=jax.random.key_data(key),
    )
