"""What contrastive losses read of all pairs of a batch.

`dense` holds the [b, b, n] similarities and is differentiated as it stands: the
definition. `streamed` is the same in tiles, round a ring of devices, computed again in
the backward pass: it keeps the embeddings and two numbers per row. The pairs that count
are those of different samples; a sample's own pair is the caller's.

A sample with n candidates is one bag: its logit with x is the log of the sum, or of the
mean, of their exponentials.

What a logit is, a `Similarity` says: `dots` of vectors, or one that reads tokens.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from mmssl.parallel import collectives

MASKED = -1e30
"""Stands in for minus infinity: exp() of it is exactly 0 beside any real logit, and
sums and differences of a few stay finite, so rows with nothing valid have no NaN."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """One side of the pairs, float32.

    Attributes:
      vectors: what the similarity reads: for `dots` x [b, e], scaled as logits are to
        be, or y [b, n, e]; else any pytree of float32 that leads with the batch axis.
      mask: [b], or [b, n] for y; False takes part in nothing.
      example_id: rows with equal ids are one sample.
    """

    vectors: Any
    mask: Bool[Array, "b *n"]
    example_id: UInt32[Array, "b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Met:
    """What the rows of one side met on the other.

    Attributes:
      total: the reduction of their logits with all other samples.
      best: the largest of those logits, candidate by candidate; `MASKED` where there
        is none. Without derivative.
    """

    total: Float[Array, "b"]
    best: Float[Array, "b"]


X, Y = (1, 2), (0, 1)
"""The axes of logits [i, n, j] that are reduced for a row of x, and for one of y.

