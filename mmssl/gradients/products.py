"""Inner products of per-sample gradients, one parameterised operation at a time.

A leaf y = f(p, x) with output cotangents Delta^k has per-sample gradients
g^k = (df/dp)^T Delta^k. For a dense kernel that is X^T Delta^k, and so

    <g^k, g^l> = <X^T Delta^k, X^T Delta^l> = <X X^T Delta^l, Delta^k>,

the left form best for many tokens, the right one ("token Gram") for few. A leaf that
several towers share has the sum of its uses as gradient, so the products of one tower
with another belong to it.

Shapes: g samples (or groups of samples), t tokens of one of them, c and d in and out.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmssl.gradients.cotangents import for_rows
from mmssl.types import Leaf, Params

F32 = jnp.float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Use:
    """One leaf in one tower: its input, and per loss the cotangent of its output.

    Attributes:
      x: [r, ...]; the rows r are a multiple of the samples (text candidates).
      deltas: loss index -> [r, ..., d]; losses that do not reach it are left out.
    """

    x: jax.Array
    deltas: Mapping[int, jax.Array]


def _tokens(x: jax.Array, groups: int) -> Float[Array, "g t c"]:
    return x.reshape(groups, -1, x.shape[-1])


def per_sample(
    leaf: Leaf, params: Params, uses: Sequence[Use], groups: int
) -> dict[int, Params]:
    """Loss index -> gradients like `params`, leaves [g, ...] float32.

    Args:
      leaf: the operation.
      params: those of its parameters that are wanted, by name; a "small" leaf needs
        all of them.
      uses: one per tower; their gradients add up.
      groups: g.
    """
    total: dict[int, Params] = {}
    for use in uses:
        for k, delta in use.deltas.items():
            g = _one_use(leaf, params, use.x, delta, groups)
            total[k] = jax.tree.map(jnp.add, total[k], g) if k in total else g
    return total


def _one_use(
    leaf: Leaf, params: Params, x: jax.Array, delta: jax.Array, groups: int
) -> Params:
    if leaf.kind == "dense":
        x, delta = _tokens(x, groups), _tokens(delta, groups)
        made = {}
        if "kernel" in params:
            made["kernel"] = jnp.einsum(
                "gtc,gtd->gcd", x, delta, preferred_element_type=F32
            )
        if "bias" in params:
            made["bias"] = delta.sum(1, dtype=F32)
        return made

    def one(x: jax.Array, delta: jax.Array) -> Params:
        return jax.vjp(lambda p: leaf.apply(p, x), params)[1](delta)[0]

    rows = (v.reshape(groups, -1, *v.shape[1:]) for v in (x, delta))
    return jax.vmap(one)(*rows)


def replayed(
    leaf: Leaf, params: Params, uses: Sequence[Use], weights: Float[Array, "g k"]
) -> Params:
    """The leaf's backward of the weighted cotangents: gradients like `params`."""
    total = jax.tree.map(jnp.zeros_like, params)
    for use in uses:
        if not use.deltas:
            continue
        delta = _weighted(use, weights)
        if leaf.kind == "dense":
            x, delta = _tokens(use.x, 1)[0], _tokens(delta, 1)[0]
            g = {}
            if "kernel" in params:
                g["kernel"] = jnp.einsum(
                    "tc,td->cd", x, delta, preferred_element_type=F32
                )
            if "bias" in params:
                g["bias"] = delta.sum(0, dtype=F32)
        else:
            g = jax.vjp(lambda p, x=use.x: leaf.apply(p, x), params)[1](delta)[0]
        total = jax.tree.map(jnp.add, total, g)
    return total


def _weighted(use: Use, weights: Float[Array, "g k"]) -> jax.Array:
    """sum_k w^k Delta^k in the cotangents' dtype, w those of a row's group."""
    some = next(iter(use.deltas.values()))
    rows = for_rows(weights, some.shape[0])
    rows = rows.reshape(*rows.shape, *(1,) * (some.ndim - 1))
    total = sum(rows[:, k] * delta.astype(F32) for k, delta in use.deltas.items())
    return jnp.asarray(total).astype(some.dtype)


