"""All that a run carries from one step to the next."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, UInt32

from mmssl import rng
from mmssl.errors import UserError
from mmssl.gradients import Harmonizer
from mmssl.optim.ema import Average
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
      ema: running average of {"params", "heads"}; empty for a run that keeps none.
    """

    step: Int[Array, ""]
    params: Params
    heads: dict[str, Params]
    opt_state: Any
    harmonizer: Any
    extras: dict[str, Any]
    key: UInt32[Array, "..."]
    ema: Any = dataclasses.field(default_factory=dict)

    @property
    def typed_key(self) -> Key[Array, ""]:
        """The base key, typed: raw data is what checkpoints can hold."""
        return jax.random.wrap_key_data(self.key)

    def averaged(self) -> "TrainState":
        """The same with the running average in place of the parameters.

        Raises:
          UserError: the run keeps none.
        """
        if not self.ema:
            raise UserError(
                "this run keeps no average of its parameters: train one with "
                "--config.ema.decay=0.9999, or leave out --ema"
            )
        return dataclasses.replace(self, **self.ema)


def init_state(
    key: Key[Array, ""],
    *,
    init_params: Callable[[Key[Array, ""]], Params],
    objectives: Mapping[str, Objective],
    widths: Mapping[str, int],
    harmonizer: Harmonizer,
    tx: optax.GradientTransformation,
    ema: Average | None = None,
) -> TrainState:
    """The state before the first step; jit it with the shardings you want.

    Args:
      key: the run's base key.
      init_params: key -> encoder parameters.
      objectives: by name, as in the config.
      widths: pooled width per modality, for the heads.
      harmonizer: its state is part of the run's.
      tx: the optimizer.
      ema: keeps a running average of the parameters; None = no such average.
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
        ema=ema.init({"params": params, "heads": heads}) if ema else {},
    )
