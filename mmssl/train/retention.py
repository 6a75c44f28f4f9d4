"""Which checkpoints stay: the newest, one per period, and the best by a metric."""

import dataclasses
import math
from collections.abc import Mapping

from mmssl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Best:
    """Keeps the checkpoints with the best values of one metric.

    Attributes:
      metric: a name that was measured for the checkpoint: of training, its mean over
        the steps since the checkpoint before; of a hook, if it ran at that step.
      mode: "max" if larger is better, or "min".
      keep: how many stay.
    """

    metric: str
    mode: str = "max"
    keep: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode: expected 'max' or 'min', found {self.mode!r}")
        if self.keep < 1:
            raise ValueError(f"keep: must be at least 1, found {self.keep}")


@dataclasses.dataclass(frozen=True)
class Retention:
    """A checkpoint stays if any of the rules wants it.

    Attributes:
      keep: the newest so many.
      keep_every: those whose step is a multiple of it; 0 = none.
      best: the best so many by a metric; None = none.

    Raises:
      UserError: `keep` below 1, or `keep_every` below 0.
    """

    keep: int = 3
    keep_every: int = 0
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError(f"checkpoint.keep must be at least 1, found {self.keep}")
        if self.keep_every < 0:
            raise UserError(
                f"checkpoint.keep_every must be at least 0, found {self.keep_every}"
            )

    def kept(self, metrics: Mapping[int, Mapping[str, float | None]]) -> set[int]:
        """The steps that stay.

        Args:
          metrics: of each committed checkpoint, by step. One that lacks the metric, or
            has no finite value of it, is not among the best.
        """
        steps = sorted(metrics)
        kept = set(steps[-self.keep :])
        if self.keep_every:
            kept |= {step for step in steps if step % self.keep_every == 0}
        if self.best is not None:
            sign = 1 if self.best.mode == "max" else -1
            ranked = [
                # Of equal values the newer one.
                (sign * value, step)
                for step in steps
                if (value := metrics[step].get(self.best.metric)) is not None
                and math.isfinite(value)
            ]
            kept |= {step for _, step in sorted(ranked)[-self.best.keep :]}
        return kept
