"""Small exact problems on one sample's Gramian, for every device and under vmap.

The k losses of a sample are few, so a quadratic program is solved on every subset of
them, and the solution that meets the optimality conditions best is taken: no threshold
decides, and nothing stops early. All of it is elementwise arithmetic in float32: matrix
products run at lower precision on some devices, and library factorisations of many
k x k matrices are slow on most.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

NEWTON_STEPS = 80
"""Enough for powers from 1/4 to 2 and lengths from 1e-5 to 1e5, four losses."""

JACOBI_SWEEPS = 8
"""Convergence is quadratic; four losses need about four."""


def times(matrix: Float[Array, "m k"], vector: Float[Array, "k"]) -> Float[Array, "m"]:
    """Matrix times vector, at full precision on every device."""
    return (matrix * vector[None, :]).sum(-1)


def product(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Matrix times matrix, at full precision on every device."""
    return (a[:, :, None] * b[None, :, :]).sum(1)


def solve(
    matrix: Float[Array, "k k"], right: Float[Array, "k m"]
) -> Float[Array, "k m"]:
    """Gauss-Jordan elimination; a positive definite matrix needs no pivoting.

    Args:
      matrix: symmetric, positive definite up to rounding. An unknown whose pivot is
        not positive is set to zero.
      right: m right-hand sides.
    """
    for j, here in enumerate(np.eye(len(matrix), dtype=bool)[:, :, None]):
        pivot = matrix[j, j]
        inverse = jnp.where(pivot > 0, 1 / jnp.where(pivot > 0, pivot, 1), 0)
        factor = matrix[:, j, None]
        row, solved = matrix[j] * inverse, right[j] * inverse
        matrix = jnp.where(here, row[None, :], matrix - factor * row[None, :])
        right = jnp.where(here, solved[None, :], right - factor * solved[None, :])
    return right


