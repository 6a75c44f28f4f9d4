"""What contrastive losses read of all pairs of a batch.

`dense` holds the [b, b, n] similarities and is differentiated as it stands: the
definition. `streamed` is the same in tiles, round a ring of devices, computed again in
the backward pass: it keeps the embeddings and two numbers per row. The pairs that count
are those of different samples; a sample's own pair is the caller's.

A sample with n candidates is one bag: its logit with x is the log of the sum (MIL-NCE,
Miech et al., CVPR 2020) or of the mean of its candidates' exponentials.
"""

import abc
import dataclasses
import functools
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
      vectors: x [b, e], scaled as logits are to be, or y [b, n, e].
      mask: [b], or [b, n] for y; False takes part in nothing.
      example_id: rows with equal ids are one sample.
    """

    vectors: Float[Array, "b *n e"]
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


class Reduction(abc.ABC):
    """How a row's logits with all other samples become one number."""

    mean: bool
    """Bags by the mean of exponentials, not the sum."""

    @abc.abstractmethod
    def whole(self, bags: Float[Array, "i j"], axis: int) -> jax.Array:
        """All at once, fit for autodiff."""

    @abc.abstractmethod
    def add(self, met: Met, bags: Float[Array, "i j"], axis: int, best: Any) -> Any:
        """`met.total` with one tile more; `best` is the largest logit after it."""

    def finish(self, met: Met) -> Met:
        """After the last tile."""
        return met

    @abc.abstractmethod
    def slope(self, bags: Float[Array, "i j"], total: jax.Array) -> jax.Array:
        """d total / d bags; `total` broadcasts to them."""


class LogSumExp(Reduction):
    """The denominators of NCE."""

    mean = False

    def whole(self, bags: jax.Array, axis: int) -> jax.Array:
        return jax.nn.logsumexp(bags, axis=axis)

    def add(self, met: Met, bags: jax.Array, axis: int, best: jax.Array) -> jax.Array:
        more = jnp.exp(bags - jnp.expand_dims(best, axis)).sum(axis)
        return met.total * jnp.exp(met.best - best) + more

    def finish(self, met: Met) -> Met:
        return dataclasses.replace(met, total=met.best + jnp.log(met.total))

    def slope(self, bags: jax.Array, total: jax.Array) -> jax.Array:
        return jnp.exp(bags - total)


class SumSoftplus(Reduction):
    """The negatives of the sigmoid loss."""

    mean = True

    def whole(self, bags: jax.Array, axis: int) -> jax.Array:
        return jax.nn.softplus(bags).sum(axis)

    def add(self, met: Met, bags: jax.Array, axis: int, best: jax.Array) -> jax.Array:
        del best
        return met.total + self.whole(bags, axis)

    def slope(self, bags: jax.Array, total: jax.Array) -> jax.Array:
        del total
        return jax.nn.sigmoid(bags)


LOG_SUM_EXP = LogSumExp()
SUM_SOFTPLUS = SumSoftplus()


def bag(
    logits: Float[Array, "*rows n"], mask: Bool[Array, "*rows n"], *, mean: bool
) -> Float[Array, "*rows"]:
    """A bag's logit from those of its candidates, `MASKED` where missing."""
    one = logits.shape[-1] == 1
    total = logits[..., 0] if one else jax.nn.logsumexp(logits, axis=-1)
    return total - jnp.log(jnp.maximum(mask.sum(-1), 1)) if mean else total


def _logits(x: Rows, y: Rows) -> Float[Array, "i j n"]:
    """`MASKED` where a side is missing or both are one sample."""
    # HIGHEST: accelerators would otherwise multiply in bfloat16 or TF32, and division
    # by a small temperature turns that error into whole percents of the loss.
    logits = jnp.einsum(
        "ie,jne->ijn", x.vectors, y.vectors, precision=jax.lax.Precision.HIGHEST
    )
    others = x.example_id[:, None] != y.example_id[None, :]
    allowed = (x.mask[:, None] & others)[:, :, None] & y.mask[None]
    return jnp.where(allowed, logits, MASKED)


def dense(reduction: Reduction, x: Rows, y: Rows) -> tuple[Met, Met]:
    """(what the rows of x met, what those of y met)."""
    logits = _logits(x, y)
    bags = bag(logits, y.mask[None], mean=reduction.mean)
    best = jax.lax.stop_gradient(logits).max(2)
    return (
        Met(reduction.whole(bags, 1), best.max(1)),
        Met(reduction.whole(bags, 0), best.max(0)),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def streamed(reduction: Reduction, chunk: int, x: Rows, y: Rows) -> tuple[Met, Met]:
    """`dense` in tiles of `chunk` by `chunk` rows; see `collectives.all_pairs`."""

    def tile(x: Rows, y: Rows, x_met: Met, y_met: Met) -> tuple[Met, Met]:
        logits = _logits(x, y)
        bags = bag(logits, y.mask[None], mean=reduction.mean)
        largest = logits.max(2)

        def more(met: Met, axis: int) -> Met:
            best = jnp.maximum(met.best, largest.max(axis))
            return Met(reduction.add(met, bags, axis, best), best)

        return more(x_met, 1), more(y_met, 0)

    def nothing(rows: Rows) -> Met:
        b = rows.example_id.shape
        return Met(jnp.zeros(b), jnp.full(b, MASKED))

    x_met, y_met = collectives.all_pairs(
        tile, x, y, nothing(x), nothing(y), chunk=chunk
    )
    return reduction.finish(x_met), reduction.finish(y_met)


def _forward(reduction: Reduction, chunk: int, x: Rows, y: Rows) -> Any:
    met = streamed(reduction, chunk, x, y)
    return met, (x, y, met)


def _backward(reduction: Reduction, chunk: int, kept: Any, given: Any) -> Any:
    x, y, (x_met, y_met) = kept
    x_given, y_given = (met.total for met in given)

    def tile(x: Any, y: Any, dx: jax.Array, dy: jax.Array) -> tuple[Any, Any]:
        (x, x_total, x_given), (y, y_total, y_given) = x, y
        logits = _logits(x, y)
        bags = bag(logits, y.mask[None], mean=reduction.mean)
        each = x_given[:, None] * reduction.slope(bags, x_total[:, None])
        each += y_given[None, :] * reduction.slope(bags, y_total[None, :])
        inside = jax.nn.softmax(logits, axis=2) if logits.shape[2] > 1 else 1.0
        share = jnp.where(logits > MASKED, each[:, :, None] * inside, 0.0)
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        dx += product("ijn,jne->ie", share, y.vectors)
        dy += product("ijn,ie->jne", share, x.vectors)
        return dx, dy

    dx, dy = collectives.all_pairs(
        tile,
        (x, x_met.total, x_given),
        (y, y_met.total, y_given),
        jnp.zeros_like(x.vectors),
        jnp.zeros_like(y.vectors),
        chunk=chunk,
    )
    return Rows(dx, None, None), Rows(dy, None, None)  # pyright: ignore


streamed.defvjp(_forward, _backward)
