"""The audit: its sums, its verdict, its recovery."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.gradients import Harmonizer, Subset, audit
from mmssl.gradients import sites as at
from mmssl.gradients.products import Use
from mmssl.gradients.weightings import PCGrad
from mmssl.types import Leaf
from tests.gradients import toy

pytestmark = pytest.mark.usefixtures("compile_quickly")

G, C, D = 8, 3, 2
LIMITS = audit.Limits(rmse=0.02, sign=0.95, effect=0.2)
DENSE = Leaf("dense", lambda p, x: x @ p["kernel"], stacked=False)
NAMES = {"seen": frozenset({"kernel"})}
REST = {"unseen": frozenset({"kernel"})}


def weigh(gram):
    """Two-sided projection."""
    d = jnp.minimum(gram[:, 0, 1], 0)
    return jnp.stack([1 - d / gram[:, 0, 0], 1 - d / gram[:, 1, 1]], -1)


@jax.jit
def run(deltas, state, due):
    """One audit of two kernels with the same input; deltas leaf -> loss -> [g, d]."""
    x = jnp.ones((G, 1, C))
    sites = {
        path: at.Site(
            DENSE,
            {"kernel": jnp.zeros((C, D))},
            (Use(x, {k: d[:, None] for k, d in by_loss.items()}),),
        )
        for path, by_loss in deltas.items()
    }
    return audit.run(
        sites,
        NAMES,
        REST,
        weigh,
        present=jnp.ones((G, 2), bool),
        state=state,
        due=due,
        limits=LIMITS,
    )


def drawn(seed=0):
    r = np.random.default_rng(seed)
    return [jnp.asarray(r.normal(size=(G, D)), jnp.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def good():
    """The unseen kernel has the seen one's gradients: all cosines are right."""
    one, other, *_ = drawn()
    return {"seen": {0: one, 1: other}, "unseen": {0: one, 1: other}}


@pytest.fixture(scope="module")
def bad():
    """The unseen kernel says the opposite, and more loudly."""
    one, other, *_ = drawn()
    return {"seen": {0: one, 1: other}, "unseen": {0: 3 * one, 1: -3 * other}}


def test_the_sums_are_those_of_float64():
    a, b, c, d = drawn(1)
    state, metrics = run(
        {"seen": {0: a, 1: b}, "unseen": {0: c, 1: d}}, audit.init(), jnp.array(True)
    )
    a, b, c, d = (np.asarray(x, np.float64) for x in (a, b, c, d))

    def gram(*pairs):
        flat = [np.concatenate(list(map(np.asarray, p)), 1) for p in pairs]
        return C * np.einsum("kgd,lgd->gkl", flat, flat)

    def cos(gram):
        return gram[:, 0, 1] / np.sqrt(gram[:, 0, 0] * gram[:, 1, 1])

    def weights(gram):
        low = np.minimum(gram[:, 0, 1], 0)
        return np.stack([1 - low / gram[:, 0, 0], 1 - low / gram[:, 1, 1]], -1)

    part, whole = gram([a], [b]), gram([a, c], [b, d])
    wrong = (cos(part) < 0) != (cos(whole) < 0)
    assert 0 < wrong.sum() < G

    def square(w):
        # Every row of x is ones, so all C rows of a kernel's gradient are equal.
        first = (w[:, :1] * a + w[:, 1:] * b).sum(0)
        second = (w[:, :1] * c + w[:, 1:] * d).sum(0)
        return C * ((first**2).sum() + (second**2).sum())

    wanted = {
        "cosines": G,
        "square": ((cos(part) - cos(whole)) ** 2).sum(),
        "wrong": wrong.sum(),
        "off": square(weights(part) - weights(whole)),
        "moved": square(weights(whole) - 1),
        "fallback": 0,  # 8 cosines are no verdict
    }
    for name, value in wanted.items():
        assert float(state[name]) == pytest.approx(value, rel=1e-4), name
    assert float(metrics["audit/rmse"]) == pytest.approx(
        np.sqrt(wanted["square"] / G), rel=1e-4
    )
    assert float(metrics["audit/sign"]) == pytest.approx(1 - wrong.mean(), rel=1e-4)
    effect = np.sqrt(wanted["off"] / wanted["moved"])
    assert float(metrics["audit/effect"]) == pytest.approx(effect, rel=1e-3)


def test_between_audits_nothing_changes(good):
    state, _ = run(good, audit.init(), jnp.array(True))
    again, metrics = run(good, state, jnp.array(False))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(a == b), state, again))
    assert float(metrics["audit/rmse"]) == pytest.approx(0, abs=1e-6)


def test_a_faithful_metric_never_falls_back(good):
    state = audit.init()
    for _ in range(12):
        state, metrics = run(good, state, jnp.array(True))
    count = G * (1 - audit.MEMORY**12) / (1 - audit.MEMORY)
    assert float(state["cosines"]) == pytest.approx(count, rel=1e-4)
    assert float(metrics["audit/sign"]) == 1
    assert float(metrics["audit/fallback"]) == 0


def test_an_unfaithful_metric_falls_back_when_enough_was_seen_and_recovers(good, bad):
    state, verdicts, seen = audit.init(), [], []
    for _ in range(6):
        state, metrics = run(bad, state, jnp.array(True))
        verdicts.append(float(metrics["audit/fallback"]))
        seen.append(float(state["cosines"]))
    assert verdicts == [float(count >= audit.ENOUGH) for count in seen]
    assert verdicts[0] == 0
    assert verdicts[-1] == 1
    after = []
    for _ in range(120):
        state, metrics = run(good, state, jnp.array(True))
        after.append(float(metrics["audit/fallback"]))
    assert after[0] == 1
    assert after[-1] == 0
    assert after == sorted(after, reverse=True)


def test_audited_groups_are_spread_evenly():
    x = jnp.arange(16.0)[:, None]  # two rows per group
    site = at.Site(DENSE, {}, (Use(x, {0: 10 * x}),))
    (use,) = audit.sample({"a": site}, 8, 4)["a"].uses
    np.testing.assert_array_equal(use.x[:, 0], [0, 1, 4, 5, 8, 9, 12, 13])
    np.testing.assert_array_equal(use.deltas[0], 10 * use.x)
    (use,) = audit.sample({"a": site}, 8, 99)["a"].uses
    np.testing.assert_array_equal(use.x, x)


def test_a_bad_metric_ends_up_exact():
    """Norms' biases alone, audited at every step: fallback, then the whole Gramian."""
    engine = Subset(metric=r".*layer_01/norm/bias", audit_every=1)
    harmonizer = Harmonizer(PCGrad(), engine=engine)
    whole = toy.gram(toy.explicit())
    part = toy.gram(toy.explicit(), scope=r"shared/layer_01/norm/bias")
    state, flags = harmonizer.init(), []
    for step in range(7):
        back = toy.run(
            harmonizer, state=state, step=step, fields=("gram", "metrics", "state")
        )
        wanted = whole if float(state["engine"]["fallback"]) else part
        np.testing.assert_allclose(back["gram"], wanted, rtol=1e-3, atol=1e-6)
        state = back["state"]
        flags.append(float(back["metrics"]["audit/fallback"]))
    assert flags == [0, 0, 0, 0, 1, 1, 1]
