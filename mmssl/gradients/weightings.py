"""Rules that turn a sample's Gramian into one weight per loss.

With g_k one sample's gradient of loss k, `gram[k, l]` = <g_k, g_l>, every rule answers
weights w; the harmonized gradient is sum_k w_k g_k. Rules that read the Gramian keep
three promises:

- They are on the scale of the plain sum: k identical gradients get the weights 1. A
  published rule that averages is multiplied by the number of losses; what else differs
  by a factor from its paper says so.
- A loss without a gradient (zero row and column: a sample without text) gets weight 1
  and changes nothing for the others.
- They depend on angles and on ratios of lengths, so the scale cancels, and no epsilon
  is added to a length. Rules that divide by the sines between gradients see cosines
  shrunk by 1e-6 (`samplewise.SHRINK`): weights stay finite where gradients are linearly
  dependent (of gradients equally long, below about 1000), and of equally good weights
  the even are chosen.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mmssl.errors import UserError, nearest
from mmssl.gradients import samplewise, solvers
from mmssl.gradients.samplewise import Sample

MAX_ENUMERATED = 6
"""Losses for which all 2^k subsets are tried."""


class Weighting(Protocol):
    """A rule for the weights of the losses. Holds no arrays and no state.

    Attributes:
      uses_gramian: False where the weights do not depend on gram's values, so that
        nobody needs to compute them.
    """

    uses_gramian: ClassVar[bool]

    def __call__(
        self,
        gram: Float[Array, "... k k"],
        *,
        names: Sequence[str],
        key: Key[Array, ""],
    ) -> Float[Array, "... k"]:
        """Weights per sample and loss.

        Args:
          gram: inner products of each sample's k gradients, float32.
          names: the k loss names, in gram's order.
          key: for rules that draw at random; every sample draws for itself.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Sum:
    """Every loss with weight 1: the plain gradient of the sum of the losses."""

    uses_gramian: ClassVar[bool] = False

    def __call__(
        self,
        gram: Float[Array, "... k k"],
        *,
        names: Sequence[str],
        key: Key[Array, ""],
    ) -> Float[Array, "... k"]:
        del names, key
        return jnp.ones(gram.shape[:-1], jnp.float32)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A constant weight per loss name, for example VATT's lambda on `vt`.

    Attributes:
      weights: loss name to weight; a loss without an entry raises, and so does an
        entry without a loss.
    """

    weights: Mapping[str, float]
    uses_gramian: ClassVar[bool] = False

    def __call__(
        self,
        gram: Float[Array, "... k k"],
        *,
        names: Sequence[str],
        key: Key[Array, ""],
    ) -> Float[Array, "... k"]:
        del key
        for name in (*self.weights, *names):
            if name not in names or name not in self.weights:
                raise UserError(
                    "harmonizer.weighting.weights must name each loss once: losses "
                    f"are {sorted(names)}, weights are {sorted(self.weights)}; "
                    f"{name!r} stands on one side only{nearest(name, names)}"
                )
        weights = jnp.asarray([self.weights[n] for n in names], jnp.float32)
        return jnp.broadcast_to(weights, gram.shape[:-1])


@dataclasses.dataclass(frozen=True)
class NormBalanced(samplewise.Rule):
    """Every loss pulls with the same force: w_k |g_k| is the mean of all |g_l|.

    The lengths still add up to what they did in the plain sum. The arithmetic mean,
    because a loss that is nearly solved pulls the geometric one to zero.
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        return 1 / sample.norm


