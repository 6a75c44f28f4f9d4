"""Whether a subset of the parameters still stands for all of them.

A few samples get the whole Gramian too. Three errors are kept as running sums over the
last audits: of the cosines (root mean square, share of right signs), and of the
gradient, relative to what harmonization changes at all: a small error of a gradient
may be the whole effect.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmssl.gradients import sites as at
from mmssl.gradients import statistics
from mmssl.gradients.cotangents import compared
from mmssl.gradients.engines import Weigh
from mmssl.types import Metrics

MEMORY = 0.9
"""Share of the running sums that survives an audit: about ten audits count."""

ENOUGH = 30.0
"""Cosines audited before a verdict."""

SUMS = ("cosines", "square", "wrong", "off", "moved")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a subset may err; see `tapped.Subset`."""

    rmse: float
    sign: float
    effect: float


def init() -> dict[str, Float[Array, ""]]:
    """Nothing audited yet, no fallback."""
    return {name: jnp.zeros(()) for name in (*SUMS, "fallback")}


def spread(x: jax.Array, groups: int, count: int) -> jax.Array:
    """The rows of `count` groups, evenly spread, or of all if there are fewer."""
    count = min(count, groups)
    own = x.reshape(groups, -1, *x.shape[1:])[:: groups // count][:count]
    return own.reshape(-1, *x.shape[1:])


def sample(sites: at.Sites, groups: int, count: int) -> dict[str, at.Site]:
    """The sites of those groups."""
    return {
        path: site.with_rows(lambda x: spread(x, groups, count))
        for path, site in sites.items()
    }


def run(
    sites: at.Sites,
    names: at.Names,
    rest: at.Names,
    weigh: Weigh,
    *,
    present: Bool[Array, "g k"],
    state: dict[str, Float[Array, ""]],
    due: Bool[Array, ""],
    limits: Limits,
) -> tuple[dict[str, Float[Array, ""]], Metrics]:
    """Audits if due; the next state, and metrics under `audit/`.

    Args:
      sites: those of the audited samples only.
      names: the parameters that stand for the scope.
      rest: the others in scope.
      weigh: the rule.
      present: of the same samples or groups, which losses they are compared in.
      state: running sums and `fallback`.
      due: whether this step is one that audits.
      limits: what is too much.
    """

    groups, losses = present.shape

    def measured() -> dict[str, jax.Array]:
        part, _ = at.compare(sites, names, groups, losses)
        whole = part + at.compare(sites, rest, groups, losses)[0]
        part, whole = compared(part, present), compared(whole, present)
        (seen, defined), (true, _) = map(statistics.cosines, (part, whole))
        upper = defined & jnp.triu(jnp.ones((losses, losses), bool), 1)[None]
        found, wanted = weigh(part), weigh(whole)
        return {
            "cosines": upper.sum().astype(jnp.float32),
            "square": jnp.where(upper, (seen - true) ** 2, 0.0).sum(),
            "wrong": (upper & ((seen < 0) != (true < 0))).sum().astype(jnp.float32),
            "off": _square(sites, names, rest, found - wanted),
            "moved": _square(sites, names, rest, wanted - 1.0),
        }

    sums = {name: state[name] for name in SUMS}
    sums = jax.lax.cond(
        due,
        lambda: {n: MEMORY * sums[n] + new for n, new in measured().items()},
        lambda: sums,
    )
    count = jnp.maximum(sums["cosines"], 1.0)
    rmse = jnp.sqrt(sums["square"] / count)
    sign = 1.0 - sums["wrong"] / count
    moved = sums["moved"]
    effect = jnp.sqrt(sums["off"] / jnp.where(moved > 0, moved, 1.0))
    bad = (rmse > limits.rmse) | (sign < limits.sign) | (effect > limits.effect)
    fallback = (bad & (sums["cosines"] >= ENOUGH)).astype(jnp.float32)
    metrics = {
        "audit/rmse": rmse,
        "audit/sign": sign,
        "audit/effect": effect,
        "audit/fallback": fallback,
    }
    return {**sums, "fallback": fallback}, metrics


def _square(
    sites: at.Sites, names: at.Names, rest: at.Names, weights: Float[Array, "g k"]
) -> jax.Array:
    """Squared norm, over the scope, of the gradient with these weights."""
    own = {path: sites[path] for path in {**names, **rest}}
    grads = at.replayed_gradient(own, weights)
    inside = {
        f"{path}/{n}"
        for part in (names, rest)
        for path, own in part.items()
        for n in own
    }
    return sum(
        ((g * g).sum() for name, g in grads.items() if name in inside), jnp.zeros(())
    )
