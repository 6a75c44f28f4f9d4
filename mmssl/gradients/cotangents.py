"""The seam between losses and encoder: one cotangent per loss and sample.

With z_i = encode(params, x_i) row-wise and losses L_k of all z, the cotangent
c_i^k = dL_k/dz_i is one cheap backward through heads and losses, and
g_i^k = J_i^T c_i^k is sample i's exact share of grad L_k: sum_i g_i^k = grad L_k, also
when L_k couples samples. A VJP is linear, so any per-sample re-weighting of those
shares, sum_i sum_k w_i^k g_i^k, is one ordinary backward of sum_k w_i^k c_i^k.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LossFn = Callable[[Any, Any], tuple[Mapping[str, jax.Array], Any]]
"""(heads, encoded) -> ({loss name: scalar}, auxiliary outputs)."""


@dataclasses.dataclass(frozen=True)
class Cotangents:
    """Losses of one batch and their derivatives at the encoder's output.

    Attributes:
      names: the k loss names, in the order of every axis k.
      losses: [k] values, float32.
      encoded: like the encoder's output, leaves [k, b, ...].
      heads: like the head parameters, leaves [k, ...].
      aux: what the loss function returned beside its losses.
    """

    names: tuple[str, ...]
    losses: Float[Array, "k"]
    encoded: Any
    heads: Any
    aux: Any


def per_loss(loss_fn: LossFn, heads: Any, encoded: Any) -> Cotangents:
    """Differentiates every loss separately, down to `encoded` and no further.

    Args:
      loss_fn: see `LossFn`; its dictionary's order names the losses.
      heads: parameters that belong to the losses.
      encoded: a pytree whose leaves lead with the batch axis b.
    """

    names: list[str] = []

    def vector(heads: Any, encoded: Any) -> tuple[jax.Array, Any]:
        losses, aux = loss_fn(heads, encoded)
        names[:] = losses
        return jnp.stack([losses[n].astype(jnp.float32) for n in names]), aux

    losses, pullback, aux = jax.vjp(vector, heads, encoded, has_aux=True)
    # One call per loss instead of a vmap: k is small, and no batched rule is needed.
    rows = [pullback(one_hot) for one_hot in jnp.eye(len(names), dtype=jnp.float32)]
    by_head, by_encoded = jax.tree.map(lambda *row: jnp.stack(row), *rows)
    return Cotangents(tuple(names), losses, by_encoded, by_head, aux)


def combine(encoded_cotangents: Any, weights: Float[Array, "b k"]) -> Any:
    """sum_k w_i^k c_i^k: leaves [k, b, ...] -> [b, ...]."""

    def leaf(c: jax.Array) -> jax.Array:
        w = weights.T.reshape(*weights.T.shape, *(1,) * (c.ndim - 2))
        return (c * w.astype(c.dtype)).sum(0)

    return jax.tree.map(leaf, encoded_cotangents)


def combine_heads(head_cotangents: Any, loss_weights: Float[Array, "k"]) -> Any:
    """sum_k w^k dL_k/dheads: leaves [k, ...] -> [...]."""
    return jax.tree.map(
        lambda g: jnp.tensordot(loss_weights.astype(g.dtype), g, axes=1),
        head_cotangents,
    )
