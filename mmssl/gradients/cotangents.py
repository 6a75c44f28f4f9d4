"""The seam between losses and encoder: one cotangent per loss and sample.

With z_i = encode(params, x_i) row-wise and losses L_k of all z, the cotangent
c_i^k = dL_k/dz_i is one cheap backward through heads and losses, and
g_i^k = J_i^T c_i^k is sample i's exact share of grad L_k: sum_i g_i^k = grad L_k, also
when L_k couples samples. A VJP is linear, so any per-sample re-weighting of those
shares, sum_i sum_k w_i^k g_i^k, is one ordinary backward of sum_k w_i^k c_i^k.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmssl import trees
from mmssl.errors import UserError

_CALLS = {"pjit", "jit", "remat2", "checkpoint", "closed_call", "custom_jvp_call"}
"""Primitives whose inputs and outputs are those of the program inside."""

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
      present: [b, k] False where a sample lacks a modality that the loss reads.
      reads: per loss, the towers (keys of `encoded`) that it depends on; its
        cotangents of the others are zeros.
    """

    names: tuple[str, ...]
    losses: Float[Array, "k"]
    encoded: Any
    heads: Any
    aux: Any
    present: Bool[Array, "b k"]
    reads: tuple[frozenset[str], ...]

    def reaching(self, tower: str) -> list[int]:
        """Indices of the losses that read a tower."""
        return [k for k, towers in enumerate(self.reads) if tower in towers]

    def grouped(self, group: int) -> Bool[Array, "g k"]:
        """`present` of groups: whether any of their samples has the loss.

        Raises:
          UserError: the group size does not divide the batch.
        """
        rows = self.present.shape[0]
        if rows % group:
            raise UserError(
                f"harmonizer.group {group} does not divide the {rows} rows that are "
                "harmonized together"
            )
        return self.present.reshape(-1, group, len(self.names)).any(1)

    def scaled(self, weights: Float[Array, "k"]) -> "Cotangents":
        """Those of the losses times constants."""

        def scale(x: jax.Array) -> jax.Array:
            return x * weights.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))

        scaled = {
            name: jax.tree.map(scale, getattr(self, name))
            for name in ("losses", "encoded", "heads")
        }
        return dataclasses.replace(self, **scaled)

    def weighed(self, weights: Float[Array, "b k"]) -> "Cotangents":
        """Those at the encoder's output, times a weight per sample and loss."""

        def weigh(c: jax.Array) -> jax.Array:
            w = weights.T.astype(c.dtype)
            return c * w.reshape(*w.shape, *(1,) * (c.ndim - 2))

        return dataclasses.replace(self, encoded=jax.tree.map(weigh, self.encoded))

    def row(self, tower: str, k: int) -> Any:
        """The cotangent of loss k at one tower's output, leaves [b, ...]."""
        return jax.tree.map(lambda c: c[k], self.encoded[tower])


def per_loss(
    loss_fn: LossFn,
    heads: Any,
    encoded: Any,
    present: Mapping[str, Bool[Array, "b"]] | None = None,
) -> Cotangents:
    """Differentiates every loss separately, down to `encoded` and no further.

    Args:
      loss_fn: see `LossFn`; its dictionary's order names the losses.
      heads: parameters that belong to the losses.
      encoded: tower name -> pytree whose leaves lead with the batch axis b.
      present: tower name -> which samples have that modality; None = all.
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
    reads = reach(lambda z: list(loss_fn(heads, z)[0].values()), encoded)
    everywhere = jnp.ones(jax.tree.leaves(encoded)[0].shape[0], bool)
    there = [
        functools.reduce(
            jnp.logical_and,
            [(present or {}).get(tower, everywhere) for tower in sorted(towers)],
            everywhere,
        )
        for towers in reads
    ]
    return Cotangents(
        names=tuple(names),
        losses=losses,
        encoded=by_encoded,
        heads=by_head,
        aux=aux,
        present=jnp.stack(there, axis=1),
        reads=reads,
    )


def reach(
    f: Callable[[Any], Sequence[jax.Array]], encoded: Mapping[str, Any]
) -> tuple[frozenset[str], ...]:
    """Which towers each output of `f` depends on, read off the traced program.

    A loss between two modalities never looks at the third; knowing that spares the
    whole backward of its tower. Errs on the side of too many.
    """
    jaxpr = jax.make_jaxpr(f)(encoded).jaxpr
    leaves = jax.tree_util.tree_leaves_with_path(encoded)
    return tuple(
        _flow(jaxpr, [frozenset([trees.path_name(path[:1])]) for path, _ in leaves])
    )


def _flow(jaxpr: Any, inputs: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """What each output of a program depends on, given that of its inputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> frozenset[str]:
        # Literals are not hashable, and depend on nothing.
        literal = isinstance(atom, jax.extend.core.Literal)
        return frozenset() if literal else known.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        own = [of(v) for v in eqn.invars]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if eqn.primitive.name in _CALLS and inner is not None:
            out = _flow(inner, own)
        else:
            out = [frozenset().union(*own)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, out, strict=True))
    return [of(v) for v in jaxpr.outvars]


def compared(
    gram: Float[Array, "g k k"], present: Bool[Array, "g k"]
) -> Float[Array, "g k k"]:
    """The Gramian without the losses in which a sample has no pair of its own.

    A clip without words still gets a gradient of the video-text loss, as a negative of
    other clips' words. That says nothing about how its own modalities fit.
    """
    return jnp.where(present[:, :, None] & present[:, None, :], gram, 0.0)


def for_rows(weights: Float[Array, "g k"], rows: int) -> Float[Array, "r k"]:
    """Every row gets the weights of its group; groups follow each other."""
    return jnp.repeat(weights, rows // weights.shape[0], axis=0)


def combine(encoded_cotangents: Any, weights: Float[Array, "g k"]) -> Any:
    """sum_k w^k c_i^k, w those of i's group: leaves [k, b, ...] -> [b, ...]."""

    def leaf(c: jax.Array) -> jax.Array:
        w = for_rows(weights, c.shape[1]).T
        w = w.reshape(*w.shape, *(1,) * (c.ndim - 2))
        return (c * w.astype(c.dtype)).sum(0)

    return jax.tree.map(leaf, encoded_cotangents)


def combine_heads(head_cotangents: Any) -> Any:
    """sum_k dL_k/dheads: leaves [k, ...] -> [...]."""
    return jax.tree.map(lambda g: g.sum(0), head_cotangents)
