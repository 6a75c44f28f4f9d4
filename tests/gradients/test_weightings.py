"""Every rule against its own theorem and against its paper on explicit vectors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from mmssl.errors import UserError
from mmssl.gradients import solvers
from mmssl.gradients import weightings as rules

pytestmark = pytest.mark.usefixtures("compile_quickly")

NAMES = tuple("abcdefg")
ROWS = 256
"""Everything runs in batches of this size, so that a rule compiles once per k."""

GRAMIAN_RULES = {
    "norm_balanced": rules.NormBalanced(),
    "pcgrad": rules.PCGrad(),
    "one_sided": rules.OneSided(("b",)),
    "gradvac": rules.GradVac(0.3),
    "mgda": rules.MGDA(),
    "cagrad": rules.CAGrad(0.4),
    "imtl_g": rules.IMTLG(),
    "aligned_mtl": rules.AlignedMTL(),
    "nash_mtl": rules.NashMTL(),
    "fairgrad": rules.FairGrad(2.0),
    "upgrad": rules.UPGrad(),
}
every_rule = pytest.mark.parametrize("kind", GRAMIAN_RULES)
DRAWS = ("pcgrad", "one_sided", "gradvac")
"""Rules whose answer for more than two losses depends on the key."""


@functools.cache
def compiled(rule, names):
    return jax.jit(lambda gram, key: rule(gram, names=names, key=key))


def weigh(rule, gram, *, names=None, seed=0):
    """Weights [n, k] in float64 for n <= ROWS Gramians."""
    gram = np.asarray(gram, np.float32)
    n, k = gram.shape[:2]
    padded = np.concatenate([gram, np.zeros((ROWS - n, k, k), np.float32)])
    # Only this one reads the names; another would compile again.
    names = names if isinstance(rule, rules.OneSided) and names else NAMES[:k]
    weights = compiled(rule, names)(padded, jax.random.key(seed))
    return np.asarray(weights[:n], np.float64)


def gramian(j):
    return np.einsum("nkd,nld->nkl", j, j)


def combine(w, j):
    return np.einsum("nk,nkd->nd", w, j)


def lengths(j):
    return np.linalg.norm(j, axis=-1)


def random(k, seed=0, *, dim=12, spread=0.5):
    """Gradients [ROWS, k, dim], of lengths that differ, with all signs of cosines."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(ROWS, 1, dim)) * rng.choice([0, 0, 1], (ROWS, k, 1))
    j = rng.normal(size=(ROWS, k, dim)) + shared * rng.choice([-1, 1], (ROWS, k, 1))
    return j * 10 ** rng.uniform(-spread, spread, (ROWS, k, 1))


def close(d, expected, j, w=None, *, tolerance=1e-5):
    """Vectors agree, measured by the lengths of what was added up to them."""
    size = lengths(j).sum(-1) if w is None else (np.abs(w) * lengths(j)).sum(-1)
    assert (np.abs(d - expected).max(-1) / size).max() < tolerance


def harmonized(kind, j, **kwargs):
    return combine(weigh(GRAMIAN_RULES.get(kind, kind), gramian(j), **kwargs), j)


# The contract that all rules share.


def test_the_table_is_whole():
    assert {*GRAMIAN_RULES, "sum", "fixed"} == set(rules.WEIGHTINGS)
    for kind, rule in GRAMIAN_RULES.items():
        assert type(rule) is rules.WEIGHTINGS[kind]
        assert rule.uses_gramian
        assert hash(rule) == hash(rule)
    assert not rules.Sum.uses_gramian
    assert not rules.Fixed.uses_gramian


@pytest.mark.parametrize(
    ("kind", "k"),
    [*itertools.product(GRAMIAN_RULES, [2, 3]), ("mgda", 4), ("cagrad", 4)],
)
def test_identical_gradients_get_ones(kind, k):
    scales = np.asarray([1e-10, 0.3, 1.0, 7.7, 1e10])
    w = weigh(GRAMIAN_RULES[kind], np.ones((5, k, k)) * scales[:, None, None])
    np.testing.assert_allclose(w, 1, atol=1e-4)


