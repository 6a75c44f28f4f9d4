"""VATT's linear classifier on frozen features: two matrices, a small rank between."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

RANK, DROPOUT, L2 = 128, 0.9, 0.1
RATE, BATCH, EPOCHS = 5e-4, 64, 1000


def low_rank(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> np.ndarray:
    """Predicts by softmax((x U + u) V + v), trained with Adam.

    The head and its settings are those of VATT's published evaluation (Akbari et al.,
    arXiv 2104.11178; google-research/vatt, utils/eval/evaluators.py): rank 128, dropout
    0.9 between the two matrices, 0.1 |V|^2 added to the mean cross entropy, Adam at
    5e-4, 1000 epochs of shuffled batches of 64 rows, features as they are.

    Args:
      train: [N, d] features.
      train_labels: [N].
      test: [M, d].
      epochs: passes over the training rows.
      seed: of initialisation, order and dropout.

    Returns:
      [M] predicted labels.
    """
    classes, index = np.unique(train_labels, return_inverse=True)
    key, dropped = jax.random.split(jax.random.key(seed))
    params = initial(key, train.shape[1], len(classes))
    params = fit(params, jnp.asarray(train), jnp.asarray(index), dropped, epochs=epochs)
    return classes[np.asarray(logits(params, jnp.asarray(test)).argmax(1))]


def initial(key: Key[Array, ""], width: int, classes: int) -> dict[str, Array]:
    """Glorot normal kernels, biases of zero."""
    glorot = jax.nn.initializers.glorot_normal()
    first, second = jax.random.split(key)
    return {
        "U": glorot(first, (width, RANK)),
        "u": jnp.zeros(RANK),
        "V": glorot(second, (RANK, classes)),
        "v": jnp.zeros(classes),
    }


def logits(params: dict[str, Array], x: Float[Array, "b d"]) -> Float[Array, "b c"]:
    hidden = x @ params["U"] + params["u"][None]
    return hidden @ params["V"] + params["v"][None]


@functools.partial(jax.jit, static_argnames=("epochs", "dropout"))
def fit(
    params: dict[str, Array],
    x: Float[Array, "n d"],
    y: Int[Array, "n"],
    key: Key[Array, ""],
    *,
    epochs: int,
    dropout: float = DROPOUT,
) -> dict[str, Array]:
    """The parameters after training.

    Args:
      params: see `initial`.
      x: features.
      y: classes as numbers.
      key: of order and dropout.
      epochs: passes over the rows; the last batch of each may be smaller.
      dropout: share of the hidden units left out.
    """
    rows, size = len(x), min(BATCH, len(x))
    steps = -(-rows // size)
    tx = optax.adam(RATE, eps=1e-7)  # Keras's

    def loss(params: dict[str, Array], at: Array, real: Array, key: Any) -> Array:
        hidden = x[at] @ params["U"] + params["u"][None]
        kept = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
        hidden = jnp.where(kept, hidden / (1 - dropout), 0)
        out = hidden @ params["V"] + params["v"][None]
        wrong = optax.softmax_cross_entropy_with_integer_labels(out, y[at])
        return (wrong * real).sum() / real.sum() + L2 * (params["V"] ** 2).sum()

    def step(carry: Any, number: Array) -> tuple[Any, None]:
        params, opt_state, order = carry
        epoch, nth = jnp.divmod(number, steps)
        order = jax.lax.cond(
            nth == 0,
            lambda: jax.random.permutation(jax.random.fold_in(key, 2 * epoch), rows),
            lambda: order,
        )
        place = nth * size + jnp.arange(size)
        grads = jax.grad(loss)(
            params,
            order[jnp.minimum(place, rows - 1)],
            (place < rows).astype(x.dtype),
            jax.random.fold_in(key, 2 * number + 1),
        )
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, order), None

    carry = (params, tx.init(params), jnp.arange(rows))
    (params, _, _), _ = jax.lax.scan(step, carry, jnp.arange(epochs * steps))
    return params
