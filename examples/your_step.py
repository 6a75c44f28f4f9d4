"""A training script in plain JAX and optax: three towers, two losses, one step.

    python examples/your_step.py

`harmonize_your_step.py` is the same script with its gradients harmonized.
"""

import jax
import jax.numpy as jnp
import optax

MODALITIES = ("video", "audio", "text")
KEY = jax.random.key(0)
optimizer = optax.adam(3e-3)


def init(key):
    """One projection per modality into a body that all share."""
    keys = jax.random.split(key, 5)
    shapes = {**dict.fromkeys(MODALITIES, (16, 32)), "in": (32, 64), "out": (64, 32)}
    return {
        name: jax.random.normal(k, shape) * shape[0] ** -0.5
        for k, (name, shape) in zip(keys, shapes.items())
    }


def encode(params, name, x):
    x = x @ params[name]
    return x + jnp.tanh(x @ params["in"]) @ params["out"]


def contrast(x, y):
    """InfoNCE in both directions: it couples all samples of the batch."""
    x, y = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
    s = x @ y.T / 0.1
    match = jnp.arange(len(s))
    both = (optax.softmax_cross_entropy_with_integer_labels(t, match) for t in (s, s.T))
    return sum(loss.mean() for loss in both) / 2


def losses(z):
    video, audio, text = (z[m] for m in MODALITIES)
    return {"va": contrast(video, audio), "vt": contrast(video, text)}


def total(params, batch):
    z = {m: encode(params, m, batch[m]) for m in MODALITIES}
    return sum(losses(z).values())


@jax.jit
def step(params, opt_state, batch):
    loss, grads = jax.value_and_grad(total)(params, batch)
    metrics = {"loss": loss}
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, metrics


@jax.jit
def make_batch(key, rows=64):
    """Three noisy views of one thing; a third of the texts are about another."""
    keys = jax.random.split(key, 7)
    thing = jax.random.normal(keys[0], (rows, 16))
    about = jnp.where(jnp.arange(rows)[:, None] % 3 == 0, jnp.roll(thing, 1, 0), thing)
    views = dict(zip(MODALITIES, (thing, thing, about)))
    turn = jax.random.normal(jax.random.key(7), (3, 16, 16)) / 4
    return {
        m: view @ turn[i] + 0.3 * jax.random.normal(keys[i + 1], view.shape)
        for i, (m, view) in enumerate(views.items())
    }


def main(steps=40):
    params = init(KEY)
    opt_state = optimizer.init(params)
    for n in range(1, steps + 1):
        batch = make_batch(jax.random.key(n))
        params, opt_state, metrics = step(params, opt_state, batch)
        if n % 10 == 0:
            shown = (f"{name} {float(x):.3f}" for name, x in metrics.items())
            print(f"step {n}", *shown, sep="  ")


if __name__ == "__main__":
    main()
