"""The seam: shares per sample add up to the gradient, though losses couple samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import gradients, trees
from mmssl.errors import UserError
from mmssl.gradients import cotangents as ct
from mmssl.models import heads as heads_lib
from mmssl.objectives import contrastive
from mmssl.types import Batch, Encoded, ModalityBatch

ROWS, WIDTH = 6, 5
KEY = jax.random.key(0)


def encode(params, x):
    """Two towers with one shared weight: [b, c] -> {m: [b, d]}; row-wise."""
    return {
        "video": jnp.tanh(x @ params["shared"] + params["video"][None]),
        "audio": jnp.tanh(jnp.sin(x) @ params["shared"] + params["audio"][None]),
    }


TOWERS = {
    name: gradients.Tower(lambda p, x, name=name: encode(p, x)[name])
    for name in ("video", "audio")
}


def losses(heads, z):
    """Two losses over the whole batch: InfoNCE, and a batch-normalised distance."""
    v, a = z["video"] @ heads["v"], z["audio"]
    logits = v @ a.T
    nce = -jnp.diag(jax.nn.log_softmax(logits)).mean()
    centred = (v - v.mean(0, keepdims=True)) / (v.std(0, keepdims=True) + 0.1)
    distance = ((centred - a) ** 2).mean()
    return {"nce": nce, "distance": distance}, {"logits": logits}


@pytest.fixture(scope="module")
def problem():
    key = jax.random.split(KEY, 5)
    params = {
        "shared": jax.random.normal(key[0], (WIDTH, WIDTH)),
        "video": jax.random.normal(key[1], (WIDTH,)),
        "audio": jax.random.normal(key[2], (WIDTH,)),
    }
    heads = {"v": jax.random.normal(key[3], (WIDTH, WIDTH))}
    return params, heads, jax.random.normal(key[4], (ROWS, WIDTH))


def per_sample(params, heads, x):
    """The definition: g[k][i] = J_i^T c_i^k, one row at a time."""
    c = ct.per_loss(losses, heads, encode(params, x))

    def one(row, cotangent):
        _, pullback = jax.vjp(lambda p: encode(p, row[None]), params)
        return pullback(jax.tree.map(lambda leaf: leaf[None], cotangent))[0]

    rows = [
        jax.vmap(one)(x, jax.tree.map(lambda leaf, k=k: leaf[k], c.encoded))
        for k in range(2)
    ]
    return c, rows


def close(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-6), one, other)


def run(problem, harmonizer):
    params, heads, x = problem
    return gradients.backward(
        TOWERS,
        params,
        x,
        losses,
        heads,
        harmonizer=harmonizer,
        state=harmonizer.init(),
        step=jnp.zeros((), jnp.int32),
        key=KEY,
    )


@pytest.mark.parametrize("k", [0, 1])
def test_per_sample_gradients_add_up_to_each_losss_gradient(problem, k):
    params, heads, x = problem
    c, rows = per_sample(params, heads, x)
    whole = jax.grad(lambda p: losses(heads, encode(p, x))[0][c.names[k]])(params)
    close(jax.tree.map(lambda leaf: leaf.sum(0), rows[k]), whole)


def test_unit_weights_give_the_plain_gradient(problem):
    params, heads, x = problem
    back = run(problem, gradients.Harmonizer())

    def total(params, heads):
        return sum(losses(heads, encode(params, x))[0].values())

    value, (by_params, by_heads) = jax.value_and_grad(total, (0, 1))(params, heads)
    close(back.params, by_params)
    close(back.heads, by_heads)
    close(back.total, value)
    assert set(back.losses) == {"nce", "distance"}
    assert back.aux["logits"].shape == (ROWS, ROWS)
    assert back.gram is None
    assert back.metrics == {}


def test_fixed_weights_scale_losses_heads_and_gradient(problem):
    params, heads, x = problem
    weights = {"nce": 2.0, "distance": 0.25}
    back = run(problem, gradients.Harmonizer(gradients.Fixed(weights)))

    def total(params, heads):
        values = losses(heads, encode(params, x))[0]
        return sum(weights[n] * value for n, value in values.items())

    value, (by_params, by_heads) = jax.value_and_grad(total, (0, 1))(params, heads)
    close(back.params, by_params)
    close(back.heads, by_heads)
    close(back.total, value)
    close(back.losses, losses(heads, encode(params, x))[0])


def test_any_weights_per_sample_are_one_backward(problem):
    params, heads, x = problem
    c, rows = per_sample(params, heads, x)
    weights = jax.random.uniform(jax.random.key(7), (ROWS, 2))
    want = jax.tree.map(
        lambda a, b: (
            jnp.tensordot(weights[:, 0], a, 1) + jnp.tensordot(weights[:, 1], b, 1)
        ),
        *rows,
    )
    _, pullback = jax.vjp(lambda p: encode(p, x), params)
    close(pullback(ct.combine(c.encoded, weights))[0], want)


def test_fixed_weights_must_name_every_loss(problem):
    harmonizer = gradients.Harmonizer(gradients.Fixed({"nce": 1.0, "distanse": 1.0}))
    with pytest.raises(UserError, match=r"did you mean 'distance'"):
        run(problem, harmonizer)


def test_gradients_stop_at_the_seam(problem):
    params, heads, x = problem
    c = ct.per_loss(losses, heads, encode(params, x))
    assert c.encoded["video"].shape == (2, ROWS, WIDTH)
    assert c.heads["v"].shape == (2, WIDTH, WIDTH)
    assert trees.size(c.losses) == 2


# -- which towers a loss reads ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["official", "paper", "joint"])
def test_a_contrastive_loss_reads_its_two_towers_only(kind):
    """Official heads send audio into the text space too, where no loss looks at it."""
    widths = {"video": 4, "audio": 4, "text": 4}
    options = {"features": 4} if kind == "joint" else {"va": 4, "vt": 3}
    heads = heads_lib.build_heads(kind=kind, **options)
    objective = contrastive.CrossModalContrast(heads=heads)
    params, state = objective.init(KEY, widths)
    lead = {"video": (ROWS,), "audio": (ROWS,), "text": (ROWS, 2)}
    batch = Batch(
        modalities={
            m: ModalityBatch(
                tokens=jnp.zeros((*shape, 1)),
                positions=jnp.zeros((*shape, 1, 1), jnp.int32),
                valid=jnp.ones((*shape, 1), bool),
                present=jnp.ones(ROWS, bool),
            )
            for m, shape in lead.items()
        },
        example_id=jnp.arange(ROWS, dtype=jnp.uint32),
    )

    def f(z):
        encoded = Encoded(tokens={}, pooled=z)
        out = objective(
            params, state, encoded, batch, key=KEY, step=jnp.zeros((), jnp.int32)
        )
        return [out.losses["va"], out.losses["vt"]]

    z = {m: jnp.zeros((*shape, 4)) for m, shape in lead.items()}
    va, vt = ct.reach(f, z)
    assert va == {"video", "audio"}
    assert vt == {"video", "text"}
    assert ct.reach(jax.jit(f), z) == (va, vt)


@jax.custom_vjp
def both(x, y):
    return x * 1.0, y * 1.0


both.defvjp(lambda x, y: (both(x, y), None), lambda _, g: g)


@jax.custom_jvp
def doubled(x, y):
    del y
    return 2 * x


doubled.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))


@pytest.mark.parametrize(
    ("wrap", "exact"),
    [
        (jax.jit, True),
        (jax.checkpoint, True),
        (lambda f: functools.partial(jax.jit(jax.checkpoint(f))), True),
        (lambda _: both, False),
        (lambda f: lambda x, y: jax.lax.cond(x[0] > 0, f, f, x, y), False),
        (lambda _: lambda x, y: (doubled(x, y), y.sum()), True),
    ],
    ids=["jit", "checkpoint", "both", "custom_vjp", "cond", "custom_jvp"],
)
def test_reach_looks_into_calls_and_else_errs_on_the_safe_side(wrap, exact):
    def f(x, y):
        return jnp.sin(x).sum(), jnp.cos(y).sum()

    z = {"x": jnp.ones(3), "y": jnp.ones(3)}
    one, other = ct.reach(lambda z: list(wrap(f)(z["x"], z["y"])), z)
    assert (one, other) == (({"x"}, {"y"}) if exact else ({"x", "y"}, {"x", "y"}))


def test_a_constant_loss_reads_nothing():
    (read,) = ct.reach(lambda z: [jnp.zeros(()) + 1.0], {"x": jnp.ones(3)})
    assert read == frozenset()
