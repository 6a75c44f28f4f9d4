"""Health of embeddings: is the model using its space, or collapsing?

The loss alone does not tell (a collapsed model can sit on a plateau that looks like
slow learning); these four numbers do.
"""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmssl.types import Metrics

COLLAPSED_SPREAD = 0.1
"""Mean cosine of two samples above about 0.99, since cosine is 1 - spread squared."""

COLLAPSED_RANK = 1.5
"""Less than one and a half directions carry the embeddings."""


@jax.jit(static_argnames="max_rows")
def health(embeddings: Mapping[str, jax.Array], *, max_rows: int = 1024) -> Metrics:
    """Health metrics of a batch, under `health/`, float32.

    - `spread/m/s`: mean over dimensions of the standard deviation over samples, times
      sqrt(e): 1 for unit vectors spread evenly, 0 for a single point.
    - `rank/m/s`: effective rank, exp of the entropy of the normalised singular values
      (Roy and Vetterli, EUSIPCO 2007), between 1 and min(b, e).
    - `uniformity/m/s`: log of the mean of exp(-2 |x - y|^2) over pairs of samples
      (Wang and Isola, ICML 2020, eq. 2): 0 collapsed, about -4 spread evenly.
    - `alignment/m-n/s`: mean |x - y|^2 between two modalities of the same sample in
      the same space (eq. 1, alpha 2): 0 equal, 2 unrelated, over samples with both.

    With fewer than two samples present the first three are undefined: NaN, and so is
    the last without a sample that has both.

    Args:
      embeddings: `modality/space` -> [b, e], L2-normalised; the row of an absent
        modality is zeros, and does not count.
      max_rows: only the first that many samples are read, which bounds the cost.
    """
    tables = {n: x[:max_rows].astype(jnp.float32) for n, x in embeddings.items()}
    # Unit rows are present, zero rows absent; anything between is a caller's mistake.
    present = {n: (x * x).sum(-1) > 0.25 for n, x in tables.items()}
    metrics: Metrics = {}
    for name, x in tables.items():
        parts = {
            "spread": _spread(x, present[name]),
            "rank": effective_rank(x),
            "uniformity": _uniformity(x, present[name]),
        }
        defined = present[name].sum() >= 2
        for part, value in parts.items():
            metrics[f"health/{part}/{name}"] = jnp.where(defined, value, jnp.nan)
    for first, second in itertools.combinations(sorted(tables), 2):
        (left, space), (right, other) = first.split("/", 1), second.split("/", 1)
        if space == other:
            both = present[first] & present[second]
            distance = ((tables[first] - tables[second]) ** 2).sum(-1)
            # Not 0 without a pair: that would read as perfectly aligned.
            value = jnp.where(both.any(), _mean(distance, both), jnp.nan)
            metrics[f"health/alignment/{left}-{right}/{space}"] = value
    return metrics


def effective_rank(x: Float[Array, "b e"]) -> Float[Array, ""]:
    """exp(-sum p log p), p the singular values over their sum; 1 where all are zero."""
    # Not from the Gram matrix: squaring would drown small singular values in float32.
    values = jnp.linalg.svd(x, compute_uv=False)
    p = values / jnp.maximum(values.sum(), 1e-30)
    return jnp.exp(-(p * jnp.log(jnp.maximum(p, 1e-30))).sum())


def collapse_warning(metrics: Mapping[str, float]) -> str | None:
    """A sentence naming every collapsed embedding in `health` metrics, or None.

    Collapsed: spread below `COLLAPSED_SPREAD` or rank below `COLLAPSED_RANK`. Numbers
    that are not finite are the finite check's business, not collapse.
    """
    limits = {"spread": COLLAPSED_SPREAD, "rank": COLLAPSED_RANK}
    found = []
    for name, value in sorted(metrics.items()):
        part, _, rest = name.removeprefix("health/").partition("/")
        if name.startswith("health/") and part in limits and value < limits[part]:
            found.append(f"{part} of {rest} is {value:.3g} (below {limits[part]})")
    if not found:
        return None
    return (
        f"embeddings have collapsed: {'; '.join(found)}. Lower optim.peak_lr, lengthen "
        "the warm-up, or check that the modalities carry shared content"
    )


def _mean(x: Float[Array, "..."], weight: Bool[Array, "..."]) -> Float[Array, ""]:
    kept = weight.astype(x.dtype)
    return (x * kept).sum() / jnp.maximum(kept.sum(), 1.0)


def _spread(x: Float[Array, "b e"], present: Bool[Array, "b"]) -> Float[Array, ""]:
    weight = present[:, None].astype(x.dtype)
    count = jnp.maximum(weight.sum(), 1.0)
    centred = (x - (x * weight).sum(0, keepdims=True) / count) * weight
    deviation = jnp.sqrt((centred * centred).sum(0) / count)
    return deviation.mean() * jnp.sqrt(jnp.float32(x.shape[-1]))


def _uniformity(x: Float[Array, "b e"], present: Bool[Array, "b"]) -> Float[Array, ""]:
    squares = (x * x).sum(-1)
    products = jnp.matmul(x, x.T, precision="highest")
    distance = squares[:, None] + squares[None, :] - 2 * products
    pairs = present[:, None] & present[None, :] & ~jnp.eye(x.shape[0], dtype=jnp.bool_)
    return jnp.log(jnp.maximum(_mean(jnp.exp(-2 * distance), pairs), 1e-30))