Candidates stand in the middle: reductions along a last axis of five are slow."""


class Reduction(abc.ABC):
    """How a row's logits with all other samples become one number."""

    @abc.abstractmethod
    def bag(self, logits: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
        """One logit per sample from those of its candidates along `axis`."""

    @abc.abstractmethod
    def whole(self, logits: jax.Array, mask: jax.Array, side: Any) -> jax.Array:
        """Totals of one side, `X` or `Y`, from all logits; fit for autodiff."""

    @abc.abstractmethod
    def add(
        self, met: Met, best: jax.Array, logits: jax.Array, mask: jax.Array, side: Any
    ) -> jax.Array:
        """`met.total` with one tile more; `best` is the largest logit after it."""

    def finish(self, met: Met) -> Met:
        """After the last tile."""
        return met

    @abc.abstractmethod
    def slope(
        self, total: jax.Array, logits: jax.Array, mask: jax.Array
    ) -> Float[Array, "i n j"]:
        """d total / d logits; `total` broadcasts to them."""


class LogSumExp(Reduction):
    """The denominators of NCE; bags by the sum of exponentials (MIL-NCE)."""

    def bag(self, logits: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
        del mask
        return jax.nn.logsumexp(logits, axis=axis)

    def whole(self, logits: jax.Array, mask: jax.Array, side: Any) -> jax.Array:
        del mask
        return jax.nn.logsumexp(logits, axis=side)

    def add(
        self, met: Met, best: jax.Array, logits: jax.Array, mask: jax.Array, side: Any
    ) -> jax.Array:
        del mask
        more = jnp.exp(logits - jnp.expand_dims(best, side)).sum(side)
        return met.total * jnp.exp(met.best - best) + more

    def finish(self, met: Met) -> Met:
        return dataclasses.replace(met, total=met.best + jnp.log(met.total))

    def slope(
        self, total: jax.Array, logits: jax.Array, mask: jax.Array
    ) -> Float[Array, "i n j"]:
        del mask
        return jnp.exp(logits - total)


class SumSoftplus(Reduction):
    """The negatives of the sigmoid loss; bags by the mean of exponentials."""

    def bag(self, logits: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
        if logits.shape[axis] == 1:
            return logits.squeeze(axis)
        count = jnp.maximum(mask.sum(axis), 1).astype(jnp.float32)
        return jax.nn.logsumexp(logits, axis=axis) - jnp.log(count)

    def whole(self, logits: jax.Array, mask: jax.Array, side: Any) -> jax.Array:
        return jax.nn.softplus(self.bag(logits, mask, 1)).sum(1 if side == X else 0)

    def add(
        self, met: Met, best: jax.Array, logits: jax.Array, mask: jax.Array, side: Any
    ) -> jax.Array:
        del best
        return met.total + self.whole(logits, mask, side)

    def slope(
        self, total: jax.Array, logits: jax.Array, mask: jax.Array
    ) -> Float[Array, "i n j"]:
        del total
        outer = jax.nn.sigmoid(self.bag(logits, mask, 1))[:, None]
        return outer * jax.nn.softmax(logits, axis=1) if logits.shape[1] > 1 else outer


LOG_SUM_EXP = LogSumExp()
SUM_SOFTPLUS = SumSoftplus()

# HIGHEST: accelerators would otherwise multiply in bfloat16 or TF32, and division by a
# small temperature turns that error into whole percents of the loss.
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


Similarity = Callable[[Any, Any], Float[Array, "i n j"]]
"""(vectors of rows i, vectors of rows j with n candidates) -> their logits."""


def dots(x: Float[Array, "i e"], y: Float[Array, "j n e"]) -> Float[Array, "i n j"]:
    """Inner products."""
    return _product("ie,nje->inj", x, y.swapaxes(0, 1))


def _mask(
    logits: Float[Array, "i n j"], x: Rows, y: Rows
) -> tuple[Float[Array, "i n j"], Bool[Array, "1 n j"]]:
    """`MASKED` where a side is missing or both are one sample; y's mask."""
    others = x.example_id[:, None] != y.example_id[None, :]
    mask = y.mask.T[None]
    allowed = (x.mask[:, None] & others)[:, None] & mask
    return jnp.where(allowed, logits, MASKED), mask


def dense(
    reduction: Reduction, x: Rows, y: Rows, similarity: Similarity = dots
) -> tuple[Met, Met]:
    """(what the rows of x met, what those of y met)."""
    logits, mask = _mask(similarity(x.vectors, y.vectors), x, y)
    fixed = jax.lax.stop_gradient(logits)
    return (
        Met(reduction.whole(logits, mask, X), fixed.max(X)),
        Met(reduction.whole(logits, mask, Y), fixed.max(Y)),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 4))
def streamed(
    reduction: Reduction, chunk: int, x: Rows, y: Rows, similarity: Similarity = dots
) -> tuple[Met, Met]:
    """`dense` in tiles of `chunk` by `chunk` rows; see `collectives.all_pairs`."""

    def tile(x: Rows, y: Rows, x_met: Met, y_met: Met) -> tuple[Met, Met]:
        logits, mask = _mask(similarity(x.vectors, y.vectors), x, y)

        def more(met: Met, side: Any) -> Met:
            best = jnp.maximum(met.best, logits.max(side))
            return Met(reduction.add(met, best, logits, mask, side), best)

        return more(x_met, X), more(y_met, Y)

    def nothing(rows: Rows) -> Met:
        b = rows.example_id.shape
        return Met(jnp.zeros(b), jnp.full(b, MASKED))

    x_met, y_met = collectives.all_pairs(
        tile, x, y, nothing(x), nothing(y), chunk=chunk
    )
    return reduction.finish(x_met), reduction.finish(y_met)


def _forward(
    reduction: Reduction, chunk: int, x: Rows, y: Rows, similarity: Similarity
) -> Any:
    met = streamed(reduction, chunk, x, y, similarity)
    return met, (x, y, met)


def _backward(
    reduction: Reduction, chunk: int, similarity: Similarity, kept: Any, given: Any
) -> Any:
    x, y, (x_met, y_met) = kept
    x_given, y_given = (met.total for met in given)

    def tile(x: Any, y: Any, dx: Any, dy: Any) -> tuple[Any, Any]:
        (x, x_total, x_given), (y, y_total, y_given) = x, y
        logits, pull = jax.vjp(similarity, x.vectors, y.vectors)
        logits, mask = _mask(logits, x, y)

        def share(given: jax.Array, total: jax.Array, side: Any) -> jax.Array:
            total = jnp.expand_dims(total, side)
            return jnp.expand_dims(given, side) * reduction.slope(total, logits, mask)

        slope = share(x_given, x_total, X) + share(y_given, y_total, Y)
        slope = jnp.where(logits > MASKED, slope, 0.0)
        return jax.tree.map(jnp.add, (dx, dy), pull(slope))

    dx, dy = collectives.all_pairs(
        tile,
        (x, x_met.total, x_given),
        (y, y_met.total, y_given),
        jax.tree.map(jnp.zeros_like, x.vectors),
        jax.tree.map(jnp.zeros_like, y.vectors),
        chunk=chunk,
    )
    return Rows(dx, None, None), Rows(dy, None, None)  # pyright: ignore


streamed.defvjp(_forward, _backward)
