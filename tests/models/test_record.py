"""Recorded forwards of the real model: the same outputs, every leaf, exact products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import rng, trees
from mmssl.errors import UserError
from mmssl.gradients import Exact, Harmonizer, LastK, Tower, Vmap, backward
from mmssl.gradients.engines import ENCODER
from mmssl.gradients.weightings import PCGrad
from mmssl.models import layers, record
from tests.models.conftest import SIZE, raw_batch, small_model

KEY = jax.random.key(3)
ONE_LAYER = {**SIZE, "layers": 1}


def towers_of(model):
    """As in the train step: rows are (batch, keys), pooled features are read."""

    def only(name, rows):
        batch, keys = rows
        parts = {name: batch.modalities[name]}
        return type(batch)(modalities=parts, example_id=batch.example_id), keys

    def encode(name, params, rows):
        batch, keys = only(name, rows)
        return model.encode(params, batch, keys=keys).pooled[name]

    def recorded(name, params, rows):
        batch, keys = only(name, rows)
        return model.record(
            params, batch, keys=keys, select=lambda out: out.pooled[name]
        )

    return {
        name: Tower(functools.partial(encode, name), functools.partial(recorded, name))
        for name in model.specs
    }


def losses(heads, z):
    """Two losses that couple samples; video is in both, audio and text in one each."""
    del heads
    v = z["video"] - z["video"].mean(0, keepdims=True)
    text = z["text"].mean(1) * 3
    return {
        "va": -jnp.diag(jax.nn.log_softmax(v @ z["audio"].T)).mean(),
        "vt": -jnp.diag(jax.nn.log_softmax(v @ jnp.sin(text).T)).mean(),
    }, None


def run(model, engine, params, rows):
    harmonizer = Harmonizer(PCGrad(), engine=engine)
    return backward(
        towers_of(model),
        params,
        rows,
        losses,
        {},
        harmonizer=harmonizer,
        state=harmonizer.init(),
        step=jnp.zeros((), jnp.int32),
        key=KEY,
    )


def prepared(model, *, dropout):
    params = model.init(KEY)
    # Zeros and ones would hide a bias that is left out, or a scale that is not applied.
    params = jax.tree.map(
        lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape),
        params,
    )
    batch = jax.jit(model.prepare)(raw_batch(), key=KEY)
    return params, (batch, rng.per_row(KEY, 3) if dropout else None)


def norm(tree):
    return float(trees.global_norm(tree))


@pytest.mark.parametrize(
    ("changes", "scope", "tolerance"),
    [
        (
            {"size": ONE_LAYER, "frozen_words": True, "word_width": 6},
            ".*",
            1e-5,
        ),
        (
            {"scan": True, "remat": "full", "dropout": 0.1, "drop_per_sample": True},
            ENCODER,
            1e-5,
        ),
        (
            {"backbone": "specific", "scan": True, "remat": "dots", "dropout": 0.1},
            ".*",
            1e-5,
        ),
        # Products of bfloat16 numbers, summed in float32 in another order.
        ({"size": ONE_LAYER, "dtype": "bfloat16"}, ENCODER, 1e-2),
    ],
    ids=["unrolled-frozen", "scan-remat-dropout", "specific-scan-dots", "bfloat16"],
)
def test_exact_is_the_definition_for_the_real_model(changes, scope, tolerance):
    """One recorded forward; Gramian and gradient as by vmapped second forwards."""
    model = small_model(**changes)
    params, rows = prepared(model, dropout=bool(changes.get("dropout")))

    @jax.jit
    def both(params, rows):
        made = [
            run(model, engine(scope=scope), params, rows) for engine in (Exact, Vmap)
        ]
        return [(back.gram, back.params, back.losses) for back in made]

    (gram, grads, values), (want_gram, want_grads, want_values) = both(params, rows)
    scale = float(jnp.abs(want_gram).max())
    np.testing.assert_allclose(gram, want_gram, rtol=0, atol=tolerance * scale)
    off = jax.tree.map(jnp.subtract, grads, want_grads)
    assert norm(off) < tolerance * norm(want_grads)
    for name, value in want_values.items():
        assert float(values[name]) == pytest.approx(float(value), rel=tolerance)
    cosines = gram[:, 0, 1] / jnp.sqrt(gram[:, 0, 0] * gram[:, 1, 1])
    assert float(jnp.ptp(cosines)) > 0.05
    if changes.get("frozen_words"):
        assert not np.any(grads["text"]["word"]["embedding"])


@pytest.mark.parametrize("backbone", ["shared", "specific"])
def test_every_parameter_is_in_a_leaf_of_a_known_kind(backbone):
    """Shapes alone: inputs and cotangents of all leaves, with and without scan."""
    for scan in (False, True):
        model = small_model(backbone=backbone, scan=scan)
        params = jax.eval_shape(model.init, KEY)
        batch = jax.eval_shape(model.prepare, raw_batch())
        found = {}

        def go(params, batch, found=found, model=model):
            for name, tower in towers_of(model).items():
                made = tower.record(params, (batch, None))
                deltas, _ = made.pullback(made.encoded)
                assert set(deltas) == set(made.inputs) == set(made.leaves), name
                found.update(made.leaves)

        jax.eval_shape(go, params, batch)
        paths = {name.rpartition("/")[0] for name in trees.named_leaves(params)}
        assert paths == set(found)
        stacked = {path for path, leaf in found.items() if leaf.stacked}
        assert stacked == {path for path in paths if "/layers/" in path}
        assert bool(stacked) == scan


def test_leaf_classes_all_have_a_kind():
    """A new leaf class without a row here would hide its parameters from engines."""
    own = {
        c
        for c in vars(layers).values()
        if isinstance(c, type) and issubclass(c, layers.nn.Module)
    }
    assert own == set(record.KINDS)


def test_last_k_needs_unrolled_layers():
    model = small_model(scan=True)
    params = jax.eval_shape(model.init, KEY)
    rows = jax.eval_shape(model.prepare, raw_batch()), None
    with pytest.raises(UserError, match=r"'last_k' needs unrolled layers"):
        jax.eval_shape(lambda p, r: run(model, LastK(), p, r).params, params, rows)