@every_rule
def test_one_loss_gets_one(kind):
    gram = np.asarray([1e-10, 1.0, 1e10, 0.0])[:, None, None]
    rule = rules.OneSided(("a",)) if kind == "one_sided" else GRAMIAN_RULES[kind]
    np.testing.assert_allclose(weigh(rule, gram), 1, atol=1e-6)


@every_rule
@pytest.mark.parametrize("gone", [0, 2])
def test_an_absent_loss_disturbs_nobody(kind, gone):
    j = random(2)
    names = [n for i, n in enumerate("abc") if i != gone]
    expected = weigh(GRAMIAN_RULES[kind], gramian(j), names=tuple(names))
    w = weigh(GRAMIAN_RULES[kind], gramian(np.insert(j, gone, 0, axis=1)))
    np.testing.assert_allclose(w, np.insert(expected, gone, 1, axis=1), rtol=2e-5)


@every_rule
def test_without_gradients_all_weights_are_one(kind):
    alone = np.zeros((3, 3, 3))
    alone[np.arange(3), np.arange(3), np.arange(3)] = 1e-10, 1, 1e10
    gram = np.concatenate([np.zeros((1, 3, 3)), alone])
    np.testing.assert_allclose(weigh(GRAMIAN_RULES[kind], gram), 1, atol=1e-6)


@every_rule
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_common_scale_cancels(kind, scale):
    gram = gramian(random(3))
    rule = GRAMIAN_RULES[kind]
    np.testing.assert_allclose(
        weigh(rule, gram * scale), weigh(rule, gram), rtol=1e-3, atol=1e-4
    )


def degenerate():
    """Linearly dependent gradients, at lengths from 1e-5 to 1e5: [n, 3, dim]."""
    a, b, c = np.random.default_rng(3).normal(size=(3, 12))
    families = [(a, a, b), (a, -a, b), (a, a, -a), (a, b, a + b), (a, b, -a - b)]
    families += [(a, b, -a), (a, -a, 0 * a), (a, 1e-3 * b - a, c), (a, a + 1e-6 * b, c)]
    scales = itertools.product([1e-5, 1.0, 1e5], repeat=3)
    rows = [np.stack(f) * np.asarray(s)[:, None] for s in scales for f in families]
    return np.asarray(rows)


@every_rule
def test_weights_are_bounded_whatever_the_gradients(kind):
    """No rule but FairGrad lifts one gradient above 1000 k times all together."""
    wide = random(3, spread=5)
    for j in (degenerate(), wide):
        w = weigh(GRAMIAN_RULES[kind], gramian(j))
        assert np.isfinite(w).all()
        size = np.abs(w) * lengths(j) / lengths(j).sum(-1, keepdims=True)
        assert size.max() < (1e8 if kind == "fairgrad" else 3e3)


EVEN = ["norm_balanced", "pcgrad", "mgda", "imtl_g", "nash_mtl", "fairgrad", "upgrad"]


@pytest.mark.parametrize("kind", [*EVEN, "cagrad"])
def test_opposite_gradients_of_one_length_cancel(kind):
    """Nothing helps both, so a rule that treats both alike stays where it is."""
    a = random(1)
    j = np.concatenate([a, -a], axis=1)
    close(harmonized(kind, j), 0, j, tolerance=1e-3 if kind == "fairgrad" else 1e-4)


def test_surgery_on_opposite_gradients_of_any_length_is_zero():
    a = random(1)
    rng = np.random.default_rng(1)
    j = np.concatenate([a, -a * 10 ** rng.uniform(-5, 5, (ROWS, 1, 1))], axis=1)
    for kind in ("pcgrad", "upgrad", "mgda"):
        w = weigh(GRAMIAN_RULES[kind], gramian(j))
        close(combine(w, j), 0, j, w, tolerance=2e-6)


@pytest.mark.parametrize(
    ("kind", "k"),
    [(n, k) for n in GRAMIAN_RULES for k in (2, 3) if k == 2 or n not in DRAWS],
)
def test_the_order_of_the_losses_does_not_matter(kind, k):
    gram = gramian(random(k))
    straight = weigh(GRAMIAN_RULES[kind], gram)
    turned = np.roll(np.arange(k), 1)
    w = weigh(
        GRAMIAN_RULES[kind],
        gram[:, turned][:, :, turned],
        names=tuple(NAMES[i] for i in turned),
    )
    np.testing.assert_allclose(w, straight[:, turned], rtol=1e-3, atol=1e-4)


