"""Trimming by the loss: what it drops, and what it leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.gradients import Exact, Harmonizer, Trim, backward, trim
from mmssl.gradients.weightings import PCGrad
from tests.gradients import toy

pytestmark = pytest.mark.usefixtures("compile_quickly")

HALF = tuple(i not in (0, 3) for i in range(toy.ROWS))
"""Samples 0 and 3 have no text."""


BOTH = {"va": 0.5, "vt": 0.5}


def keep(values, *, share=0.5, step=1, present=None):
    values = jnp.asarray(values, jnp.float32)
    there = jnp.ones(values.shape, bool) if present is None else jnp.asarray(present)
    names = [str(k) for k in range(values.shape[1])]
    one = Trim(share=dict.fromkeys(names, share), steps=1)
    return np.asarray(one.keep(values, there, names=names, step=jnp.int32(step)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"share": 0.5}, r"share: expected a share for each loss.*got 0.5"),
        ({"share": {}}, r"share: expected a share for each loss.*got {}"),
        ({"share": {"vt": 1.0}}, r"share: expected in \(0, 1\), got vt: 1.0"),
        ({"share": {"vt": 0.0}}, r"share: .*got vt: 0.0"),
        ({"share": {"vt": float("nan")}}, r"share: .*got vt: nan"),
        ({"share": {"vt": "x"}}, r"share: .*got vt: 'x'"),
        ({"steps": 0}, r"steps: expected a whole number from 1 on, got 0"),
        ({"begin": 0.5}, r"begin: expected a whole number from 0 on, got 0.5"),
    ],
)
def test_options_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Trim(**{"share": BOTH, "steps": 10, **kwargs})


def test_the_shares_grow_from_nothing_and_stay():
    one = Trim(share={"vt": 0.4}, steps=100, begin=50)
    found = [one.level(jnp.int32(s), ("va", "vt")) for s in (0, 50, 75, 150, 1000)]
    expected = [[0, 0], [0, 0], [0, 0.1], [0, 0.4], [0, 0.4]]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_loss_that_is_not_there_is_named():
    one = Trim(share={"vtt": 0.4}, steps=1)
    with pytest.raises(UserError, match=r"'vtt' among \['va', 'vt'\]; did you mean"):
        one.level(jnp.int32(0), ("va", "vt"))


def test_every_loss_drops_its_own_highest():
    kept = keep([[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]])
    assert kept.T.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert keep([[1.0], [2.0]], step=0).all()


def test_of_equal_values_as_many_are_dropped():
    assert keep(np.ones((6, 1)), share=0.3).sum() == 5


def test_no_share_drops_a_whole_loss():
    assert keep(np.ones((1, 1)), share=0.9).all()
    assert keep(np.ones((3, 1)), share=0.9).sum() == 1


def test_absent_and_broken_samples_are_neither_counted_nor_dropped():
    values = np.asarray([[9.0], [9.0], [np.nan], [1.0], [2.0]])
    there = np.asarray([[False], [True], [True], [True], [True]])
    kept = keep(values, share=0.34, present=there)
    assert kept[:, 0].tolist() == [True, False, True, True, True]
    weights = np.asarray(trim.scale(jnp.asarray(kept), jnp.asarray(there)))
    np.testing.assert_allclose(weights[:, 0], [1, 0, 4 / 3, 4 / 3, 4 / 3], rtol=1e-6)


def test_a_loss_that_nobody_has_is_finite():
    none = np.zeros((4, 1), bool)
    kept = keep(np.zeros((4, 1)), present=none)
    assert (
        np.asarray(trim.scale(jnp.asarray(kept), jnp.asarray(none))).tolist()
        == [[1.0]] * 4
    )
    found = trim.metrics(jnp.asarray(kept), jnp.asarray(none), ("va",))
    assert float(found["trim/dropped/va"]) == 0


@functools.cache
def trimmed_weights():
    """[b, k] by plain arithmetic, half of each loss's samples with text dropped."""
    p = toy.problem()
    z = {m: t.encode(p.params, p.rows) for m, t in toy.towers().items()}
    values = np.stack([np.asarray(v) for v in toy.losses(p.heads, z)[1].values()], 1)
    weights = np.ones_like(values)
    for k, there in enumerate((np.ones(toy.ROWS, bool), np.asarray(HALF))):
        rows = np.flatnonzero(there)
        worst = rows[np.argsort(-values[rows, k])][: int(0.5 * len(rows))]
        weights[rows, k] = len(rows) / (len(rows) - len(worst))
        weights[worst, k] = 0
    return weights


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_the_gradient_is_that_of_the_kept_shares(micro_batch):
    """Without text a sample is a negative: its share of that loss stays as it is."""
    half = Trim(share=BOTH, steps=1)
    harmonizer = Harmonizer(trim=half, micro_batch=micro_batch)
    back = toy.run(harmonizer, text=HALF, step=1, fields=("params", "metrics", "gram"))
    expected = toy.weighted(toy.explicit(), trimmed_weights())
    assert toy.error(back["params"], expected) < 1e-5
    assert back["gram"] is None
    shares = {n: float(v) for n, v in back["metrics"].items()}
    assert shares == {"trim/dropped/va": 0.5, "trim/dropped/vt": 0.5}


def test_what_is_dropped_is_not_realigned():
    """A sample that lost one of its two losses has no conflict left."""
    harmonizer = Harmonizer(
        PCGrad(), trim=Trim(share=BOTH, steps=1), engine=Exact(scope="shared/.*")
    )
    back = toy.run(harmonizer, text=HALF, step=1, fields=("gram", "metrics"))
    zero = trimmed_weights() == 0
    gram = np.asarray(back["gram"])
    assert not gram[zero].any()
    both = ~zero.any(1) & np.asarray(HALF)
    defined = float(back["metrics"]["conflict/defined/va_vt"])
    assert defined == pytest.approx(both.mean())


def test_values_per_sample_are_asked_for():
    p = toy.problem()
    harmonizer = Harmonizer(trim=Trim(share=BOTH, steps=1))
    with pytest.raises(UserError, match=r"harmonizer.trim .*\['va', 'vt'\]"):
        backward(
            toy.towers(),
            p.params,
            p.rows,
            toy.losses,
            p.heads,
            harmonizer=harmonizer,
            state=harmonizer.init(),
            step=jnp.int32(0),
            key=jax.random.key(0),
        )
