"""The optimizer of a run, from plain numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmssl import trees
from mmssl.errors import UserError, nearest
from mmssl.optim.schedules import Schedule, make_schedule

OPTIMIZERS = ("adam", "adamw", "sgd")
NO_DECAY = (r"(.*/)?(bias|scale)",)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A gradient transformation and the learning rate it follows, for logging."""

    tx: optax.GradientTransformation
    schedule: Schedule


def make_optimizer(
    *,
    steps: int,
    name: str = "adam",
    peak_lr: float = 1e-4,
    end_lr: float | None = None,
    schedule: str = "quarter_cosine",
    warmup: int = 0,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = NO_DECAY,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    momentum: float = 0.9,
    grad_clip: float | None = None,
) -> Optimizer:
    """Builds clip -> Adam, AdamW or SGD -> weight decay -> learning rate.

    The defaults are VATT's: Adam with eps 1e-7, no decay, no clipping. All state is
    float32, parameters must be float32 masters; gradients of another dtype are widened.

    Args:
      steps: updates in the whole run.
      name: one of `OPTIMIZERS`.
      peak_lr, end_lr, schedule, warmup: see `schedules.make_schedule`.
      weight_decay: for "adamw" decoupled (times the learning rate); for "sgd" added to
        the gradient (L2). "adam" has none.
      no_decay: regular expressions over whole parameter paths (`a/b/c`) that are not
        decayed; all others are. Read only if weight_decay > 0; each must then match.
      b1, b2, eps: of Adam and AdamW.
      momentum: of SGD; 0 = none.
      grad_clip: largest global gradient norm; None = no clipping.

    Raises:
      UserError: an unknown name or a number out of range; and, from `tx.init`, a
        `no_decay` pattern that matches no parameter.
    """
    if name not in OPTIMIZERS:
        raise UserError(
            f"optim: name {name!r} is unknown; expected one of {sorted(OPTIMIZERS)}"
            f"{nearest(name, OPTIMIZERS)}"
        )
    if weight_decay < 0:
        raise UserError(f"optim: weight_decay must not be negative, got {weight_decay}")
    if name == "adam" and weight_decay:
        raise UserError(
            f"optim: adam has no weight decay, got weight_decay={weight_decay}; use "
            "name='adamw' for decoupled decay"
        )
    if grad_clip is not None and not grad_clip > 0:
        raise UserError(
            f"optim: grad_clip must be positive, got {grad_clip}; None turns it off"
        )
    for label, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise UserError(f"optim: {label} must lie in [0, 1), got {value}")
    if not eps > 0:
        raise UserError(f"optim: eps must be positive, got {eps}")
    rate = make_schedule(
        name=schedule, peak_lr=peak_lr, end_lr=end_lr, warmup=warmup, steps=steps
    )

    decay = optax.identity()
    if weight_decay:
        patterns = tuple(no_decay)
        decay = optax.add_decayed_weights(
            weight_decay, mask=lambda params: decay_mask(params, no_decay=patterns)
        )
    parts = [_float32()]
    if grad_clip is not None:
        parts.append(optax.clip_by_global_norm(grad_clip))
    if name == "sgd":
        parts.append(decay)
        if momentum:
            parts.append(optax.trace(decay=momentum))
    else:
        parts += [optax.scale_by_adam(b1=b1, b2=b2, eps=eps), decay]
    parts.append(optax.scale_by_learning_rate(rate))
    return Optimizer(tx=optax.chain(*parts), schedule=rate)


def decay_mask(params: Any, *, no_decay: Sequence[str]) -> Any:
    """A tree of bools, False where a pattern matches the parameter's path.

    Raises:
      UserError: a pattern matches nothing that an earlier one does not.
    """
    rest = (r".*", True)
    try:
        return trees.match(
            params,
            [*((pattern, False) for pattern in no_decay), rest],
            what="optim.no_decay",
        )
    except ValueError as error:
        raise UserError(
            f"{error}; parameters are named like "
            f"{sorted(trees.named_leaves(params))[:3]}"
        ) from error


def _float32() -> optax.GradientTransformation:
    """Refuses parameters that are not float32; widens gradients."""

    def init(params: Any) -> optax.EmptyState:
        narrow = {
            path: str(leaf.dtype)
            for path, leaf in trees.named_leaves(params).items()
            if leaf.dtype != jnp.float32
        }
        if narrow:
            raise ValueError(f"master parameters must be float32, got {narrow}")
        return optax.EmptyState()

    def update(
        updates: Any, state: optax.OptState, params: Any = None
    ) -> tuple[Any, optax.OptState]:
        del params
        return jax.tree.map(lambda g: g.astype(jnp.float32), updates), state

    return optax.GradientTransformation(init, update)
