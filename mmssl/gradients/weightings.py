"""Rules that turn the losses of a batch into weights per sample and loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmssl.errors import UserError, nearest


class Weighting(Protocol):
    """Static loss weights; the base that gradient-dependent rules modify."""

    def loss_weights(self, names: Sequence[str]) -> Float[Array, "k"]: ...


@dataclasses.dataclass(frozen=True)
class Sum:
    """Every loss with weight 1: the plain gradient of the sum of the losses."""

    def loss_weights(self, names: Sequence[str]) -> Float[Array, "k"]:
        return jnp.ones(len(names), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A constant weight per loss name, for example VATT's lambda on `vt`.

    Attributes:
      weights: loss name to weight; a loss without an entry raises, and so does an
        entry without a loss.
    """

    weights: Mapping[str, float]

    def loss_weights(self, names: Sequence[str]) -> Float[Array, "k"]:
        for name in (*self.weights, *names):
            if name not in names or name not in self.weights:
                raise UserError(
                    f"harmonizer.weights must name each loss once: losses are "
                    f"{sorted(names)}, weights are {sorted(self.weights)}; {name!r} "
                    f"stands on one side only{nearest(name, names)}"
                )
        return jnp.asarray([self.weights[n] for n in names], jnp.float32)


WEIGHTINGS = {"sum": Sum, "fixed": Fixed}
