"""Learning rate as a function of the step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmssl.errors import UserError, nearest

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
"""Number of updates done so far -> learning rate, float32; a pure jittable function."""


def _constant(p: jax.Array) -> jax.Array:
    return jnp.ones_like(p)


def _quarter_cosine(p: jax.Array) -> jax.Array:
    # cos(pi/2) is not exactly 0 in float32; the run must end exactly at the end level.
    return jnp.where(p < 1.0, jnp.cos(0.5 * math.pi * p), 0.0)


def _half_cosine(p: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(math.pi * p))


# Progress p in [0, 1] after the warm-up -> share of the way from the end level to the
# peak.
SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": _constant,
    "quarter_cosine": _quarter_cosine,
    "half_cosine": _half_cosine,
}


def make_schedule(
    *, name: str, peak_lr: float, end_lr: float | None, warmup: int, steps: int
) -> Schedule:
    """Linear warm-up from 0, then a fall from `peak_lr` at `warmup` to the end level.

    With p = (step - warmup) / (steps - warmup), clipped to [0, 1]:

    - `constant`: peak_lr.
    - `quarter_cosine`: end + (peak - end) cos(pi/2 p). At the default end level it is
      peak (1 + cos(pi/2 p)) / 2, the VATT paper's 1e-4 -> 5e-5.
    - `half_cosine`: end + (peak - end) (1 + cos(pi p)) / 2, the official VATT code.

    Args:
      name: one of `SHAPES`.
      peak_lr: learning rate at the end of the warm-up.
      end_lr: learning rate at `steps` and after; None = peak_lr / 2, as in VATT.
        `constant` has none.
      warmup: updates over which the rate rises linearly from 0; the very first update
        (step 0) then has rate 0, as in the official code.
      steps: updates in the whole run, warm-up included.

    Raises:
      UserError: unknown name, or numbers that make no schedule.
    """
    if name not in SHAPES:
        raise UserError(
            f"optim: schedule {name!r} is unknown; expected one of "
            f"{sorted(SHAPES)}{nearest(name, SHAPES)}"
        )
    if not (math.isfinite(peak_lr) and peak_lr > 0):
        raise UserError(f"optim: peak_lr must be a positive number, got {peak_lr}")
    if not 0 <= warmup < steps:
        raise UserError(
            f"optim: warmup must be at least 0 and less than the {steps} steps of the "
            f"run, got {warmup}"
        )
    if name == "constant" and end_lr is not None:
        raise UserError(
            f"optim: schedule 'constant' has no end level, got end_lr={end_lr}; use "
            "end_lr=None or another schedule"
        )
    if end_lr is not None and not 0 <= end_lr <= peak_lr:
        raise UserError(
            f"optim: end_lr must lie between 0 and peak_lr={peak_lr}, got {end_lr}"
        )
    end = 0.5 * peak_lr if end_lr is None else end_lr
    shape = SHAPES[name]

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        at = jnp.asarray(step).astype(jnp.float32)
        p = jnp.clip((at - warmup) / (steps - warmup), 0.0, 1.0)
        rate = end + (peak_lr - end) * shape(p)
        return jnp.where(at < warmup, peak_lr * at / max(warmup, 1), rate)

    return schedule
