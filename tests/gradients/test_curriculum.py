"""The curriculum: what is kept, what is always kept, and that its share is kept to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.gradients.curriculum import Curriculum

pytestmark = pytest.mark.usefixtures("compile_quickly")

NAMES = ("va", "vt")


def gramians(cos, norms=(1.0, 1.0)):
    """[g] cosines -> [g, 2, 2] Gramians of gradients with those norms."""
    cos = np.asarray(cos, np.float32)
    a, b = norms
    gram = np.empty((*cos.shape, 2, 2), np.float32)
    gram[..., 0, 0], gram[..., 1, 1] = a * a, b * b
    gram[..., 0, 1] = gram[..., 1, 0] = a * b * cos
    return gram


@functools.partial(jax.jit, static_argnames=("curriculum", "names"))
def keep(curriculum, gram, step=0, state=None, names=NAMES):
    state = curriculum.init() if state is None else state
    return curriculum.keep(gram, names=names, state=state, step=step)


@functools.partial(jax.jit, static_argnames="curriculum")
def update(curriculum, state, gram, step=0):
    return curriculum.update(state, gram, NAMES, step)


def level(curriculum, step):
    return float(curriculum.level(jnp.int32(step)))


def constant(start, **kwargs):
    return Curriculum(steps=1, ramp="constant", start=start, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rule": "treshold"}, r"rule: expected one of .*'threshold'.*got 'treshold'"),
        ({"ramp": None}, r"ramp: expected one of .*got None"),
        ({"renormalise": "all"}, r"renormalise: expected one of .*got 'all'"),
        ({"start": 1.0}, r"start: expected a cosine in \[-1, 1\).*got 1.0"),
        ({"start": float("nan")}, r"start: .*got nan"),
        ({"end": "0"}, r"end: .*got '0'"),
        ({"rule": "quantile"}, r"start: expected a drop share in \[0, 1\).*got -0.3"),
        ({"rule": "quantile", "start": 0.0}, r"end: expected a drop share.*got None"),
        ({"ramp": "constant", "end": 0.0}, r"end: expected None.*got 0.0"),
        ({"begin": -1}, r"begin: expected a whole number from 0 on, got -1"),
        ({"steps": 0}, r"steps: expected a whole number from 1 on, got 0"),
        ({"steps": 1e4}, r"steps: expected a whole number.*got 10000.0"),
        ({"temperature": 0.0}, r"temperature: expected in \(0, inf\), got 0.0"),
        ({"rate": 1.0}, r"rate: expected in \(0, 1\), got 1.0"),
        ({"rate": True}, r"rate: .*got True"),
        ({"centre": 1}, r"centre: expected True or False, got 1"),
        (
            {"rule": "quantile", "start": 0.1, "end": 0.2, "centre": True},
            r"centre: expected False for rule 'quantile'",
        ),
        ({"pair": "va"}, r"pair: expected None or two different losses, got 'va'"),
        ({"pair": ("va", "va")}, r"pair: .*got \('va', 'va'\)"),
    ],
)
def test_options_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**{"steps": 10, **kwargs})


@pytest.mark.parametrize(("ramp", "quarter"), [("linear", 0.25), ("cosine", 0.1464466)])
def test_the_ramp_meets_both_ends_exactly(ramp, quarter):
    c = Curriculum(start=-0.3, end=0.1, begin=100, steps=40, ramp=ramp)
    start, end = float(np.float32(-0.3)), float(np.float32(0.1))
    assert level(c, 0) == level(c, 100) == start
    assert level(c, 110) == pytest.approx(-0.3 + 0.4 * quarter, abs=1e-6)
    assert level(c, 120) == pytest.approx(-0.1, abs=1e-6)
    assert level(c, 140) == level(c, 500_000) == end


def test_defaults_end_at_zero_and_constant_stays():
    assert level(Curriculum(steps=10), 10) == 0.0
    assert level(constant(-0.2), 10) == float(np.float32(-0.2))


def test_the_threshold_is_strict():
    cos = [0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.4, -1.0, 1.0]
    kept = keep(constant(0.5), gramians(cos))
    assert kept.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert kept.dtype == jnp.float32


def test_sigmoid_weighs_by_distance_from_gamma():
    cos = np.linspace(-1, 1, 9)
    kept = keep(constant(-0.1, rule="sigmoid", temperature=0.2), gramians(cos))
    want = 1 / (1 + np.exp(-(cos + 0.1) / 0.2))
    np.testing.assert_allclose(kept, want, rtol=1e-5)


@pytest.mark.parametrize(
    "c",
    [
        constant(0.9),
        constant(0.9, centre=True),
        constant(0.9, rule="sigmoid"),
        constant(0.9, rule="quantile"),
    ],
    ids=["threshold", "centre", "sigmoid", "quantile"],
)
class TestEveryRule:
    def known(self, c):
        """A state that drops a low cosine."""
        gram = gramians(np.linspace(-0.1, 0.1, 21))
        return update(c, c.init(), gram)

    def test_a_sample_without_a_score_is_kept(self, c):
        state = self.known(c)
        gram = gramians([-0.9, -0.9, -0.9])
        gram[1, 1] = gram[1, :, 1] = gram[2] = 0.0
        kept = keep(c, gram, state=state)
        assert kept[0] < 0.01
        assert kept[1:].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_kept_for_all_to_see(self, c, bad):
        state = self.known(c)
        gram = np.tile(np.float32(1.4) * np.eye(3, dtype=np.float32) - 0.4, (6, 1, 1))
        for row, (i, j) in enumerate([(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]):
            gram[row, i, j] = gram[row, j, i] = bad
        kept = keep(c, gram, state=state, names=("va", "vt", "at"))
        assert kept[:5].tolist() == [1.0] * 5
        assert kept[5] < 0.01

    def test_norms_do_not_matter(self, c):
        state = self.known(c)
        cos = np.random.default_rng(0).uniform(-1, 1, 50)
        want = keep(c, gramians(cos), state=state)
        for norms in ((2.0**-17, 2.0**17), (2.0**-17, 2.0**-17), (2.0**17, 1.0)):
            np.testing.assert_array_equal(
                keep(c, gramians(cos, norms), state=state), want
            )

    def test_jit_changes_nothing_and_micro_batches_need_no_others(self, c):
        state = self.known(c)
        gram = gramians(np.random.default_rng(1).uniform(-1, 1, 24))
        whole = keep(c, gram, state=state)
        eager = c.keep(gram, names=NAMES, state=state, step=jnp.int32(0))
        np.testing.assert_allclose(eager, whole, rtol=1e-6)
        parts = keep(c, gram.reshape(4, 6, 2, 2), state=state)
        np.testing.assert_array_equal(parts.reshape(-1), whole)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            update(c, state, gram),
            c.update(state, gram, NAMES, jnp.int32(0)),
        )

    def test_state_ignores_samples_without_a_score(self, c):
        state = self.known(c)
        gram = gramians([-0.3, 0.2, 0.7])
        lone, wrong = np.zeros((5, 2, 2), np.float32), np.full((2, 2, 2), np.nan)
        lone[:, 0, 0] = 1.0
        want = update(c, state, gram)
        found = update(c, state, np.concatenate([lone, gram, wrong]))
        jax.tree.map(np.testing.assert_array_equal, found, want)
        same = update(c, state, np.concatenate([lone, wrong]))
        jax.tree.map(np.testing.assert_array_equal, same, state)


def test_state_holds_what_the_rule_needs():
    assert constant(0.0).init() == constant(0.0, rule="sigmoid").init() == {}
    assert set(constant(0.0, centre=True).init()) == {"seen", "mean"}
    quantile = constant(0.5, rule="quantile").init()
    assert set(quantile) == {"seen", "limit", "spread"}
    assert all(v.dtype == jnp.float32 and v.shape == () for v in quantile.values())


def test_the_score_is_the_lowest_pair_or_the_chosen_one():
    names = ("va", "vt", "at")
    gram = np.array([[[1.0, 0.2, -0.5], [0.2, 1.0, 0.7], [-0.5, 0.7, 1.0]]] * 2)
    gram[1, 0] = gram[1, :, 0] = 0.0
    gram = jnp.asarray(gram, jnp.float32)
    c = Curriculum(steps=1)
    score, defined = c.score(gram, names)
    np.testing.assert_allclose(score, [-0.5, 0.7])
    assert defined.all()
    for pair in (("va", "vt"), ("vt", "va")):
        score, defined = Curriculum(steps=1, pair=pair).score(gram, names)
        np.testing.assert_allclose(score, [0.2, 0.0])
        assert defined.tolist() == [True, False]


def test_losses_that_cannot_be_compared_are_named():
    gram = jnp.ones((3, 2, 2))
    with pytest.raises(UserError, match=r"no loss 'tv'.*did you mean 'vt'"):
        Curriculum(steps=1, pair=("va", "tv")).score(gram, NAMES)
    with pytest.raises(UserError, match=r"two losses, found \['va'\]"):
        Curriculum(steps=1).score(gram[:, :1, :1], ("va",))


@pytest.mark.parametrize("bad", [[1.0, 0.0, 0.0, 1.0], [0.1, 0.3, 0.9, 1.0]])
def test_kept_samples_keep_the_mean(bad):
    kept = jnp.asarray(bad)
    scale = constant(0.0).scale(kept)
    np.testing.assert_allclose((kept * scale).mean(), 1.0, rtol=1e-6)
    assert constant(0.0, renormalise="original").scale(kept) == 1.0


@pytest.mark.parametrize(("total", "want"), [(0.0, 1.0), (1e-30, 5.0), (0.5, 5.0)])
def test_the_scale_is_finite_when_next_to_nothing_is_kept(total, want):
    assert constant(0.0).scale(jnp.asarray([total, 0.0, 0.0, 0.0, 0.0])) == want


def pcgrad(gram):
    """Two-sided projection as weights, one sample at a time (arXiv 2001.06782)."""
    weights = np.ones((len(gram), 2))
    for row, ((a, d), (_, b)) in zip(weights, np.asarray(gram, np.float64)):
        if d < 0:
            row += [-d / a, -d / b]
    return weights


def test_no_survivor_of_a_gamma_from_zero_on_is_realigned():
    gram = gramians(np.random.default_rng(0).uniform(-1, 1, 200), norms=(0.1, 3.0))
    realigned = (pcgrad(gram) != 1).any(1)
    for gamma in (0.0, 0.2):
        survives = np.asarray(keep(constant(gamma), gram)) > 0
        assert survives.any()
        assert not (survives & realigned).any()
    survives = np.asarray(keep(constant(-0.3), gram)) > 0
    assert (survives & realigned).any()
    assert (~survives & realigned).any()


def test_centring_compares_with_the_running_mean():
    c = constant(0.0, centre=True, rate=0.1)
    state = c.init()
    batches = np.random.default_rng(3).normal(0.3, 0.1, (60, 16)).clip(-1, 1)
    mean = 0.0
    for t, cos in enumerate(batches):
        kept = keep(c, gramians(cos), state=state)
        np.testing.assert_array_equal(kept, cos.astype(np.float32) > state["mean"])
        state = update(c, state, gramians(cos))
        mean += max(1 / (t + 1), 0.1) * (cos.mean() - mean)
        np.testing.assert_allclose(state["mean"], mean, rtol=1e-5)


def dropped(c, cos, text=None):
    """Runs a quantile over [t, g] cosines: the share dropped at each of t steps."""
    gram = gramians(cos)
    text = np.ones(cos.shape, bool) if text is None else text
    gram[~text, 1] = gram[~text, :, 1] = 0.0

    def one(state, inputs):
        gram, text, step = inputs
        kept = c.keep(gram, names=NAMES, state=state, step=step)
        share = ((1 - kept) * text).sum() / jnp.maximum(text.sum(), 1)
        return c.update(state, gram, NAMES, step), share

    steps = jnp.arange(len(cos))
    _, shares = jax.jit(lambda x: jax.lax.scan(one, c.init(), x))((gram, text, steps))
    return np.asarray(shares)


@pytest.mark.parametrize("rows", [1, 8, 256])
@pytest.mark.parametrize("share", [0.02, 0.25])
def test_the_quantile_drops_the_share_asked_for(rows, share):
    rng = np.random.default_rng(rows)
    noisy = rng.random((4000, rows)) < 0.3
    cos = np.where(noisy, -0.2, 0.1) + 0.03 * rng.standard_normal(noisy.shape)
    shares = dropped(constant(share, rule="quantile"), cos)
    assert shares[0] == 0.0, "nothing is known before the first batch"
    error = 4 * np.sqrt(share / (3000 * rows)) + 0.002
    assert shares[1000:].mean() == pytest.approx(share, abs=error)


def test_the_quantile_follows_a_drift_and_a_jump():
    rng = np.random.default_rng(0)
    middle = np.linspace(-0.3, 0.3, 3000)
    middle[2000:] -= 0.4
    cos = middle[:, None] + 0.05 * rng.standard_normal((3000, 64))
    shares = dropped(constant(0.2, rule="quantile", rate=0.05), cos)
    assert shares[200:2000].mean() == pytest.approx(0.2, abs=0.03)
    assert shares[2000] > 0.9
    assert shares[2300:].mean() == pytest.approx(0.2, abs=0.03)


def test_the_quantile_follows_its_ramp_from_nothing():
    rng = np.random.default_rng(0)
    cos = 0.1 * rng.standard_normal((3000, 64))
    c = Curriculum(rule="quantile", start=0.0, end=0.3, begin=500, steps=1500)
    shares = dropped(c, cos)
    assert shares[:500].max() == 0.0
    for step in (1000, 1500, 2000, 2500):
        found = shares[step - 50 : step + 50].mean()
        assert found == pytest.approx(level(c, step), abs=0.03)


def test_the_quantile_is_of_samples_with_a_score():
    rng = np.random.default_rng(0)
    cos = 0.1 * rng.standard_normal((3000, 16))
    text = rng.random(cos.shape) < 0.4
    shares = dropped(constant(0.2, rule="quantile"), cos, text)
    assert shares[500:].mean() == pytest.approx(0.2, abs=0.01)


def test_the_quantile_keeps_scores_that_are_all_equal():
    shares = dropped(constant(0.2, rule="quantile"), np.full((20, 8), -0.5))
    assert shares.max() == 0.0
