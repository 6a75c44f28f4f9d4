"""From Gramians to one gradient: realignment, curriculum, missing parts, devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import gradients
from mmssl.gradients import Curriculum, Exact, Harmonizer, Subset
from mmssl.gradients.weightings import PCGrad
from mmssl.parallel import mesh as mesh_lib
from tests.gradients import toy

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
HALF = tuple(i not in (0, 3) for i in range(toy.ROWS))
"""Samples 0 and 3 have no text."""
FIELDS = ("params", "gram", "metrics", "state")


def cosine(gram):
    norm = np.sqrt(gram[:, 0, 0] * gram[:, 1, 1])
    return gram[:, 0, 1] / np.where(norm > 0, norm, 1)


def projected(grads, gram):
    """Each gradient without its share along the other, summed over samples.

    Arithmetic on the gradients themselves, in float64: no weights.
    """
    d = np.minimum(gram[:, 0, 1], 0)
    total = {}
    for name in grads[0]:
        a, b = (g[name].reshape(toy.ROWS, -1) for g in grads)
        squares = [np.where(gram[:, k, k] > 0, gram[:, k, k], 1) for k in (0, 1)]
        one = a - (d / squares[1])[:, None] * b
        other = b - (d / squares[0])[:, None] * a
        total[name] = (one + other).sum(0).reshape(grads[0][name].shape[1:])
    return total


def test_realignment_is_the_two_sided_projection_of_every_sample():
    """Also where some samples lack a loss: they are kept, and count nowhere."""
    grads = toy.explicit(mask=HALF)
    gram = toy.gram(grads)
    back = toy.run(Harmonizer(PCGrad(), engine=Exact()), mask=HALF, fields=FIELDS)
    assert toy.error(back["params"], projected(grads, gram)) < 1e-5
    there = np.asarray(HALF)
    assert not np.asarray(back["gram"])[~there, :, 1].any()
    metrics, cos = back["metrics"], cosine(gram)[there]
    assert 0 < (cos < 0).mean() < 1
    assert float(metrics["conflict/rate/va_vt"]) == pytest.approx((cos < 0).mean())
    assert float(metrics["conflict/cos_mean/va_vt"]) == pytest.approx(
        cos.mean(), abs=1e-5
    )
    assert float(metrics["conflict/realigned"]) == pytest.approx((cos < 0).mean())


def test_a_curriculum_at_0_leaves_nothing_to_realign():
    """The two are mutually exclusive per sample; those without text are all kept."""
    grads = toy.explicit(mask=HALF)
    gram = toy.gram(grads)
    curriculum = Curriculum(steps=1, start=0.0, ramp="constant")
    harmonizer = Harmonizer(PCGrad(), curriculum=curriculum, engine=Exact())
    back = toy.run(harmonizer, mask=HALF, fields=FIELDS)
    keep = ~np.asarray(HALF) | (cosine(gram) > 0)
    assert keep[[0, 3]].all()
    assert not keep.all()
    scale = toy.ROWS / keep.sum()
    weights = np.repeat(scale * keep[:, None], 2, axis=1)
    assert toy.error(back["params"], toy.weighted(grads, weights)) < 1e-5
    assert float(back["metrics"]["conflict/realigned"]) == 0
    dropped = 1 - keep[np.asarray(HALF)].mean()
    assert float(back["metrics"]["conflict/dropped"]) == pytest.approx(dropped)


@pytest.mark.parametrize(
    "options",
    [
        {"engine": Exact()},
        {"engine": Exact(chunk=2)},
        {"engine": Exact(), "micro_batch": 4},
        {"engine": gradients.Vmap()},
    ],
    ids=["exact", "chunks", "micro_batches", "vmap"],
)
def test_a_sample_without_text_is_a_negative_and_no_more(options):
    """Its share of the video-text loss is applied, and never compared."""
    grads = toy.explicit()
    there = np.asarray(HALF)
    gram = toy.gram(grads)
    assert gram[~there, 1, 1].min() > 0
    gram[~there, 1, :] = gram[~there, :, 1] = 0
    curriculum = Curriculum(
        steps=1, start=0.05, ramp="constant", renormalise="original"
    )
    harmonizer = Harmonizer(PCGrad(), curriculum=curriculum, **options)
    back = toy.run(harmonizer, text=HALF, fields=FIELDS)
    np.testing.assert_allclose(back["gram"], gram, rtol=1e-4, atol=1e-7)
    keep = ~there | (cosine(gram) > 0.05)
    assert keep.sum() not in (0, toy.ROWS)
    weights = np.repeat(keep[:, None], 2, axis=1).astype(float)
    assert toy.error(back["params"], toy.weighted(grads, weights)) < 1e-5
    assert float(back["metrics"]["conflict/defined/va_vt"]) == there.mean()


def test_no_conflict_no_change():
    """Two losses that agree on every sample: the plain gradient, whatever the rule."""
    p = toy.problem()
    towers = {n: toy.towers()[n] for n in ("video", "audio")}

    def losses(heads, z):
        values, aux = toy.losses(heads, z, names=("va",))
        return {"va": values["va"], "twice": 2 * values["va"]}, aux

    def go(harmonizer):
        params = {n: p.params[n] for n in ("video", "audio", "shared")}
        rows = {n: p.rows[n] for n in ("video", "audio")}
        back = gradients.backward(
            towers,
            params,
            rows,
            losses,
            p.heads,
            harmonizer=harmonizer,
            state=harmonizer.init(),
            step=jnp.zeros((), jnp.int32),
            key=KEY,
        )
        return back.params, back.metrics

    realigned = jax.jit(lambda: go(Harmonizer(PCGrad(), engine=Exact())))
    plain, _ = jax.jit(lambda: go(Harmonizer()))()
    found, metrics = realigned()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        plain,
    )
    assert float(metrics["conflict/rate/va_twice"]) == 0
    assert float(metrics["conflict/realigned"]) == 0


def test_eight_devices_give_the_same_gramian_and_gradient():
    """Groups, chunks and the running quantile see the whole batch, not a device's."""
    curriculum = Curriculum(steps=1, rule="quantile", start=0.3, ramp="constant")
    harmonizer = Harmonizer(PCGrad(), curriculum=curriculum, engine=Exact())
    p, step = toy.problem(), jnp.zeros((), jnp.int32)
    mesh = mesh_lib.make_mesh({"data": -1}, devices=jax.devices())
    assert mesh.size == 8
    rows = jax.device_put(p.rows, mesh_lib.batch_sharding(mesh))
    rest = (p.params, p.heads, harmonizer.init(), step)
    params, heads, state, step = jax.device_put(rest, mesh_lib.replicated(mesh))
    go = toy.compiled(harmonizer, fields=FIELDS)
    first = go(params, heads, rows, state, step)
    second = go(params, heads, rows, first["state"], step)

    grads = toy.explicit()
    gram = toy.gram(grads)
    np.testing.assert_allclose(first["gram"], gram, rtol=1e-4, atol=1e-5 * gram.max())
    assert toy.error(first["params"], projected(grads, gram)) < 1e-5
    # The second batch is the same one, with a limit learnt from the first.
    limit = np.quantile(cosine(gram), 0.3)
    assert float(first["state"]["curriculum"]["limit"]) == pytest.approx(
        limit, abs=1e-4
    )
    keep = cosine(gram) >= limit
    assert 0 < keep.sum() < toy.ROWS
    kept = [
        {n: g * keep.reshape(-1, *(1,) * (g.ndim - 1)) for n, g in by_loss.items()}
        for by_loss in grads
    ]
    wanted = projected(kept, gram)
    scale = toy.ROWS / keep.sum()
    assert toy.error(second["params"], {n: scale * g for n, g in wanted.items()}) < 1e-5


def test_state_holds_what_parts_need_and_nothing_else():
    plain = Harmonizer()
    assert jax.tree.leaves(plain.init()) == []
    # An engine that nobody asks keeps nothing.
    assert jax.tree.leaves(dataclasses.replace(plain, engine=Subset()).init()) == []
    full = Harmonizer(
        PCGrad(),
        Curriculum(steps=9, rule="quantile", start=0.1, end=0.2),
        engine=Subset(),
    )
    state = full.init()
    assert set(state["curriculum"]) == {"seen", "limit", "spread"}
    assert "fallback" in state["engine"]


def test_a_rule_without_gramian_runs_no_engine():
    """Its towers record nothing, and no Gramian is reported."""
    back = toy.run(Harmonizer(engine=Exact()), recorded=False)
    assert back["gram"] is None