@dataclasses.dataclass(frozen=True)
class PCGrad(samplewise.Rule):
    """Gradients that conflict are projected on each other's normal plane, then summed.

    Yu et al. 2020 (arXiv 2001.06782), algorithm 1: g_i meets the others in random
    order; where <g_i, g_j> < 0, it loses its share along g_j. For two losses the order
    is irrelevant, and with d = <g_a, g_b> < 0 the weights are w_a = 1 + |d| / |g_a|^2
    and w_b = 1 + |d| / |g_b|^2: the realignment of cross-modality gradient
    harmonization (Wu et al. 2022, arXiv 2211.02077).
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        return _surgery(sample)


@dataclasses.dataclass(frozen=True)
class OneSided(samplewise.Rule):
    """PCGrad for some of the losses: only their gradients are projected.

    Attributes:
      realign: the losses that give way; the others keep their gradients.
    """

    realign: tuple[str, ...]

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        for name in self.realign:
            if name not in sample.names:
                raise UserError(
                    f"harmonizer.weighting.realign names the loss {name!r}; losses are "
                    f"{sorted(sample.names)}{nearest(name, sample.names)}"
                )
        return _surgery(sample, moving=[n in self.realign for n in sample.names])


@dataclasses.dataclass(frozen=True)
class GradVac(samplewise.Rule):
    """Gradients less similar than a target are turned until they have its cosine.

    Wang et al. 2020 (arXiv 2010.05874), algorithm 1. The paper lets each pair's target
    follow a running mean of its cosine; rules here have no state, so the target is a
    constant, one for all pairs.

    Attributes:
      target: the cosine, between -1 and 1; 0 is PCGrad.
    """

    target: float

    def __post_init__(self) -> None:
        if not -1 < self.target < 1:
            raise UserError(
                "harmonizer.weighting.target must be a cosine between -1 and 1, both "
                f"excluded; found {self.target!r}"
            )

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        return _surgery(sample, target=self.target)


def _surgery(
    sample: Sample, *, moving: Sequence[bool] | None = None, target: float = 0.0
) -> Float[Array, "k"]:
    """Weights of the sum, after every moving gradient met the others in random order.

    Args:
      sample: the sample.
      moving: which gradients may turn; None = all.
      target: turns a gradient to this cosine with one whose cosine with it is smaller.
    """
    k = len(sample.norm)
    may_turn = sample.present & jnp.asarray(moving or [True] * k)
    order = jnp.argsort(jax.random.uniform(sample.key, (k, k)), axis=1)
    eye = jnp.eye(k, dtype=jnp.float32)
    turned = eye  # row i: the i-th unit gradient, as weights of all
    for met in order.T:
        other = eye[met]
        inner = solvers.product(turned, sample.cosine)
        along = (inner * other).sum(-1)
        squared = jnp.maximum((inner * turned).sum(-1), 0)
        across = jnp.sqrt(jnp.maximum(squared - along * along, 0))
        turn = may_turn & sample.present[met] & (met != np.arange(k))
        turn = turn & (along < target * jnp.sqrt(squared))
        # What is left across the other, and as much along it as makes the cosine.
        added = target / (1 - target**2) ** 0.5 * across - along
        turned = turned + jnp.where(turn, added, 0)[:, None] * other
    return (sample.norm[:, None] * turned).sum(0) / sample.norm


@dataclasses.dataclass(frozen=True)
class MGDA(samplewise.Rule):
    """The shortest vector in the convex hull of the gradients, times their number.

    Désidéri 2012; Sener and Koltun 2018 (arXiv 1810.04650). It conflicts
    with no loss, and is zero where the sample is Pareto stationary. At most
    `MAX_ENUMERATED` losses.
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        _check_count(self, sample)
        return sample.count * solvers.min_norm(sample.gram, sample.present)


@dataclasses.dataclass(frozen=True)
class CAGrad(samplewise.Rule):
    """The update near the mean gradient that helps the worst-off loss most.

    Liu et al. 2021 (arXiv 2110.14048): d maximises min_k <g_k, d> within
    |d - g_0| <= c |g_0|, with g_0 the mean gradient. The result is d times the number
    of losses, over 1 + c, by which identical gradients would grow. At most
    `MAX_ENUMERATED` losses.

    Attributes:
      c: the radius, from 0 (the plain sum) to below 1.
    """

    c: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise UserError(
                "harmonizer.weighting.c must be at least 0 and below 1; found "
                f"{self.c!r}"
            )

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        _check_count(self, sample)
        step = solvers.conflict_averse(sample.gram, sample.present, self.c)
        return (1 + sample.count * step) / (1 + self.c)


