"""How much the gradients of a batch's losses conflict, per sample.

A Gramian [..., k, k] holds the inner products of one sample's (or group's) k gradients.
A loss that the sample lacks has gradient 0: its cosines are undefined and enter no
statistic. Everything above the line is plain jnp, for inside the step; the two helpers
below it are NumPy, for logs and pages.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mmssl.types import Metrics

QUANTILES = (0.1, 0.5, 0.9)

# Relative difference of two weights that counts as none: a few roundings in float32.
_SAME = 1e-5


def cosines(
    gram: Float[Array, "*g k k"],
) -> tuple[Float[Array, "*g k k"], Bool[Array, "*g k k"]]:
    """cos[i, j] = G[i, j] / sqrt(G[i, i] G[j, j]), at any scale of the gradients.

    Returns:
      Cosines in [-1, 1], 0 where undefined; and where they are defined: both gradients
      differ from 0 and all three inner products are finite.
    """
    gram = gram.astype(jnp.float32)
    squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
    there = (squares > 0) & jnp.isfinite(squares)
    norms = jnp.sqrt(jnp.where(there, squares, 1.0))
    defined = there[..., :, None] & there[..., None, :] & jnp.isfinite(gram)
    # The product of two roots neither overflows nor vanishes, so no eps is needed.
    cos = jnp.where(defined, gram, 0.0) / (norms[..., :, None] * norms[..., None, :])
    return jnp.clip(cos, -1.0, 1.0), defined


def pairs(names: Sequence[str]) -> tuple[tuple[int, int, str], ...]:
    """Every pair of losses once: (i, j, "va_vt"), i < j.

    A `/` in a name becomes a dot, so that a pair stays one part of a metric's name.
    Labels that would be equal get their indices as well.
    """
    plain = [name.replace("/", ".") for name in names]
    found = [
        (i, j, f"{plain[i]}_{plain[j]}")
        for i, j in itertools.combinations(range(len(names)), 2)
    ]
    labels = [label for _, _, label in found]
    return tuple(
        (i, j, label if labels.count(label) == 1 else f"{label}({i},{j})")
        for i, j, label in found
    )


def masked_mean(x: Float[Array, "g *n"], mask: Bool[Array, "g *n"]) -> jax.Array:
    """Mean over g where `mask`; 0 where that is nowhere."""
    kept = jnp.where(mask, x, 0.0)
    return kept.sum(0) / jnp.maximum(mask.sum(0), 1).astype(kept.dtype)


def masked_quantiles(
    x: Float[Array, "g *n"], mask: Bool[Array, "g *n"], levels: Float[Array, "q"]
) -> Float[Array, "q *n"]:
    """`np.quantile` over g where `mask`, by linear interpolation; 0 where nowhere.

    One sort for all levels; what is masked sorts to the end.
    """
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf), axis=0)
    ordered = jnp.where(jnp.isfinite(ordered), ordered, 0.0)
    levels = levels.reshape(-1, *(1,) * (x.ndim - 1))
    last = jnp.maximum(mask.sum(0, keepdims=True) - 1, 0)
    at = levels * last.astype(jnp.float32)
    low = jnp.floor(at).astype(jnp.int32)
    below = jnp.take_along_axis(ordered, low, axis=0)
    above = jnp.take_along_axis(ordered, jnp.minimum(low + 1, last), axis=0)
    return below + (at - low) * (above - below)


def summarise(
    gram: Float[Array, "g k k"],
    weights: Float[Array, "g k"],
    keep: Float[Array, "g"],
    names: Sequence[str],
    *,
    plain: Float[Array, "k"] | None = None,
) -> Metrics:
    """Metrics of one batch, under `conflict/`, float32; 0 where nothing is defined.

    Per pair of losses, over the samples where their cosine is defined:

    - `rate/va_vt`: share with a negative cosine.
    - `cos_mean/va_vt`, `cos_q10`, `cos_q50`, `cos_q90`: mean and quantiles.
    - `defined/va_vt`: their share of all samples.

    Over the samples with at least one defined pair; the rest of the share is left as
    it was:

    - `dropped`: share that the curriculum takes away, mean of 1 - keep.
    - `realigned`: kept share whose weights differ from the plain ones.

    Per loss, over the samples that have it:

    - `norm/va`: root mean square of the norm of a sample's gradient.
    - `weight/va`: mean weight of the kept ones.

    Args:
      gram: inner products per sample or group.
      weights: what the weighting gave, before `keep` and its scale.
      keep: the curriculum's, in [0, 1]; ones without a curriculum.
      names: the k losses.
      plain: the weights without realignment; None = ones.
    """
    gram = gram.astype(jnp.float32)
    plain = jnp.ones(len(names), jnp.float32) if plain is None else plain
    cos, defined = cosines(gram)
    labelled = pairs(names)
    metrics: Metrics = {}

    any_defined = jnp.zeros(gram.shape[0], jnp.bool_)
    if labelled:
        cos, defined = (
            jnp.stack([x[:, i, j] for i, j, _ in labelled], 1) for x in (cos, defined)
        )
        any_defined = defined.any(1)
        per_pair = {
            "rate": masked_mean((cos < 0).astype(jnp.float32), defined),
            "cos_mean": masked_mean(cos, defined),
            "defined": defined.astype(jnp.float32).mean(0),
        }
        levels = jnp.asarray(QUANTILES, jnp.float32)
        values = masked_quantiles(cos, defined, levels)
        per_pair |= {
            f"cos_q{100 * q:.0f}": v for q, v in zip(QUANTILES, values, strict=True)
        }
        for part, row in per_pair.items():
            for (_, _, label), value in zip(labelled, row, strict=True):
                metrics[f"conflict/{part}/{label}"] = value

    differs = (jnp.abs(weights - plain[None]) > _SAME * jnp.abs(plain[None])).any(1)
    metrics["conflict/dropped"] = masked_mean(1.0 - keep, any_defined)
    metrics["conflict/realigned"] = masked_mean(keep * differs, any_defined)

    squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
    there = (squares > 0) & jnp.isfinite(squares)
    norms = jnp.sqrt(masked_mean(squares, there))
    share = jnp.where(there, keep[:, None], 0.0)
    total = jnp.where(there, keep[:, None] * weights, 0.0).sum(0)
    mean = total / jnp.where(share.sum(0) > 0, share.sum(0), 1.0)
    for k, name in enumerate(names):
        metrics[f"conflict/norm/{name}"] = norms[k]
        metrics[f"conflict/weight/{name}"] = mean[k]
    return metrics


# -- on the host -----------------------------------------------------------------------


def cosine_histogram(
    cos: Float[np.ndarray, "*g"], defined: Bool[np.ndarray, "*g"], bins: int = 40
) -> tuple[Int[np.ndarray, "bins"], Float[np.ndarray, "bins+1"]]:
    """Counts of the defined cosines in equal bins over [-1, 1], and the bins' edges.

    With an even number of bins 0 is an edge, and conflict is exactly the left half.
    """
    return np.histogram(cos[defined], bins=bins, range=(-1.0, 1.0))


def extremes(
    cos: Float[np.ndarray, "g"],
    defined: Bool[np.ndarray, "g"],
    ids: Shaped[np.ndarray, "g"],
    n: int = 8,
) -> tuple[Shaped[np.ndarray, "m"], Shaped[np.ndarray, "m"]]:
    """The ids of the most and of the least conflicting samples, most extreme first.

    Fewer than n where fewer are defined; equal cosines stay in the order given.
    """
    cos, ids = cos[defined], ids[defined]
    most = np.argsort(cos, kind="stable")[:n]
    least = np.argsort(-cos, kind="stable")[:n]
    return ids[most], ids[least]
