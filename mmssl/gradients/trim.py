"""Which pairs of modalities to learn from: a limit on the losses of single samples.

A sample whose text is about something else has a high video-text loss, while its
video-audio loss is like any other's. So every loss has samples of its own taken away,
by that loss: it costs nothing, needs no Gramian, and says which pair does not fit.

The small-loss trick of learning with noisy labels: Co-teaching (Han et al., NeurIPS
2018, arXiv 1804.06872), iterative trimmed loss (Shen and Sanghavi, ICML 2019, arXiv
1810.11874). They drop samples; with several losses per sample, we drop (sample, loss).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trim:
    """Drops from every loss the share of samples with its highest values.

    Ranks are within the batch. A dropped sample gives the encoder no gradient of that
    loss; it is still a negative of the others, and keeps its other losses. Samples
    without the modalities of a loss are neither counted nor dropped.

    Attributes:
      share: dropped from step `begin + steps` on, in (0, 1): at most the share that is
        misaligned, which nobody knows; take less.
      steps: over which it grows from 0: before anything is learned, a loss says
        nothing, and in the end a model knows its mistakes by heart.
      begin: first step of that ramp.

    Raises:
      ValueError: an option that is not allowed, with its name, value and the allowed.
    """

    share: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected in (0, 1), got {self.share!r}")
        for field, least in (("steps", 1), ("begin", 0)):
            found = getattr(self, field)
            if not isinstance(found, int) or found < least:
                raise ValueError(
                    f"{field}: expected a whole number from {least} on, got {found!r}"
                )

    def level(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The share to drop at `step`."""
        at = (jnp.asarray(step, jnp.float32) - self.begin) / self.steps
        return self.share * jnp.clip(at, 0.0, 1.0)

    def keep(
        self,
        values: Float[Array, "b k"],
        present: Bool[Array, "b k"],
        step: Int[Array, ""],
    ) -> Bool[Array, "b k"]:
        """Which samples each loss keeps; of equal values the later ones.

        A value that is not finite is kept: the step's own check must get to see it.

        Args:
          values: of the losses, per sample.
          present: where a sample has what the loss reads.
          step: the training step.
        """
        judged = present & jnp.isfinite(values)
        order = jnp.argsort(jnp.where(judged, -values, jnp.inf), axis=0, stable=True)
        place = jnp.argsort(order, axis=0)  # 0: the highest
        count = jnp.round(self.level(step) * judged.sum(0).astype(jnp.float32))
        return ~judged | (place >= count[None])


def scale(keep: Bool[Array, "b k"], present: Bool[Array, "b k"]) -> Float[Array, "b k"]:
    """Weights that drop what is not kept and leave each loss's gradient its size.

    As `Curriculum` with `renormalise="kept"`: the mean over those kept takes the place
    of the mean over all that are present.
    """
    there = present.sum(0).astype(jnp.float32)
    kept = (keep & present).sum(0).astype(jnp.float32)
    more = (there / jnp.maximum(kept, 1.0))[None]
    return jnp.where(present, keep * more, 1.0)


def metrics(
    keep: Bool[Array, "b k"], present: Bool[Array, "b k"], names: tuple[str, ...]
) -> dict[str, jax.Array]:
    """`trim/dropped/va`: share of the samples with that loss."""
    share = (~keep & present).sum(0) / jnp.maximum(present.sum(0), 1)
    return {f"trim/dropped/{n}": share[k] for k, n in enumerate(names)}