@dataclasses.dataclass(frozen=True)
class IMTLG(samplewise.Rule):
    """The update whose projections on all gradients are equally long.

    Liu et al. 2021 (Towards Impartial Multi-task Learning, ICLR). The
    paper scales its weights to sum 1, which flips the update where that sum would be
    negative. Here w_k |g_k| adds up to the sum of all |g_k|: no loss ever gets worse.
    Gradients that are linearly dependent have no such update other than zero.
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        equal = solvers.solve(sample.shrunk, jnp.ones_like(sample.norm)[:, None])[:, 0]
        equal = jnp.where(sample.present, equal, 0)
        return sample.count * equal / equal.sum() / sample.norm


@dataclasses.dataclass(frozen=True)
class AlignedMTL(samplewise.Rule):
    """Singular values of the gradient matrix made equal, to the smallest of them.

    Senushkin et al. 2023 (arXiv 2305.19000), with every loss preferred
    equally, at weight 1. Directions in which the gradients are dependent up to
    rounding count as none.
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        length = jnp.where(sample.present, sample.norm, 0)
        values, vectors = solvers.eigh(
            length[:, None] * sample.cosine * length[None, :]
        )
        # An eigenvalue is the squared length of a combination of gradients; what
        # rounding leaves of one scales with the lengths that were combined.
        noise = samplewise.SHRINK * (jnp.abs(vectors) * length[:, None]).sum(0) ** 2
        kept = values > noise
        least = jnp.where(kept, values, jnp.inf).min()
        shrink = jnp.where(kept, jnp.sqrt(least / jnp.where(kept, values, 1)), 0)
        return solvers.times(vectors, shrink * vectors.sum(0))


@dataclasses.dataclass(frozen=True)
class NashMTL(samplewise.Rule):
    """The Nash bargaining solution: G w = 1 / w.

    Navon et al. 2022 (arXiv 2202.01017). The paper's update always has the
    length sqrt(k); here the weights are multiplied by sqrt(k) times the mean gradient
    length.
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        return _alpha_fair(sample, 1.0)


@dataclasses.dataclass(frozen=True)
class FairGrad(samplewise.Rule):
    """Alpha-fair shares of the improvement: G w = w^(-1 / alpha).

    Ban and Ji 2024 (arXiv 2402.15638). With m the mean gradient length,
    the weights are multiplied by (k m^2)^(alpha / (1 + alpha)).

    Attributes:
      alpha: fairness, from 0.5 to 4, where float32 and a fixed number of Newton
        steps suffice. 1 is Nash-MTL; the larger it is, the more alike are the
        improvements, and the more do short gradients grow: where two are opposite, up
        to 10^(6 alpha / (1 + alpha)) times.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        if not 0.5 <= self.alpha <= 4:
            raise UserError(
                "harmonizer.weighting.alpha must be a number from 0.5 to 4; found "
                f"{self.alpha!r}"
            )

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        return _alpha_fair(sample, self.alpha)


def _alpha_fair(sample: Sample, alpha: float) -> Float[Array, "k"]:
    """w with G w = w^(-1/alpha) at mean length 1, scaled to the plain sum."""
    power = 1 / alpha
    found = solvers.alpha_fair(sample.shrunk, sample.norm ** (power - 1), power)
    return sample.count ** (1 / (1 + power)) * found / sample.norm


@dataclasses.dataclass(frozen=True)
class UPGrad(samplewise.Rule):
    """Every gradient projected on the cone that conflicts with none, then summed.

    Quinton and Rey 2024 (arXiv 2406.16232), who take the mean. The
    projections are exact. At most `MAX_ENUMERATED` losses.
    """

    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        _check_count(self, sample)
        projected = solvers.project_on_dual_cone(sample.shrunk)
        return solvers.times(projected, sample.norm) / sample.norm


def _check_count(rule: samplewise.Rule, sample: Sample) -> None:
    names = sample.names
    if len(names) > MAX_ENUMERATED:
        raise UserError(
            f"{type(rule).__name__} tries every subset of the losses, and takes "
            f"{MAX_ENUMERATED} at most; found {len(names)}: {sorted(names)}. Choose "
            "another harmonizer.weighting"
        )


WEIGHTINGS = {
    "sum": Sum,
    "fixed": Fixed,
    "norm_balanced": NormBalanced,
    "pcgrad": PCGrad,
    "one_sided": OneSided,
    "gradvac": GradVac,
    "mgda": MGDA,
    "cagrad": CAGrad,
    "imtl_g": IMTLG,
    "aligned_mtl": AlignedMTL,
    "nash_mtl": NashMTL,
    "fairgrad": FairGrad,
    "upgrad": UPGrad,
}