@every_rule
def test_a_batch_gets_what_its_samples_get_alone(kind):
    gram = gramian(random(2))
    rule = GRAMIAN_RULES[kind]
    one = functools.partial(rule, names=("a", "b"), key=jax.random.key(0))
    loop = jax.jit(lambda grams: jax.lax.map(one, grams))(jnp.float32(gram))
    np.testing.assert_allclose(weigh(rule, gram), loop, rtol=1e-5, atol=1e-6)


def test_leading_axes_may_be_many():
    gram = jnp.float32(gramian(random(2))[:6])
    rule = functools.partial(rules.NormBalanced(), names="ab", key=jax.random.key(0))
    grid = rule(gram.reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(grid.reshape(6, 2), rule(gram))
    np.testing.assert_array_equal(jax.vmap(rule)(gram), rule(gram))


@pytest.mark.parametrize("kind", ["norm_balanced", "imtl_g", "nash_mtl"])
def test_directions_that_ignore_the_lengths_of_gradients(kind):
    j = random(3)
    scales = 10 ** np.random.default_rng(1).uniform(-5, 5, (ROWS, 3, 1))
    one, other = harmonized(kind, j), harmonized(kind, j * scales)
    cos = (one * other).sum(-1) / lengths(one) / lengths(other)
    np.testing.assert_allclose(cos, 1, atol=1e-5)


@pytest.mark.parametrize(("kind", "k"), [("pcgrad", 2), ("upgrad", 3)])
def test_updates_linear_in_the_lengths_of_gradients(kind, k):
    j = random(k)
    rng = np.random.default_rng(1)
    s, t = 10 ** rng.uniform(-2, 2, (2, ROWS, k, 1))
    both = harmonized(kind, j * (s + t))
    close(both, harmonized(kind, j * s) + harmonized(kind, j * t), j * (s + t))


# Each rule.


def test_sum_and_fixed():
    gram, key = np.ones((4, 5, 3, 3), np.float32), jax.random.key(0)
    one = rules.Sum()(gram, names="abc", key=key)
    np.testing.assert_array_equal(one, np.ones((4, 5, 3)))
    fixed = rules.Fixed({"a": 1.0, "c": 0.5, "b": 2.0})(gram, names="abc", key=key)
    np.testing.assert_array_equal(fixed, np.ones((4, 5, 1)) * [1, 2, 0.5])
    with pytest.raises(UserError, match="'d'"):
        rules.Fixed({"a": 1.0, "d": 0.5})(gram, names="abc", key=key)
    with pytest.raises(UserError, match="'c'"):
        rules.Fixed({"a": 1.0, "b": 0.5})(gram, names="abc", key=key)


def test_norm_balanced_lengths_are_equal_and_keep_their_sum():
    j = random(3)
    pull = weigh(rules.NormBalanced(), gramian(j)) * lengths(j)
    mean = lengths(j).mean(-1, keepdims=True)
    np.testing.assert_allclose(pull, np.broadcast_to(mean, pull.shape), rtol=1e-6)


def project(g, other):
    """Removes other's direction from g, both [n, dim], where they conflict."""
    inner = (g * other).sum(-1, keepdims=True)
    share = inner / (other * other).sum(-1, keepdims=True)
    return np.where(inner < 0, g - share * other, g)


def cosine(a, b):
    return (a * b).sum(-1) / lengths(a) / lengths(b)


def test_pcgrad_of_two_losses():
    j = random(2)
    a, b = j[:, 0], j[:, 1]
    inner = (a * b).sum(-1)
    conflict = inner < 0
    assert 0.2 < conflict.mean() < 0.8
    w = weigh(rules.PCGrad(), gramian(j))
    np.testing.assert_array_equal(w[~conflict], 1)
    # The scalar-weight identity.
    expected = 1 + np.maximum(-inner, 0)[:, None] / lengths(j) ** 2
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    a_, b_ = project(a, b), project(b, a)
    close(combine(w, j), a_ + b_, j, w)
    # What is projected is orthogonal to the other; the angle changes its sign.
    alone_a = weigh(rules.OneSided(("a",)), gramian(j))
    alone_b = weigh(rules.OneSided(("b",)), gramian(j))
    moved_a, moved_b = combine(alone_a, j) - b, combine(alone_b, j) - a
    np.testing.assert_allclose(cosine(moved_a, b)[conflict], 0, atol=1e-5)
    np.testing.assert_allclose(cosine(moved_b, a)[conflict], 0, atol=1e-5)
    flipped = -cosine(a, b)[conflict]
    np.testing.assert_allclose(cosine(moved_a, moved_b)[conflict], flipped, atol=1e-4)


def published_pcgrad(j, orders):
    """Algorithm 1, literally: gradient i meets the others as orders[i] says."""
    total = 0
    for i, order in enumerate(orders):
        g = j[:, i]
        for other in order:
            g = project(g, j[:, other])
        total = total + g
    return total


def test_pcgrad_of_three_losses_is_the_published_loop_in_some_order():
    j = random(3)
    d = combine(weigh(rules.PCGrad(), gramian(j)), j)
    pairs = [[(1, 2), (2, 1)], [(0, 2), (2, 0)], [(0, 1), (1, 0)]]
    options = [published_pcgrad(j, orders) for orders in itertools.product(*pairs)]
    errors = np.abs(np.stack(options) - d).max(-1) / lengths(j).sum(-1)
    assert errors.min(0).max() < 1e-5
    # Where the order matters, every order occurs, and no two keys agree on all.
    matters = errors.max(0) > 1e-2
    assert set(errors[:, matters].argmin(0)) == set(range(8))
    other = weigh(rules.PCGrad(), gramian(j), seed=1)
    assert np.abs(combine(other, j) - d).max() > 1e-3


def test_one_sided_moves_only_the_named_loss():
    j = random(3)
    d = combine(weigh(GRAMIAN_RULES["one_sided"], gramian(j)), j)
    rest = j[:, 0] + j[:, 2]
    b = [project(project(j[:, 1], j[:, x]), j[:, y]) for x, y in ((0, 2), (2, 0))]
    errors = np.abs(np.stack(b) + rest - d).max(-1) / lengths(j).sum(-1)
    assert errors.min(0).max() < 1e-5
    with pytest.raises(UserError, match="did you mean 'vt'"):
        weigh(rules.OneSided(("vtt",)), gramian(j), names=("va", "vt", "at"))


@pytest.mark.parametrize("target", [-0.5, 0.3, 0.9])
def test_gradvac_reaches_its_target(target):
    """Both turned gradients of two, as the paper writes them, in float64."""
    j = random(2)
    phi = cosine(j[:, 0], j[:, 1])
    total = 0
    for one, other in ((0, 1), (1, 0)):
        g, o = j[:, one], j[:, other]
        root = np.sqrt(1 - target**2)
        share = lengths(g) * (target * np.sqrt(1 - phi**2) - phi * root)
        share = np.where(phi < target, share / (lengths(o) * root), 0)
        turned = g + share[:, None] * o
        np.testing.assert_allclose(cosine(turned, o), np.maximum(phi, target))
        total = total + turned
    w = weigh(rules.GradVac(target), gramian(j))
    close(combine(w, j), total, j, w, tolerance=2e-5)


def test_gradvac_without_target_is_pcgrad():
    gram = gramian(random(3))
    pcgrad = weigh(rules.PCGrad(), gram)
    np.testing.assert_array_equal(weigh(rules.GradVac(0.0), gram), pcgrad)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.5, 3])
