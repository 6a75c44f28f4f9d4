"""The whole encode against NumPy float64; row-wise; absent and padded rows; errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmssl import errors, rng, trees, types
from mmssl.models import encoder, layers, vatt

# ---------------------------------------------------------------- float64 reference


def _dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def _rms_norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def _t5_bucket(distance: int) -> int:
    """32 buckets, at most 64 apart, written out for one distance (key - query)."""
    side, size = (16 if distance > 0 else 0), abs(distance)
    if size < 8:
        return side + size
    return side + min(8 + int(math.log(size / 8) / math.log(64 / 8) * 8), 15)


def _encode_sequence(p, x, valid, heads, t5):
    """One sequence [t, d] through an unrolled encoder."""
    t, d = x.shape
    c = d // heads
    first_norm = _rms_norm if t5 else _layer_norm
    for name in sorted(k for k in p if k.startswith("layer_")):
        q = p[name]
        y = first_norm(q["attention_norm"], x)
        mixed = np.zeros((t, d))
        streams = [_dense(q["attention"][n], y) for n in ("query", "key", "value")]
        for h in range(heads):
            qh, kh, vh = (s[:, h * c : (h + 1) * c] for s in streams)
            for i in range(t):
                logits = kh @ qh[i] / (1.0 if t5 else math.sqrt(c))
                if t5:
                    table = p["relative_position"]["embedding"]
                    logits = logits + [table[_t5_bucket(j - i), h] for j in range(t)]
                weights = np.where(valid, np.exp(logits - logits[valid].max()), 0.0)
                mixed[i, h * c : (h + 1) * c] = weights / weights.sum() @ vh
        x = x + _dense(q["attention"]["output"], mixed)
        y = _gelu(_dense(q["mlp_in"], _layer_norm(q["mlp_norm"], x)))
        x = x + _dense(q["mlp_out"], y)
    return first_norm(p["norm"], x)


def _reference(params, name, tokens, positions, valid, shared):
    p = params[name]
    t5 = name == "text" and not shared
    agg = p["aggregation"]["token"][None]
    if name == "text":
        x = p["word"]["embedding"][tokens]
    else:
        x = _dense(p["patch"], tokens)
    if t5:
        x = _dense(p["project"], np.concatenate([agg, x]))
    else:
        if shared:
            x = _gelu(_dense(p["pre"], x))
        axes = ("time", "row", "column")
        tables = [p["position"][a]["table"] for a in axes if a in p["position"]]
        total = sum(t[positions[:, i]] for i, t in enumerate(tables))
        x = np.concatenate([agg, x + _layer_norm(p["position"]["norm"], total)])
    run = params["shared"] if shared else params[f"{name}_encoder"]
    x = _encode_sequence(run, x, np.concatenate([[True], valid]), 2, t5)
    return x[1:], _gelu(_dense(p["post"], x[0])) if shared else x[0]


@pytest.mark.parametrize("backbone", ["shared", "specific"])
def test_encode_equals_float64_reference(make_model, make_raw, backbone) -> None:
    shared = backbone == "shared"
    model = make_model(
        backbone=backbone,
        drop_token=0.25,
        word_width=6,
        **({} if shared else {"audio": None}),
    )
    params = model.init(jax.random.key(0))
    # Away from zeros and ones, so that every bias and scale matters.
    r = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * r.normal(size=x.shape), jnp.float32), params
    )
    batch = jax.jit(lambda raw, key: model.prepare(raw, key=key))(
        make_raw(), jax.random.key(1)
    )
    encoded = jax.jit(model.encode)(params, batch)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    assert batch.modalities["video"].tokens.shape[1] == 6
    for name, mb in batch.modalities.items():
        rows = [(i, j) for i in range(3) for j in range(2)]
        for at in rows if name == "text" else range(3):
            tokens, positions, valid = (
                np.asarray(x[at]) for x in (mb.tokens, mb.positions, mb.valid)
            )
            expected, pooled = _reference(wide, name, tokens, positions, valid, shared)
            np.testing.assert_allclose(encoded.tokens[name][at], expected, atol=2e-5)
            np.testing.assert_allclose(encoded.pooled[name][at], pooled, atol=2e-5)


def test_relative_buckets_equal_t5(make_model) -> None:
    distance = np.arange(-80, 81)
    ours = layers.relative_bucket(jnp.asarray(distance), buckets=32, max_distance=64)
    np.testing.assert_array_equal(ours, [_t5_bucket(int(d)) for d in distance])
    assert set(np.asarray(ours).tolist()) == set(range(32)) - {16}


# ------------------------------------------------------------------------ row-wise


def _rows(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def test_row_i_depends_on_row_i_and_its_key_only(dropping, make_raw) -> None:
    model, params = dropping
    batch = jax.jit(model.prepare)(make_raw())
    keys = rng.per_row(jax.random.key(3), 3)
    encode = jax.jit(lambda b, k: model.encode(params, b, keys=k))
    whole = encode(batch, keys)
    single = jax.jit(
        jax.vmap(
            lambda row, key: _rows(
                model.encode(params, jax.tree.map(lambda x: x[None], row), keys=key), 0
            )
        )
    )(batch, keys[:, None])
    for name in batch.modalities:
        for part in ("tokens", "pooled"):
            all_rows = getattr(whole, part)[name]
            np.testing.assert_allclose(getattr(single, part)[name], all_rows, atol=1e-5)
    other = encode(batch, keys[::-1])
    assert float(jnp.abs(other.pooled["video"] - whole.pooled["video"]).max()) > 1e-2
    assert float(jnp.abs(other.pooled["text"] - whole.pooled["text"]).max()) > 1e-2


def test_sites_and_rows_drop_independently() -> None:
    keys = rng.per_row(jax.random.key(0), 2)
    ones = jnp.ones((2, 4000))

    def mask(**kw):
        return layers.dropout(ones, rate=0.5, keys=keys, **kw) > 0

    first = mask(site="mlp")
    np.testing.assert_array_equal(first, mask(site="mlp"))
    for other in (mask(site="attention"), first[::-1]):
        assert 0.45 < float((first == other).mean()) < 0.55
    assert float(layers.dropout(ones, rate=0.5, keys=keys, site="mlp").max()) == 2.0
    assert layers.dropout(ones, rate=0.0, keys=keys, site="mlp") is ones
    assert layers.dropout(ones, rate=0.5, keys=None, site="mlp") is ones


def test_absent_and_padded_rows_are_finite_and_inert(plain, make_raw) -> None:
    model, params, _ = plain
    raw = make_raw()
    raw = types.RawBatch(
        {m: x.at[1].set(0) for m, x in raw.media.items()},
        {m: p.at[1].set(False) for m, p in raw.present.items()},
        raw.example_id,
    )
    batch = jax.jit(model.prepare)(raw)
    mb = batch.modalities["text"]

    @jax.jit
    def value_and_grad(ids, params):
        text = types.ModalityBatch(ids, mb.positions, mb.valid, mb.present)
        modalities = {**batch.modalities, "text": text}

        def pooled(params):
            e = model.encode(params, types.Batch(modalities, batch.example_id))
            return sum(x.sum() for x in e.pooled.values()), e.pooled["text"]

        return jax.value_and_grad(pooled, has_aux=True)(params)

    (_, before), grads = value_and_grad(mb.tokens, params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert bool(jnp.isfinite(before).all())
    # Whatever stands at padded positions, nothing changes.
    (_, after), _ = value_and_grad(jnp.where(mb.valid, mb.tokens, 7), params)
    np.testing.assert_array_equal(before, after)
    (_, moved), _ = value_and_grad(jnp.where(mb.valid, 7, mb.tokens), params)
    assert float(jnp.abs(moved[0] - before[0]).max()) > 1e-3


# ------------------------------------------------------------------ layout and parts


def test_every_parameter_lives_in_a_leaf(dropping, make_raw) -> None:
    model, params = dropping
    leaves = (
        layers.Dense,
        layers.LayerNorm,
        layers.RMSNorm,
        layers.Embed,
        layers.PositionEmbedding,
        layers.AggregationToken,
        layers.RelativePositionBias,
    )
    called: set[str] = set()

    def record(call, args, kwargs, context):
        if isinstance(context.module, leaves):
            called.add("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda r: model.encode(params, model.prepare(r)), make_raw())
    owners = {name.rpartition("/")[0] for name in trees.named_leaves(params)}
    assert owners == called


def test_parameter_paths_are_readable(dropping) -> None:
    model, params = dropping
    names = set(trees.named_leaves(params))
    assert {
        "video/patch/kernel",
        "video/position/time/table",
        "video/aggregation/token",
        "text/word/embedding",
    } <= names
    block = "layer_00/attention/query/kernel"
    if model.module.shared:
        assert {f"shared/{block}", "text/post/kernel", "text/pre/bias"} <= names
    else:
        assert {
            f"text_encoder/{block}",
            "text_encoder/relative_position/embedding",
            "text/project/kernel",
        } <= names
        assert not any(
            n.endswith("bias") and "norm" not in n
            for n in names
            if n.startswith("text")
        )
    described = model.describe()
    assert described["parameters"] == trees.size(params)
    assert sum(described["parts"].values()) == described["parameters"]


def test_frozen_words_get_no_gradient(make_model, plain) -> None:
    _, params, batch = plain
    model = make_model(frozen_words=True, word_width=6)
    text = types.Batch({"text": batch.modalities["text"]}, batch.example_id)
    grads = jax.jit(jax.grad(lambda p: model.encode(p, text).pooled["text"].sum()))(
        params
    )
    assert not bool(grads["text"]["word"]["embedding"].any())
    assert bool(grads["text"]["pre"]["kernel"].any())
    assert model.describe()["frozen"] == 66


def test_drop_token_rates_and_evaluation(make_model, make_raw) -> None:
    model = make_model(drop_token={"video": 0.5})
    raw = make_raw()
    train = model.prepare(raw, key=jax.random.key(0)).modalities
    assert [train[m].tokens.shape[-2] for m in ("video", "audio")] == [4, 4]
    assert train["text"].tokens.shape == (3, 2, 4)
    quiet = model.prepare(raw).modalities
    assert quiet["video"].tokens.shape == (3, 8, 96)
    del raw.media["text"]  # pyright: ignore[reportIndexIssue]
    assert set(model.prepare(raw).modalities) == {"video", "audio"}


def test_bfloat16_stays_near_float32(make_model, plain) -> None:
    full, params, batch = plain
    half = make_model(dtype="bfloat16", word_width=6)
    a, b = jax.jit(lambda p: (full.encode(p, batch), half.encode(p, batch)))(params)
    assert b.tokens["video"].dtype == jnp.bfloat16
    for m in a.pooled:
        assert b.pooled[m].dtype == jnp.float32
        np.testing.assert_allclose(a.pooled[m], b.pooled[m], atol=0.05)


def test_scan_and_remat_change_nothing(make_model, make_raw) -> None:
    keys = rng.per_row(jax.random.key(3), 3)

    def run(**kw):
        model = make_model(dropout=0.3, audio=None, text=None, **kw)
        params = model.init(jax.random.key(0))
        raw = make_raw()

        @jax.jit
        def loss(params):
            pooled = model.encode(params, model.prepare(raw), keys=keys).pooled
            return sum((x**2).sum() for x in pooled.values()), pooled

        (_, pooled), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return params, pooled, grads

    params, pooled, grads = run(scan=False)
    for kw in ({"scan": True, "remat": "dots_no_batch"}, {"remat": "full"}):
        p, z, g = run(**kw)
        if kw.get("scan"):
            assert p["shared"]["layers"]["mlp_in"]["kernel"].shape == (2, 16, 24)
            p, g = encoder.unstack_layers(p), encoder.unstack_layers(g)
        jax.tree.map(np.testing.assert_array_equal, p, params)
        for ours, plain in ((z, pooled), (g, grads)):
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
                ours,
                plain,
            )
    back = encoder.unstack_layers(encoder.stack_layers(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_more_than_a_hundred_layers_keep_their_order():
    params = {f"layer_{i:02d}": {"bias": np.full(1, i)} for i in range(103)}
    stacked = encoder.stack_layers(params)["layers"]["bias"][:, 0]
    np.testing.assert_array_equal(stacked, np.arange(103))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "smal"}, "did you mean 'small'"),
        ({"size": {"layers": 2}}, "exactly layers, width, mlp, heads"),
        ({"size": {"layers": 2, "width": 30, "mlp": 8, "heads": 4}}, "28, 32"),
        ({"size": {"video": "tiny"}}, "shared backbone has one size"),
        ({"backbone": "specific", "size": {"video": "tiny"}}, "each of video, audio"),
        ({"backbone": "specific", "pooled_width": 8}, "only the shared backbone"),
        ({"video": {"frames": 4}}, "model.video.size: missing"),
        ({"audio": {"samples": 64, "rate": 1, "pach": 2}}, "did you mean 'patch'"),
        ({"audio": {"samples": 60, "rate": 1, "patch": 16}}, "nearest valid: 48, 64"),
        ({"drop_token": {"text": 0.5}}, "only from video, audio"),
        ({"drop_token": 1.0}, "0 <= rate < 1"),
        ({"dropout": -0.1}, "0 <= rate < 1"),
        ({"dtype": "float16"}, "did you mean 'bfloat16'"),
        ({"remat": "everything"}, "known: none, full"),
        ({"video": None, "audio": None, "text": None}, "at least one"),
    ],
)
def test_bad_settings_are_named(make_model, change, message) -> None:
    with pytest.raises(errors.UserError, match=message):
        make_model(**change)


def test_unknown_setting_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="sise"):
        vatt.build_model(sise="tiny")  # pyright: ignore[reportCallIssue]
