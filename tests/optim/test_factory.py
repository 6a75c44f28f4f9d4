"""Optimizers against float64 loops over a few updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmssl.errors import UserError
from mmssl.optim.factory import decay_mask, make_optimizer

STEPS = 12


def params():
    rng = np.random.default_rng(0)
    return {
        "dense": {
            "kernel": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal(2), jnp.float32),
        },
        "scale": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }


def gradients():
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda x: rng.standard_normal(x.shape).astype(np.float32), params()
        )
        for _ in range(STEPS)
    ]


def run(**kwargs):
    optimizer = make_optimizer(steps=STEPS, warmup=3, peak_lr=0.1, **kwargs)
    values = params()
    state = optimizer.tx.init(values)
    update = jax.jit(optimizer.tx.update)
    for grads in gradients():
        updates, state = update(grads, state, values)
        values = optax.apply_updates(values, updates)
    return values, optimizer, state


def reference(rule, *, decay=0.0, clip=None):
    """Float64 updates; `rule(m, g, t, slot) -> direction`."""
    optimizer = make_optimizer(steps=STEPS, warmup=3, peak_lr=0.1)
    values = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
    leaves, tree = jax.tree.flatten(values)
    slots = [{"m": 0.0, "v": 0.0} for _ in leaves]
    # Tree order: dense/bias, dense/kernel, scale.
    decayed = [False, True, False]
    for t, grads in enumerate(gradients()):
        flat = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        if clip is not None:
            norm = np.sqrt(sum((g**2).sum() for g in flat))
            flat = [g * min(1.0, clip / norm) for g in flat]
        rate = float(optimizer.schedule(t))
        leaves = [
            p - rate * rule(p, g, t + 1, slot, decay * hit)
            for p, g, slot, hit in zip(leaves, flat, slots, decayed)
        ]
    return jax.tree.unflatten(tree, leaves)


def adam(p, g, t, slot, decay, b1=0.9, b2=0.999, eps=1e-7):
    slot["m"] = b1 * slot["m"] + (1 - b1) * g
    slot["v"] = b2 * slot["v"] + (1 - b2) * g**2
    m, v = slot["m"] / (1 - b1**t), slot["v"] / (1 - b2**t)
    return m / (np.sqrt(v) + eps) + decay * p


def sgd(p, g, t, slot, decay):
    slot["m"] = 0.9 * slot["m"] + g + decay * p
    return slot["m"]


@pytest.mark.parametrize(
    ("kwargs", "rule", "options"),
    [
        ({}, adam, {}),
        ({"grad_clip": 0.7}, adam, {"clip": 0.7}),
        ({"name": "adamw", "weight_decay": 0.3}, adam, {"decay": 0.3}),
        ({"name": "sgd"}, sgd, {}),
        (
            {"name": "sgd", "weight_decay": 0.2, "grad_clip": 1.0},
            sgd,
            {"decay": 0.2, "clip": 1.0},
        ),
    ],
)
def test_equals_float64_reference(kwargs, rule, options):
    found, _, _ = run(**kwargs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        reference(rule, **options),
    )


def test_eps_and_schedule_are_the_official_ones():
    optimizer = make_optimizer(steps=10, peak_lr=1.0, schedule="constant")
    state = optimizer.tx.init(params())
    tiny = jax.tree.map(lambda x: jnp.full_like(x, 1e-7), params())
    updates, _ = optimizer.tx.update(tiny, state, params())
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -0.5, rtol=1e-3)


def test_state_is_float32_whatever_the_gradients_are():
    optimizer = make_optimizer(steps=10, name="adamw", weight_decay=0.1)
    state = optimizer.tx.init(params())
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    updates, state = optimizer.tx.update(half, state, params())
    floats = [
        x
        for x in jax.tree.leaves((state, updates))
        if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert floats
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match="master parameters must be float32"):
        optimizer.tx.init(half)


def test_first_update_is_zero_under_warm_up_and_counts_on():
    _, optimizer, state = run()
    assert optimizer.schedule(0) == 0
    assert [
        int(leaf) for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32
    ] == [STEPS, STEPS]


def test_decay_mask_takes_patterns_over_whole_paths():
    found = decay_mask(params(), no_decay=(r".*bias", r"scale"))
    assert found == {"dense": {"kernel": True, "bias": False}, "scale": False}
    with pytest.raises(UserError, match=r"match nothing.*biass.*dense/bias"):
        decay_mask(params(), no_decay=(r".*biass",))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adamm"}, "did you mean 'adam"),
        ({"schedule": "half-cosine"}, "did you mean 'half_cosine'"),
        ({"weight_decay": 0.1}, "use name='adamw'"),
        ({"name": "adamw", "weight_decay": -1}, "must not be negative"),
        ({"grad_clip": 0.0}, "None turns it off"),
        ({"b2": 1.0}, "b2 must lie in"),
        ({"eps": 0.0}, "eps must be positive"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(steps=10, **kwargs)