def test_mgda_is_the_shortest_vector_of_the_hull(k, spread):
    j = random(k, dim=5, spread=spread)
    w = weigh(rules.MGDA(), gramian(j)) / k
    assert w.min() > -1e-6
    np.testing.assert_allclose(w.sum(-1), 1, atol=1e-6)
    # One coordinate more lifts the hull from the origin: least squares with x >= 0.
    size = lengths(j).min(-1)
    lifted = np.concatenate([j, np.ones((ROWS, k, 1)) * size[:, None, None]], 2)
    target = np.eye(6)[5]
    x = [optimize.nnls(m.T, s * target)[0] for m, s in zip(lifted, size, strict=True)]
    expected = combine(x / np.sum(x, axis=1, keepdims=True), j)
    close(combine(w, j), expected, j, w, tolerance=2e-5)


def test_mgda_is_zero_at_pareto_stationary_points():
    j = random(3)
    j[:, 2] = -0.3 * j[:, 0] - 2 * j[:, 1]
    w = weigh(rules.MGDA(), gramian(j))
    close(combine(w, j), 0, j, w, tolerance=1e-4)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.5, 3])
def test_upgrad_projects_on_the_cone_that_conflicts_with_none(k, spread):
    """Against non-negative least squares on vectors: proj(g) = g + J^T s, s >= 0."""
    j = random(k, dim=5, spread=spread)
    w = weigh(rules.UPGrad(), gramian(j))
    expected = [sum(g + m.T @ optimize.nnls(m.T, -g)[0] for g in m) for m in j]
    close(combine(w, j), np.asarray(expected), j, tolerance=3e-5)


