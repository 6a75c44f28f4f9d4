"""Losses of one pair of modalities, per sample, with missing parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from mmssl.objectives import pairwise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairTerms:
    """What all forms of the loss are made of, in float32.

    A total is what the `reduction` makes of the logits with other samples: for NCE
    log sum exp over all their candidates, for the sigmoid loss sum log(1 + exp).

    Attributes:
      positive: the logit of x_i with the bag of its own candidates y_i.
      x_others: total of x_i with all y_j.
      y_others: total of all x_j with y_i.
      valid: x_i and at least one y_i^l are there; the rest is finite but
        meaningless where False.
      x_hit: the best y for x_i is one of its own, strictly.
      y_hit: the best x for the candidates of sample i is x_i, strictly.
    """

    positive: Float[Array, "b"]
    x_others: Float[Array, "b"]
    y_others: Float[Array, "b"]
    valid: Bool[Array, "b"]
    x_hit: Bool[Array, "b"]
    y_hit: Bool[Array, "b"]


def pair_terms(
    x: Float[Array, "b e"],
    y: Float[Array, "b n e"],
    *,
    x_mask: Bool[Array, "b"],
    y_mask: Bool[Array, "b n"],
    example_id: UInt32[Array, "b"],
    temperature: float | Float[Array, ""],
    bias: Float[Array, ""] | None = None,
    reduction: pairwise.Reduction = pairwise.LOG_SUM_EXP,
    chunk: int | None = None,
) -> PairTerms:
    """`terms` of the logits x.y / temperature + bias.

    Args:
      x: L2-normalised embeddings.
      y: L2-normalised embeddings of n candidates per sample.
      x_mask: False where the sample lacks x.
      y_mask: False for a missing candidate.
      example_id: see `terms`.
      temperature: divides the similarities.
      bias: added to them; None = 0.
      reduction: of the logits with other samples.
      chunk: see `terms`.
    """
    x = jnp.where(x_mask[:, None], x.astype(jnp.float32), 0.0) / temperature
    y = jnp.where(y_mask[:, :, None], y.astype(jnp.float32), 0.0)
    if bias is not None:
        # One more coordinate: the tiles need not know of it.
        x = jnp.concatenate([x, jnp.full_like(x[:, :1], bias)], axis=1)
        y = jnp.concatenate([y, jnp.ones_like(y[:, :, :1])], axis=2)
    return terms(
        (x[:, None] * y).sum(2),
        pairwise.Rows(x, x_mask, example_id),
        pairwise.Rows(y, y_mask, example_id),
        reduction=reduction,
        chunk=chunk,
    )


def terms(
    own: Float[Array, "b n"],
    x: pairwise.Rows,
    y: pairwise.Rows,
    *,
    reduction: pairwise.Reduction = pairwise.LOG_SUM_EXP,
    chunk: int | None = None,
    similarity: pairwise.Similarity = pairwise.dots,
) -> PairTerms:
    """Reduces the [b, b, n] logits of one pair.

    Missing rows and candidates take part in no sum, whatever their values are, and
    get a gradient of exactly zero. A candidate of a sample without x still serves as
    a negative of the others, and likewise the other way round. Two rows with the same
    example_id are views of one sample: neither is a negative of the other.

    Args:
      own: logits of each x with its own candidates.
      x: one side; its vectors are finite, and zero where missing.
      y: the other, with n candidates per sample.
      reduction: of the logits with other samples.
      chunk: rows of a tile, where logits are computed again in the backward pass;
        None = all logits are held.
      similarity: the logits of vectors.
    """
    own = jnp.where(x.mask[:, None] & y.mask, own, pairwise.MASKED)
    met: Any = (
        pairwise.dense(reduction, x, y, similarity)
        if chunk is None
        else pairwise.streamed(reduction, chunk, x, y, similarity)
    )
    x_met, y_met = met
    best = jax.lax.stop_gradient(own).max(1)
    return PairTerms(
        positive=reduction.bag(own, y.mask, 1),
        x_others=x_met.total,
        y_others=y_met.total,
        valid=x.mask & y.mask.any(1),
        x_hit=_beats(best, x_met.best),
        y_hit=_beats(best, y_met.best),
    )


def _beats(own: Float[Array, "b"], others: Float[Array, "b"]) -> Bool[Array, "b"]:
    # By more than rounding: where all embeddings are one, nothing is a hit.
    return own > others + 1e-5 * jnp.abs(others)


def asymmetric_nce(terms: PairTerms) -> Float[Array, "b"]:
    """The loss of the official VATT code (`AsymmetricNCE`), in nats.

    loss_i = log( sum_jl e^s(x_i, y_j^l) + sum_jl e^s(x_j, y_i^l) ) - log sum_l
    e^s(x_i, y_i^l). The positives are counted in both sums: the floor is log 2, chance
    level is log(2b), whatever n is. Zero where not valid.
    """
    x_to_y, y_to_x = _both_ways(terms)
    return jnp.where(terms.valid, jnp.logaddexp(x_to_y, y_to_x), 0.0)


def symmetric_nce(terms: PairTerms) -> Float[Array, "b"]:
    """The textbook loss in nats: InfoNCE in both directions, averaged.

    With n candidates the numerator is their sum (MIL-NCE, Miech et al., CVPR 2020).
    The floor is 0, chance level is log b, whatever n is. Zero where not valid.
    """
    x_to_y, y_to_x = _both_ways(terms)
    return jnp.where(terms.valid, 0.5 * (x_to_y + y_to_x), 0.0)


def _both_ways(terms: PairTerms) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    # log(e^o + e^p) - p = softplus(o - p), which keeps its digits near the floor.
    return (
        jax.nn.softplus(terms.x_others - terms.positive),
        jax.nn.softplus(terms.y_others - terms.positive),
    )


def sigmoid_loss(terms: PairTerms) -> Float[Array, "b"]:
    """The loss of SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343), in nats.

    Every pair of samples is a decision of its own: loss_i = softplus(-s_ii) + 1/2
    sum_j!=i (softplus(s_ij) + softplus(s_ji)), whose mean over a full batch is the
    paper's. The loss of a negative pair is shared by its two samples, so that one of
    them may be incomplete. With n candidates s_ij is the log of the mean of e^s, so
    that the level does not depend on n. Zero where not valid.
    """
    negatives = 0.5 * (terms.x_others + terms.y_others)
    loss = jax.nn.softplus(-terms.positive) + negatives
    return jnp.where(terms.valid, loss, 0.0)


@dataclasses.dataclass(frozen=True)
class Form:
    """One loss on `PairTerms`.

    Attributes:
      loss: terms -> loss per sample.
      reduction: of the logits with other samples.
      learned: temperature and bias are parameters.
    """

    loss: Callable[[PairTerms], Float[Array, "b"]]
    reduction: pairwise.Reduction = pairwise.LOG_SUM_EXP
    learned: bool = False


FORMS = {
    "official": Form(asymmetric_nce),
    "textbook": Form(symmetric_nce),
    "sigmoid": Form(sigmoid_loss, pairwise.SUM_SOFTPLUS, learned=True),
}


def top1(terms: PairTerms, pair: str, x: str, y: str) -> dict[str, jax.Array]:
    """In-batch accuracy of each direction, `top1/<pair>/<from>_to_<to>`; ties lose."""
    return {
        f"top1/{pair}/{way}": masked_mean(hit.astype(jnp.float32), terms.valid)
        for hit, way in ((terms.x_hit, f"{x}_to_{y}"), (terms.y_hit, f"{y}_to_{x}"))
    }


def masked_mean(values: Float[Array, "b"], valid: Bool[Array, "b"]) -> jax.Array:
    """Mean over valid entries; 0 with gradient 0 if there are none."""
    weights = valid.astype(jnp.float32)
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)
