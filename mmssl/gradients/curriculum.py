"""Which samples to learn from now: a curriculum by gradient conflict.

Follows cross-modality gradient harmonization (Wu et al., NeurIPS 2022, arXiv
2211.02077): a triplet whose losses pull in opposite directions is probably misaligned,
and the least conflicting ones come first. It filters before realignment, so that with a
threshold of 0 or more no survivor conflicts and realignment has nothing left to do.
Dropping zeroes a sample's gradient and nothing else: the losses were computed before,
so a dropped sample still serves the others as a negative.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmssl import trees
from mmssl.errors import UserError, nearest
from mmssl.gradients import statistics

State = dict[str, Float[Array, ""]]
"""Running values, float32; empty where rule and options need none."""

RULES = ("threshold", "sigmoid", "quantile")
RAMPS = ("linear", "cosine", "constant")
NORMALISATIONS = ("kept", "original")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Keeps a sample by the cosine of two of its losses' gradients, its score.

    Rules, with the level gamma or p that the ramp gives at a step:

    - `threshold`: keep if score > gamma, strictly; the paper's hard rule.
    - `sigmoid`: weigh by sigmoid((score - gamma) / temperature).
    - `quantile`: drop the share p of lowest scores. The limit is a running estimate
      from earlier batches, so that a micro-batch never needs the others.

    A sample without two gradients has no score and is always kept; so is one with a
    Gramian that is not finite, which the step's own check must get to see.

    The default ramp of gamma, -0.3 to 0, is unconfirmed: it is what we believe the
    paper did, but its values were not available. Sweep it.

    Attributes:
      steps: length of the ramp.
      rule: one of `RULES`.
      start: level up to step `begin`: gamma in [-1, 1), or a drop share in [0, 1).
      end: level from step `begin + steps` on. None = 0 for a gamma; a drop share must
        be given; `constant` has none.
      begin: first step of the ramp.
      ramp: `linear`; `cosine`, slow at both ends; `constant`, at `start` throughout.
      temperature: width of `sigmoid`, in units of the cosine.
      renormalise: `kept` scales the gradient to a mean over the kept samples, VATT's
        convention for samples without text; `original` lets it shrink.
      pair: the two losses whose cosine is the score; None = the lowest of all pairs.
      centre: subtract the running mean of the scores first, so that gamma is relative
        to it; a gamma of 0 then no longer rules out conflict. Not for `quantile`,
        which follows a common shift by itself.
      rate: share of a batch in the running values, which thus remember about 1 / rate
        batches.

    Raises:
      ValueError: an option that is not allowed, with its name, value and the allowed.
    """

    steps: int
    rule: str = "threshold"
    start: float = -0.3
    end: float | None = None
    begin: int = 0
    ramp: str = "linear"
    temperature: float = 0.1
    renormalise: str = "kept"
    pair: tuple[str, str] | None = None
    centre: bool = False
    rate: float = 0.01

    def __post_init__(self) -> None:
        def require(field: str, ok: bool, expected: str) -> None:
            if not ok:
                found = getattr(self, field)
                raise ValueError(f"{field}: expected {expected}, got {found!r}")

        require("rule", self.rule in RULES, f"one of {RULES}")
        require("ramp", self.ramp in RAMPS, f"one of {RAMPS}")
        normalised = self.renormalise in NORMALISATIONS
        require("renormalise", normalised, f"one of {NORMALISATIONS}")

        share = self.rule == "quantile"
        lowest, what = (0, "a drop share") if share else (-1, "a cosine")
        level = f"{what} in [{lowest}, 1) for rule {self.rule!r}"
        require("start", _within(self.start, lowest, 1), level)
        if self.ramp == "constant":
            require("end", self.end is None, "None with ramp 'constant'")
        elif share or self.end is not None:
            require("end", _within(self.end, lowest, 1), level)
        for field, least in (("begin", 0), ("steps", 1)):
            found = getattr(self, field)
            whole = isinstance(found, int) and not isinstance(found, bool)
            require(field, whole and found >= least, f"a whole number from {least} on")

        for field, below in (("temperature", math.inf), ("rate", 1)):
            found = getattr(self, field)
            require(field, _within(found, 0, below) and found > 0, f"in (0, {below})")
        require("centre", isinstance(self.centre, bool), "True or False")
        # It follows a common shift of all scores by itself.
        require("centre", not (share and self.centre), "False for rule 'quantile'")
        pair = self.pair
        two = isinstance(pair, (tuple, list)) and len(pair) == 2 and pair[0] != pair[1]
        require("pair", pair is None or two, "None or two different losses")

    def init(self) -> State:
        """State before the first step."""
        fields = ()
        if self.centre:
            fields = ("seen", "mean")
        elif self.rule == "quantile":
            fields = ("seen", "limit", "spread")
        state = {name: jnp.zeros((), jnp.float32) for name in fields}
        if "limit" in state:
            # No cosine lies below -1: nothing is known yet, so nothing is dropped.
            state["limit"] = jnp.full((), -2.0, jnp.float32)
        return state

    def level(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Gamma, or the share to drop, at `step`."""
        at = jnp.asarray(step).astype(jnp.float32)
        p = jnp.clip((at - self.begin) / self.steps, 0.0, 1.0)
        if self.ramp == "constant":
            p = jnp.zeros_like(p)
        elif self.ramp == "cosine":
            p = 0.5 * (1.0 - jnp.cos(math.pi * p))
        # This form is exact at both ends.
        return self.start * (1.0 - p) + (self.end or 0.0) * p

    def score(
        self, gram: Float[Array, "*g k k"], names: Sequence[str]
    ) -> tuple[Float[Array, "*g"], Bool[Array, "*g"]]:
        """The cosine that decides, and where there is one; 0 elsewhere.

        Raises:
          UserError: fewer than two losses, or `pair` names one that is not there.
        """
        if len(names) < 2:
            raise UserError(
                f"harmonizer.curriculum compares the gradients of two losses, found "
                f"{list(names)}; add one, or remove the curriculum"
            )
        for name in self.pair or ():
            if name not in names:
                raise UserError(
                    f"harmonizer.curriculum.pair: no loss {name!r} among "
                    f"{list(names)}{nearest(name, names)}"
                )
        chosen = [
            (i, j)
            for i, j, _ in statistics.pairs(names)
            if self.pair is None or {names[i], names[j]} == set(self.pair)
        ]
        cos, defined = (
            jnp.stack([x[..., i, j] for i, j in chosen], -1)
            for x in statistics.cosines(gram)
        )
        # One bad entry spoils the sample: a finite pair must not drop it from sight.
        scored = defined.any(-1) & jnp.isfinite(gram).all((-2, -1))
        lowest = jnp.where(defined, cos, 1.0).min(-1)
        return jnp.where(scored, lowest, 0.0), scored

    def keep(
        self,
        gram: Float[Array, "*g k k"],
        *,
        names: Sequence[str],
        state: State,
        step: Int[Array, ""],
    ) -> Float[Array, "*g"]:
        """Weight in [0, 1] per sample, for all its losses; 1 without a score.

        Raises:
          UserError: see `score`.
        """
        score, defined = self.score(gram, names)
        level = self.level(step)
        if self.centre:
            score = score - state["mean"]
        if self.rule == "threshold":
            kept = (score > level).astype(jnp.float32)
        elif self.rule == "sigmoid":
            kept = jax.nn.sigmoid((score - level) / self.temperature)
        else:
            # Equal scores stay, or a batch of nothing else would vanish; and a share
            # of 0 drops nothing, not even a new lowest score.
            kept = ((score >= state["limit"]) | (level <= 0)).astype(jnp.float32)
        return jnp.where(defined, kept, 1.0)

    def scale(self, keep: Float[Array, "g"]) -> Float[Array, ""]:
        """Factor of the gradient of a whole batch: g / sum(keep), or 1.

        Between 1 and g: less than one sample kept in all is not scaled up further.
        """
        if self.renormalise == "original":
            return jnp.ones((), jnp.float32)
        total = keep.sum()
        return jnp.where(total > 0, keep.size / jnp.maximum(total, 1.0), 1.0)

    def update(
        self,
        state: State,
        gram: Float[Array, "g k k"],
        names: Sequence[str],
        step: Int[Array, ""],
    ) -> State:
        """State after a batch; as it was if no sample has a score.

        The limit q of `quantile` moves by stochastic approximation (Robbins and Monro
        1951), q += rate s (p - share below q) / (p (1 - p)). In the long run the share
        dropped averages p, also for small batches, whose own quantiles are biased, and
        for scores that drift (Gibbs and Candes, NeurIPS 2021, arXiv 2106.00170). The
        running mean distance s of a score from q gives the step its scale; up to a
        constant, p (1 - p) / s is a logistic distribution's density at its p-quantile,
        which lets rare and common limits move alike.

        Args:
          state: what `keep` was given for this batch.
          gram: the whole batch.
          names: the k losses.
          step: the step of this batch.

        Raises:
          UserError: see `score`.
        """
        if not state:
            return state
        score, defined = self.score(gram, names)

        def mean(x: jax.Array) -> jax.Array:
            return statistics.masked_mean(x, defined)

        # The first batches count alike: a running mean without a start-up bias.
        gain = jnp.maximum(1.0 / (state["seen"] + 1.0), self.rate)
        new = {"seen": state["seen"] + 1.0}
        if self.centre:
            new["mean"] = state["mean"] + gain * (mean(score) - state["mean"])
        else:
            p = self.level(step)
            first = statistics.masked_quantiles(score, defined, p[None])[0]
            limit = jnp.where(state["seen"] == 0, first, state["limit"])
            excess = p - mean((score < limit).astype(jnp.float32))
            # At most one spread per step, at the ends of [0, 1) too.
            density = jnp.maximum(p * (1.0 - p), gain)
            new["limit"] = limit + gain * state["spread"] * excess / density
            distance = mean(jnp.abs(score - limit))
            new["spread"] = state["spread"] + gain * (distance - state["spread"])
        return trees.select(defined.any(), new, state)


def _within(value: Any, low: float, high: float) -> bool:
    """Whether it is a number in [low, high)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and low <= value < high