@pytest.mark.parametrize("kind", ["upgrad", "mgda", "imtl_g", "nash_mtl", "fairgrad"])
@pytest.mark.parametrize("k", [2, 3])
def test_updates_that_conflict_with_no_loss(kind, k):
    j = random(k)
    w = weigh(GRAMIAN_RULES[kind], gramian(j))
    inner = np.einsum("nd,nkd->nk", combine(w, j), j)
    size = (np.abs(w) * lengths(j)).sum(-1, keepdims=True) * lengths(j)
    assert (inner / size).min() > -1e-5


def test_upgrad_of_two_losses_is_pcgrad():
    gram = gramian(random(2))
    np.testing.assert_allclose(
        weigh(rules.UPGrad(), gram), weigh(rules.PCGrad(), gram), rtol=2e-5
    )


@pytest.mark.parametrize(("k", "c"), [(2, 0.4), (3, 0.4), (4, 0.4), (3, 0.9)])
def test_cagrad_closes_the_duality_gap_in_its_ball(k, c):
    j = random(k, spread=1)
    mean = j.mean(1)
    radius = c * lengths(mean)
    d = combine(weigh(rules.CAGrad(c), gramian(j)), j) * (1 + c) / k
    np.testing.assert_allclose(lengths(d - mean), radius, rtol=1e-3)
    # d - g_0 is a multiple of a convex combination of gradients, the dual solution.
    step = weigh(rules.CAGrad(c), gramian(j)) * (1 + c) / k - 1 / k
    assert (step * lengths(j)).min() > -1e-4 * lengths(j).max()
    dual = combine(step / step.sum(-1, keepdims=True), j)
    upper = (dual * mean).sum(-1) + radius * lengths(dual)
    lower = np.einsum("nd,nkd->nk", d, j).min(-1)
    assert (np.abs(upper - lower) / (lengths(j).max(-1) * lengths(mean))).max() < 1e-4


def test_cagrad_without_radius_is_the_sum():
    np.testing.assert_allclose(weigh(rules.CAGrad(0.0), gramian(random(2))), 1)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_imtl_g_projections_are_equal(k):
    j = random(k)
    w = weigh(rules.IMTLG(), gramian(j))
    unit = j / lengths(j)[..., None]
    inner = np.einsum("nd,nkd->nk", combine(w, j), unit)
    size = (np.abs(w) * lengths(j)).sum(-1)
    assert ((inner.max(-1) - inner.min(-1)) / size).max() < 2e-5
    np.testing.assert_allclose((w * lengths(j)).sum(-1), lengths(j).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.5, 3])
def test_aligned_mtl_makes_all_singular_values_the_least(k, spread):
    """B J has condition 1: the update is least singular value times polar factor."""
    j = random(k, spread=spread)
    left, values, right = np.linalg.svd(j, full_matrices=False)
    aligned = values[:, -1, None, None] * (left @ right)
    w = weigh(rules.AlignedMTL(), gramian(j))
    close(combine(w, j), aligned.sum(1), j, tolerance=2e-5)
    # Relative to its own size, too, though it is far below the longest gradient.
    error = lengths(combine(w, j) - aligned.sum(1)) / values[:, -1]
    assert error.max() < 1e-2


