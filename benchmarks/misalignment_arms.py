"""The arms of the misalignment benchmark: what each trains with, what it drops.

What the library's harmonizer cannot know, a sample's name or its loss, weighs samples
through `Gated`: a wrapper around the objective that scales the gradient that leaves it
towards the encoder. That is what a harmonizer's weights do, too: a dropped sample
gives the encoder no gradient and still is a negative of the others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from misalignment_scores import ranks

from mmssl.types import Batch, Encoded, ObjectiveOutput, Params


@dataclasses.dataclass(frozen=True)
class Gated:
    """An objective whose samples the host weighs, by a table in its state.

    Every loss has its own weights; those kept share the scale of the whole batch, as
    `Curriculum` with `renormalise="kept"` has it.

    Attributes:
      inner: the objective.
      clips: n, rows of the table; `example_id` counts them.
      batch: b.
    """

    inner: Any
    clips: int
    batch: int

    @property
    def requires(self) -> frozenset[str]:
        return self.inner.requires

    @property
    def reads_tokens(self) -> bool:
        return self.inner.reads_tokens

    def init(
        self, key: Key[Array, ""], widths: Mapping[str, int]
    ) -> tuple[Params, Any]:
        head, state = self.inner.init(key, widths)
        k = len(self.inner.terms())
        return head, {
            "inner": state,
            "table": jnp.ones((self.clips, k)),
            "drop": jnp.zeros(()),  # this share of the batch, the highest losses
            "loss": jnp.zeros((self.batch, k)),
        }

    def __call__(
        self,
        head: Params,
        state: Any,
        encoded: Encoded,
        batch: Batch,
        *,
        key: Key[Array, ""],
        step: Int[Array, ""],
    ) -> ObjectiveOutput:
        def inner(encoded: Encoded) -> ObjectiveOutput:
            return self.inner(head, state["inner"], encoded, batch, key=key, step=step)

        plain = inner(encoded)
        seen = jax.lax.stop_gradient(jnp.stack(list(plain.per_sample.values()), 1))
        total = seen.sum(1)
        place = (total[:, None] < total[None, :]).sum(1)  # 0: the highest loss
        kept = place >= jnp.round(state["drop"] * self.batch)
        weights = state["table"][batch.example_id] * kept[:, None]
        weights *= self.batch / jnp.maximum(weights.sum(0, keepdims=True), 1.0)
        losses = {
            name: inner(_weighted(encoded, weights[:, k])).losses[name]
            for k, name in enumerate(plain.losses)
        }
        return dataclasses.replace(
            plain, losses=losses, state=state | {"inner": plain.state, "loss": seen}
        )

    def projections(self, head: Params) -> Params:
        return self.inner.projections(head)

    def project(
        self, head: Params, state: Any, pooled: Mapping[str, jax.Array]
    ) -> dict[str, dict[str, jax.Array]]:
        return self.inner.project(head, state["inner"], pooled)


def _weighted(encoded: Encoded, weights: Float[Array, "b"]) -> Encoded:
    """The same values, with the gradient of row i times weights[i]."""

    def leaf(z: jax.Array) -> jax.Array:
        fixed = jax.lax.stop_gradient(z)
        return fixed + weights.reshape(-1, *(1,) * (z.ndim - 1)) * (z - fixed)

    return jax.tree.map(leaf, encoded)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      harmonizer: of the config.
      trim: the harmonizer's trim drops the setting's share, of those losses that read
        what was swapped.
      gate: what the host drops: "" nothing; "random"; "loss", the highest of the
        batch; "oracle", the swapped; "oracle_pair", only the losses of the swapped
        that read what was swapped.
      rate: another arm whose dropped share `random` and `loss` follow step by step;
        "" = the ramp of the setting.
      like: another arm whose mean weights (`fixed`) or seconds (`longer`) are taken.
    """

    harmonizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trim: bool = False
    gate: str = ""
    rate: str = ""
    like: str = ""


REALIGN = {"weighting": "pcgrad", "engine": "exact"}
CURRICULUM = {"curriculum": {"start": -0.3}, "engine": "exact"}

ARMS: dict[str, Arm] = {
    "plain": Arm(),
    "realign": Arm(REALIGN),
    "curriculum": Arm(CURRICULUM),
    "both": Arm(REALIGN | CURRICULUM),
    "random": Arm(gate="random", rate="curriculum"),
    "loss": Arm(gate="loss", rate="curriculum"),
    "norm_balanced": Arm({"weighting": "norm_balanced", "engine": "exact"}),
    "fixed": Arm(like="realign"),
    "longer": Arm(like="both"),
    "oracle": Arm(gate="oracle"),
    "random_ramp": Arm(gate="random"),
    "loss_ramp": Arm(gate="loss"),
    "trim": Arm(trim=True),
    "trim_realign": Arm(REALIGN, trim=True),
    "oracle_pair": Arm(gate="oracle_pair"),
}
"""By name; an arm comes after those it refers to."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share.

    Attributes:
      steps: of training.
      batch: clips per step.
      losses: of the objective, like ("va", "vt").
      kind: what is swapped, "text" or "audio".
      fraction: of the training clips.
      share: dropped at the end of the ramp, by the arms that have no other rate.
      ramp: steps from which, and up to which, that share grows from 0.
      every: steps between scorings of the whole training set.
      overrides: of the config.
    """

    steps: int
    batch: int
    losses: tuple[str, ...]
    kind: str
    fraction: float
    share: float
    ramp: tuple[int, int]
    every: int
    overrides: tuple[str, ...] = ()

    def dropped(self, step: int) -> float:
        """The ramp's share at a step."""
        first, last = self.ramp
        return self.share * min(max((step - first) / max(last - first, 1), 0.0), 1.0)


class Gate:
    """What the host drops, step by step.

    Attributes:
      share: of the last batch.
      memory: running mean of every score, over scorings.
    """

    def __init__(
        self,
        rule: str,
        setting: Setting,
        wrong: np.ndarray,
        seed: int,
        reference: Mapping[str, Any] | None,
    ) -> None:
        self.rule = rule
        self.share = 0.0
        self.memory: dict[str, np.ndarray] = {}
        self._setting = setting
        self._wrong = wrong
        self._rates = reference["dropped"] if reference else None
        self._rng = np.random.default_rng([seed, 5])

    def inputs(self, step: int, chosen: np.ndarray) -> dict[str, jax.Array]:
        """What `Gated` reads, for the clips of this step."""
        k, n = len(self._setting.losses), len(self._wrong)
        share = self._rates[step] if self._rates else self._setting.dropped(step)
        keep, drop = np.ones(n), 0.0
        if self.rule.startswith("oracle"):
            keep = 1.0 - self._wrong
        elif self.rule == "random":
            count = round(share * len(chosen))
            keep[self._rng.permutation(chosen)[:count]] = 0.0
        elif self.rule == "loss":
            drop = share
        self.share = max(drop, 1.0 - float(keep[chosen].mean()))
        table = np.repeat(keep[:, None], k, 1).astype(np.float32)
        if self.rule == "oracle_pair":
            letter = self._setting.kind[0]
            table[:, [letter not in name for name in self._setting.losses]] = 1.0
        return {"table": jnp.asarray(table), "drop": jnp.float32(drop)}

    def learn(self, scores: Mapping[str, np.ndarray], rate: float = 0.5) -> None:
        """Adds a scoring to the running means, of ranks, so that no unit matters."""
        for name, x in scores.items():
            rank = ranks(x)
            before = self.memory.get(name, rank)
            self.memory[name] = before + rate * (rank - before)