def combined(per_loss: Mapping[int, Params], weights: Float[Array, "g k"]) -> Params:
    """sum_k sum_g w[g, k] g^k: the weighted gradient from kept per-sample ones."""
    parts = [
        jax.tree.map(lambda g, k=k: jnp.tensordot(weights[:, k], g, axes=1), kept)
        for k, kept in per_loss.items()
    ]
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


def gram_of(per_loss: Mapping[int, Params], losses: int) -> Float[Array, "g k k"]:
    """Products of per-sample gradients; zero for a loss that is not there."""

    def product(k: int, l: int) -> jax.Array | None:
        if k not in per_loss or l not in per_loss:
            return None
        pairs = zip(
            jax.tree.leaves(per_loss[k]), jax.tree.leaves(per_loss[l]), strict=True
        )
        # Multiply and sum: a dot with two tiny axes is far slower on CPU, and to
        # flatten first would gather what is split along its last axis.
        return jnp.asarray(sum((a * b).sum(tuple(range(1, a.ndim))) for a, b in pairs))

    return _symmetric(losses, product)


def token_gram(
    leaf: Leaf, uses: Sequence[Use], losses: int, groups: int
) -> Float[Array, "g k k"]:
    """The Gramian of a kernel or a table through products of tokens."""
    lookup = leaf.kind == "lookup"
    xs = [_tokens(u.x[..., None] if lookup else u.x, groups) for u in uses]
    deltas = [{k: _tokens(d, groups) for k, d in u.deltas.items()} for u in uses]

    def alike(m: int, n: int) -> Float[Array, "g t s"]:
        if lookup:
            return (xs[m] == xs[n].swapaxes(1, 2)).astype(F32)
        return jnp.einsum("gtc,gsc->gts", xs[m], xs[n], preferred_element_type=F32)

    towers = range(len(uses))
    upper = {(m, n): alike(m, n) for m in towers for n in towers if m <= n}

    def term(m: int, n: int, k: int, l: int) -> jax.Array:
        a = upper[m, n] if m <= n else upper[n, m].swapaxes(1, 2)
        other = deltas[n][l].astype(F32)
        mixed = jnp.einsum("gts,gsd->gtd", a, other, preferred_element_type=F32)
        return (mixed * deltas[m][k].astype(F32)).sum((1, 2))

    def product(k: int, l: int) -> jax.Array | None:
        terms = [
            term(m, n, k, l)
            for m in towers
            for n in towers
            if k in deltas[m] and l in deltas[n]
        ]
        return jnp.asarray(sum(terms)) if terms else None

    return _symmetric(losses, product)


def _symmetric(
    losses: int, product: Callable[[int, int], jax.Array | None]
) -> Float[Array, "g k k"]:
    ks = range(losses)
    upper: dict[tuple[int, int], Any] = {
        (k, l): product(k, l) for k in ks for l in ks if k <= l
    }
    zero = jnp.zeros_like(next(v for v in upper.values() if v is not None))

    def entry(k: int, l: int) -> jax.Array:
        value = upper[min(k, l), max(k, l)]
        return zero if value is None else value

    return jnp.stack([jnp.stack([entry(k, l) for l in ks], -1) for k in ks], -2)


def prefers_tokens(leaf: Leaf, uses: Sequence[Use], groups: int) -> bool:
    """Whether a token Gram and a replay take fewer multiply-adds than keeping."""
    if leaf.kind != "dense":
        return leaf.kind == "lookup"
    used = [use for use in uses if use.deltas]
    tokens = [use.x.size // use.x.shape[-1] // groups for use in used]
    width_in = used[0].x.shape[-1]
    width_out = next(iter(used[0].deltas.values())).shape[-1]
    by_loss: dict[int, int] = {}
    for use, t in zip(used, tokens, strict=True):
        for k in use.deltas:
            by_loss[k] = by_loss.get(k, 0) + t
    sums = list(by_loss.values())
    kernel = width_in * width_out
    similar = sum(a * b for i, a in enumerate(tokens) for b in tokens[i:]) * width_in
    mixed = sum(a * b for i, a in enumerate(sums) for b in sums[i:]) * width_out
    return similar + mixed + kernel * sum(tokens) < kernel * sum(sums)