def eigh(
    matrix: Float[Array, "k k"],
) -> tuple[Float[Array, "k"], Float[Array, "k k"]]:
    """Eigenvalues, unsorted, and eigenvectors as columns, by cyclic Jacobi rotations.

    Rows may differ much in scale: small eigenvalues keep their relative accuracy
    (Demmel and Veselic, 1992), which methods that reduce to tridiagonal form lose.
    """
    k = len(matrix)
    eye = np.eye(k, dtype=np.float32)

    def sweep(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        a, vectors = carry
        for p, q in itertools.combinations(range(k), 2):
            gap, twice = a[q, q] - a[p, p], 2 * a[p, q]
            length = jnp.abs(gap) + jnp.hypot(gap, twice)
            tangent = twice / jnp.where(length > 0, length, 1)
            tangent = jnp.where(gap < 0, -tangent, tangent)
            cos = 1 / jnp.sqrt(1 + tangent * tangent)
            plane = np.diag(eye[p] + eye[q])
            turn = np.outer(eye[p], eye[q]) - np.outer(eye[q], eye[p])
            rotation = jnp.asarray(eye - plane) + cos * plane + tangent * cos * turn
            a = product(product(rotation.T, a), rotation) * (1 - np.abs(turn))
            vectors = product(vectors, rotation)
        return a, vectors

    start = (matrix, jnp.asarray(eye))
    a, vectors = jax.lax.fori_loop(0, JACOBI_SWEEPS, sweep, start)
    return jnp.diagonal(a), vectors


def project_on_dual_cone(cosine: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Each unit gradient's projection on the cone that conflicts with none.

    min |e_j + sum_l s_l e_l| over s >= 0 for every j: Quinton and Rey 2024
    (arXiv 2406.16232).

    Args:
      cosine: inner products of the unit gradients e; positive definite.

    Returns:
      Column j: coefficients of e_j's projection on the unit gradients.
    """
    eye = jnp.eye(len(cosine), dtype=cosine.dtype)

    def on_subset(active: Bool[Array, "k"]) -> tuple[jax.Array, jax.Array]:
        both = active[:, None] & active[None, :]
        right = jnp.where(active[:, None], -cosine, 0)
        added = solve(jnp.where(both, cosine, eye), right)
        found = eye + added
        conflict = jnp.maximum(-added, -product(cosine, found)).max(0)
        return found, conflict

    found, conflict = jax.vmap(on_subset)(_subsets(len(cosine)))
    best = jnp.argmin(conflict, axis=0)
    return jnp.take_along_axis(found, best[None, None, :], axis=0)[0]


def min_norm(gram: Float[Array, "k k"], present: Bool[Array, "k"]) -> Float[Array, "k"]:
    """The point of least norm in the convex hull of the present gradients.

    Args:
      gram: inner products, positive definite on the present losses.
      present: which losses take part.

    Returns:
      Convex weights.
    """
    norm = jnp.sqrt(jnp.diagonal(gram))

    def on_subset(members: Bool[Array, "k"]) -> tuple[jax.Array, jax.Array]:
        members = members & present
        ahead, weights, _ = _affine(gram, members, jnp.zeros_like(norm))
        unit = jnp.abs(weights * norm).sum()
        # Optimal where no weight is negative and no gradient leads further inwards.
        inwards = jnp.where(present, -times(ahead, weights) / norm, -jnp.inf)
        wrong = jnp.maximum(-weights * norm, inwards).max() / unit
        return weights, jnp.where(members.any(), wrong, jnp.inf)

    return _best(on_subset, len(gram))


def conflict_averse(
    gram: Float[Array, "k k"], present: Bool[Array, "k"], radius: float
) -> Float[Array, "k"]:
    """max_d min_k <g_k, d> within |d - g_0| <= radius |g_0|, g_0 the mean gradient.

    Liu et al. 2021 (arXiv 2110.14048). On the subset whose inner products
    with d are equal and least, d - g_0 is a step along the affine hull's least point
    plus a step within the hull that evens out g_0: both have closed forms.

    Args:
      gram: inner products, positive definite on the present losses.
      present: which losses take part.
      radius: the paper's c.

    Returns:
      Weights y with d = g_0 + sum_k y_k g_k.
    """
    norm = jnp.sqrt(jnp.diagonal(gram))
    mean = present / jnp.maximum(present.sum(), 1)
    length = jnp.sqrt((mean * times(gram, mean)).sum())
    squared_radius = (radius * length) ** 2

    def on_subset(members: Bool[Array, "k"]) -> tuple[jax.Array, jax.Array]:
        members = members & present
        ahead, point, even = _affine(gram, members, mean)
        left = squared_radius - (even * times(gram, even)).sum()
        size = jnp.sqrt((point * times(gram, point)).sum())
        step = jnp.sqrt(jnp.maximum(left, 0)) / size * point + even
        # Optimal where no step is negative and no other gradient is worse off.
        worse = jnp.where(present, -times(ahead, mean + step) / norm, -jnp.inf)
        wrong = jnp.maximum(-step * norm, worse).max() / length
        return step, jnp.where(members.any() & (left >= 0), wrong, jnp.inf)

    return _best(on_subset, len(gram))


def alpha_fair(
    cosine: Float[Array, "k k"], scale: Float[Array, "k"], power: float
) -> Float[Array, "k"]:
    """The positive u with cosine u = scale u^-power, elementwise.

    The minimum of a convex function of u or, for power below 1, where Newton's method
    would overshoot, of the right-hand side v: the direction is the same. Steps are
    damped as for self-concordant functions, which this is for power 1.

    Args:
      cosine: positive definite, with unit diagonal.
      scale: positive.
      power: from 1/4 to 2.
    """
    steep = max(power, 1 / power)

    def newton(_: int, u: jax.Array) -> jax.Array:
        # Steps relative to u, or v, keep all numbers near one.
        barrier = scale * u ** (1 - power)
        hessian = u[:, None] * cosine * u[None, :] + jnp.diag(power * barrier)
        slope = u * times(cosine, u) - barrier
        step = solve(hessian, slope[:, None])[:, 0] * (-1 if power >= 1 else power)
        step = step / (1 + (1 + steep) / 2 * jnp.sqrt((step * step).sum()))
        return u * (1 + step) ** (1 if power >= 1 else -steep)

    start = (scale / len(cosine)) ** (1 / (1 + power))
    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, start)


def _affine(
    gram: jax.Array, members: jax.Array, vector: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The affine hull of some gradients: its least point, and -vector's share along it.

    Args:
      gram: [k, k] inner products.
      members: [k] bool, the gradients that span the hull.
      vector: [k] weights of any combination of gradients.

    Returns:
      [k, k] inner products of all gradients, less one member's, with all gradients;
      the point, as weights [k] that sum to 1; the share, as weights [k] that sum to 0.
    """
    # Differences from the shortest member: from a long one, short ones would be lost.
    base = jnp.argmin(jnp.where(members, jnp.diagonal(gram), jnp.inf))
    eye = jnp.eye(len(gram), dtype=gram.dtype)
    start = eye[base]
    edge = members & (start == 0)
    ahead = gram - gram[base][None, :]
    both = edge[:, None] & edge[None, :]
    matrix = jnp.where(both, ahead - ahead[:, base][:, None], eye)
    right = jnp.stack([ahead[:, base], times(ahead, vector)], axis=1)
    found = -solve(matrix, jnp.where(edge[:, None], right, 0))
    found = found - start[:, None] * found.sum(0)[None, :]
    return ahead, start + found[:, 0], found[:, 1]


def _subsets(k: int) -> jax.Array:
    """All subsets of k losses: [2^k, k] bool."""
    return jnp.asarray((np.arange(2**k)[:, None] >> np.arange(k)[None, :]) & 1 == 1)


def _best(
    on_subset: Callable[[jax.Array], tuple[jax.Array, jax.Array]], k: int
) -> jax.Array:
    """The answer of the subset that violates the optimality conditions least."""
    found, wrong = jax.vmap(on_subset)(_subsets(k))
    return found[jnp.argmin(wrong)]
