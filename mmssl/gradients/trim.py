"""Which pairs of modalities to learn from: a limit on the losses of single samples.

A sample whose text is about something else has a high video-text loss, while its
video-audio loss is like any other's. So a loss has samples of its own taken away, by
its own values: it costs nothing, needs no Gramian, and says which pair does not fit.

The small-loss trick of learning with noisy labels: Co-teaching (Han et al., NeurIPS
2018, arXiv 1804.06872), iterative trimmed loss (Shen and Sanghavi, ICML 2019, arXiv
1810.11874). They drop samples; with several losses per sample, we drop (sample, loss).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmssl.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trim:
    """Drops from a loss the share of samples with its highest values.

    Ranks are within the batch. A dropped sample gives the encoder no gradient of that
    loss; it is still a negative of the others, and keeps its other losses. Samples
    without the modalities of a loss are neither counted nor dropped.

    Attributes:
      share: loss name -> share dropped from step `begin + steps` on, in (0, 1): at most
        the share that is misaligned, which nobody knows; take less. Name only losses
        whose pairs may not belong together: of the others it drops what is hard.
      steps: over which the shares grow from 0: before anything is learned, a loss says
        nothing.
      begin: first step of that ramp.

    Raises:
      ValueError: an option that is not allowed, with its name, value and the allowed.
    """

    # Equal values still have equal hashes; a dict cannot take part in one.
    share: Mapping[str, float] = dataclasses.field(hash=False)
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.share, Mapping) or not self.share:
            raise ValueError(
                "share: expected a share for each loss to trim, like {'vt': 0.3}, got "
                f"{self.share!r}"
            )
        for name, share in self.share.items():
            number = isinstance(share, (int, float)) and not isinstance(share, bool)
            if not number or not 0 < share < 1:
                raise ValueError(f"share: expected in (0, 1), got {name}: {share!r}")
        for field, least in (("steps", 1), ("begin", 0)):
            found = getattr(self, field)
            if not isinstance(found, int) or found < least:
                raise ValueError(
                    f"{field}: expected a whole number from {least} on, got {found!r}"
                )

    def level(self, step: Int[Array, ""], names: Sequence[str]) -> Float[Array, "k"]:
        """The shares to drop at `step`.

        Raises:
          UserError: `share` names a loss that is not there.
        """
        for name in self.share:
            if name not in names:
                raise UserError(
                    f"harmonizer.trim.share: no loss {name!r} among {list(names)}"
                    f"{nearest(name, names)}"
                )
        at = (jnp.asarray(step, jnp.float32) - self.begin) / self.steps
        return jnp.asarray([self.share.get(n, 0.0) for n in names]) * jnp.clip(at, 0, 1)

    def keep(
        self,
        values: Float[Array, "b k"],
        present: Bool[Array, "b k"],
        *,
        names: Sequence[str],
        step: Int[Array, ""],
    ) -> Bool[Array, "b k"]:
        """Which samples each loss keeps; of equal values the later ones.

        A value that is not finite is kept: the step's own check must get to see it.

        Args:
          values: of the losses, per sample.
          present: where a sample has what the loss reads.
          names: of the losses.
          step: the training step.

        Raises:
          UserError: see `level`.
        """
        judged = present & jnp.isfinite(values)
        order = jnp.argsort(jnp.where(judged, -values, jnp.inf), axis=0, stable=True)
        place = jnp.argsort(order, axis=0)  # 0: the highest
        level = self.level(step, names)
        # Down: of few samples, and a share below 1, some are left.
        count = jnp.floor(level * judged.sum(0).astype(jnp.float32))
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
    keep: Bool[Array, "b k"], present: Bool[Array, "b k"], names: Sequence[str]
) -> dict[str, jax.Array]:
    """`trim/dropped/va`: share of the samples with that loss."""
    share = (~keep & present).sum(0) / jnp.maximum(present.sum(0), 1)
    return {f"trim/dropped/{n}": share[k] for k, n in enumerate(names)}
