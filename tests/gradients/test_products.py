"""Products of per-sample gradients against float64 sums over samples and tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.gradients import products
from mmssl.gradients import sites as at
from mmssl.gradients.products import Use
from mmssl.types import Leaf

pytestmark = pytest.mark.usefixtures("compile_quickly")

G, C, D, V, K = 4, 3, 5, 6, 3
SHAPES = {"video": (4, 3), "text": (8, 2)}
"""(rows, tokens) per tower: text has two candidates per sample."""
REACHED = {"video": (0, 1), "text": (1, 2)}


def kernel(params, x):
    return x @ params["kernel"] + params["bias"][(None,) * (x.ndim - 1)]


DENSE = Leaf("dense", kernel, stacked=False)
LOOKUP = Leaf("lookup", lambda p, x: jnp.take(p["embedding"], x, axis=0), stacked=False)


def make_uses(kind, seed=0):
    r = np.random.default_rng(seed)

    def use(tower):
        shape = SHAPES[tower]
        x = r.normal(size=(*shape, C)) if kind == "dense" else r.integers(0, V, shape)
        deltas = {k: r.normal(size=(*shape, D)) for k in REACHED[tower]}
        return x.astype(np.float32 if kind == "dense" else np.int32), deltas

    return [use(tower) for tower in SHAPES]


def as_uses(made):
    return tuple(
        Use(jnp.asarray(x), {k: jnp.asarray(d, jnp.float32) for k, d in ds.items()})
        for x, ds in made
    )


def explicit(kind, made):
    """[k, g, ...] in float64: one outer product per token, added where it belongs."""
    tables = np.zeros((K, G, C if kind == "dense" else V, D))
    biases = np.zeros((K, G, D))
    for x, deltas in made:
        for k, delta in deltas.items():
            for row, token in np.ndindex(*delta.shape[:2]):
                g = row // (len(delta) // G)
                own = delta[row, token].astype(np.float32).astype(np.float64)
                if kind == "dense":
                    tables[k, g] += np.outer(x[row, token].astype(np.float64), own)
                else:
                    tables[k, g, x[row, token]] += own
                biases[k, g] += own
    return tables, biases


def products_of(tables):
    flat = tables.reshape(K, G, -1)
    return np.einsum("kgn,lgn->gkl", flat, flat)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize("kind", ["dense", "lookup"])
def test_keep_tokens_and_replay_agree_with_explicit_sums(kind):
    """Ids repeat within a sample, across candidates and between towers."""
    made, leaf = make_uses(kind), {"dense": DENSE, "lookup": LOOKUP}[kind]
    tables, biases = explicit(kind, made)
    params = {"kernel": jnp.zeros((C, D)), "bias": jnp.zeros(D)}
    if kind == "lookup":
        params = {"embedding": jnp.zeros((V, D))}
    weights = np.random.default_rng(1).uniform(size=(G, K)).astype(np.float32)

    @jax.jit
    def go(uses):
        kept = products.per_sample(leaf, params, uses, G)
        return {
            "kept": products.gram_of(kept, K),
            "tokens": products.token_gram(leaf, uses, K, G),
            "combined": products.combined(kept, jnp.asarray(weights)),
            "replayed": products.replayed(leaf, params, uses, jnp.asarray(weights)),
        }

    found = go(as_uses(made))
    own = products_of(tables)
    close(found["tokens"], own)
    close(found["kept"], own + products_of(biases) if kind == "dense" else own)
    for way in ("combined", "replayed"):
        table, *bias = (found[way][n] for n in params)
        close(table, np.einsum("gk,kgcd->cd", weights, tables))
        for b in bias:
            close(b, np.einsum("gk,kgd->d", weights, biases))


def test_a_stacked_leaf_is_its_layers_one_by_one():
    layers = [make_uses("dense", seed) for seed in (2, 3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(as_uses, layers))
    params = {"kernel": jnp.zeros((2, C, D)), "bias": jnp.zeros((2, D))}
    leaf = dataclasses.replace(DENSE, stacked=True)
    weights = jnp.asarray(np.random.default_rng(1).uniform(size=(G, K)), jnp.float32)

    @jax.jit
    def go(uses):
        sites = {"mlp": at.Site(leaf, params, uses)}
        gram, kept = at.compare(sites, {"mlp": frozenset(params)}, G, K)
        return (
            gram,
            at.kept_gradient(sites, kept, weights),
            at.replayed_gradient(sites, weights),
        )

    gram, kept, replayed = go(stacked)
    wanted = [explicit("dense", made) for made in layers]
    close(gram, sum(products_of(t) + products_of(b) for t, b in wanted))
    grads = np.stack([np.einsum("gk,kgcd->cd", weights, t) for t, _ in wanted])
    close(replayed["mlp/kernel"], grads)
    close(kept["mlp/kernel"], grads)
    close(kept["mlp/bias"], replayed["mlp/bias"])


def test_few_tokens_and_wide_kernels_prefer_tokens():
    def prefers(tokens, width, losses):
        x = jnp.zeros((G, tokens, width))
        use = Use(x, dict.fromkeys(range(losses), x))
        return products.prefers_tokens(DENSE, [use], G)

    assert prefers(2, 64, 2)
    assert not prefers(64, 64, 2)
    # One loss needs its gradient anyway: keeping it is free.
    assert not prefers(1, 4, 1)
    assert products.prefers_tokens(LOOKUP, [], G)


def test_the_multiply_adds_are_counted_right():
    """The switch is where a count of both ways, written out, says it is."""
    width, losses = 32, 2
    for tokens in range(1, 40):
        x = jnp.zeros((1, tokens, width))
        use = Use(x, dict.fromkeys(range(losses), x))
        keep = losses * tokens * width * width
        similar = tokens * tokens * width
        mixed = 3 * tokens * tokens * width  # three different pairs of two losses
        by_tokens = similar + mixed + tokens * width * width
        assert products.prefers_tokens(DENSE, [use], 1) == (by_tokens < keep), tokens


def test_products_of_absent_losses_are_zero():
    kept = {0: {"a": jnp.ones((2, 3))}, 2: {"a": 2 * jnp.ones((2, 3))}}
    gram = np.asarray(products.gram_of(kept, 3))
    np.testing.assert_array_equal(gram[0], [[3, 0, 6], [0, 0, 0], [6, 0, 12]])