@pytest.mark.parametrize("longer", [1.0, 1e3])
def test_aligned_mtl_ignores_directions_that_only_rounding_spans(longer):
    j = random(3)
    j[:, 2] = j[:, 0] - 2 * j[:, 1]
    j[:, :1] *= longer
    left, values, right = np.linalg.svd(j, full_matrices=False)
    assert (values[:, 2] < 1e-9 * values[:, 0]).all()
    aligned = values[:, 1, None, None] * (left[:, :, :2] @ right[:, :2])
    w = weigh(rules.AlignedMTL(), gramian(j))
    close(combine(w, j), aligned.sum(1), j, tolerance=1e-4)


@pytest.mark.parametrize(
    ("k", "alpha"), [(2, 2.0), (3, 0.5), (3, 1.0), (3, 4.0), (4, 1.0)]
)
@pytest.mark.parametrize("spread", [0.5, 4])
def test_fairgrad_solves_its_equation(k, alpha, spread):
    j = random(k, spread=spread)
    gram = gramian(j)
    scale = (k * lengths(j).mean(-1, keepdims=True) ** 2) ** (alpha / (1 + alpha))
    w = weigh(rules.FairGrad(alpha), gram) / scale
    assert w.min() > 0
    error = np.einsum("nkl,nl->nk", gram, w) - w ** (-1 / alpha)
    # Against the sizes that cancel in G w.
    assert (np.abs(error) / np.einsum("nkl,nl->nk", np.abs(gram), w)).max() < 1e-5


def test_nash_mtl_is_fairgrad_at_alpha_one_and_has_a_constant_length():
    j = random(3)
    w = weigh(rules.NashMTL(), gramian(j))
    np.testing.assert_array_equal(w, weigh(rules.FairGrad(1.0), gramian(j)))
    expected = 3 * lengths(j).mean(-1)  # sqrt(k) of the paper, times sqrt(k) m
    np.testing.assert_allclose(lengths(combine(w, j)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.GradVac(1.0), "harmonizer.weighting.target .* found 1.0"),
        (lambda: rules.CAGrad(1.0), "harmonizer.weighting.c .* found 1.0"),
        (lambda: rules.CAGrad(-0.1), "harmonizer.weighting.c"),
        (lambda: rules.FairGrad(0.1), "harmonizer.weighting.alpha .* found 0.1"),
        (lambda: rules.FairGrad(5.0), "harmonizer.weighting.alpha .* found 5.0"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("kind", ["mgda", "cagrad", "upgrad"])
def test_too_many_losses_to_enumerate(kind):
    with pytest.raises(UserError, match=r"6 at most; found 7: \['a', 'b'"):
        GRAMIAN_RULES[kind](jnp.ones((7, 7)), names=NAMES, key=jax.random.key(0))


# The solvers.


def test_eigenvalues_of_graded_matrices_keep_their_relative_accuracy():
    """Rows of lengths 1e-5 to 1e5, where 32-bit LAPACK loses the small ones."""
    rng = np.random.default_rng(0)
    j = rng.normal(size=(100, 4, 9)) * 10 ** rng.uniform(-5, 5, (100, 4, 1))
    gram = gramian(j).astype(np.float32)
    values, vectors = jax.jit(jax.vmap(solvers.eigh))(gram)
    expected = np.linalg.svd(j, compute_uv=False)[:, ::-1] ** 2
    np.testing.assert_allclose(np.sort(values, axis=1), expected, rtol=1e-4)
    product = np.einsum("nij,nik->njk", vectors, vectors)
    np.testing.assert_allclose(
        product, np.broadcast_to(np.eye(4), (100, 4, 4)), atol=1e-5
    )


def test_solve_drops_what_has_no_pivot():
    matrix = jnp.asarray([[1.0, 1.0], [1.0, 1.0]])
    found = solvers.solve(matrix, jnp.asarray([[2.0], [2.0]]))
    np.testing.assert_array_equal(found, [[2.0], [0.0]])
