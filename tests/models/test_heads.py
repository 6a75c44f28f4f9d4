"""Heads against NumPy float64; absent rows; statistics in training and evaluation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import errors, trees
from mmssl.models import heads

WIDTHS = {"video": 5, "audio": 4, "text": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "official": {"va": 6, "vt": 4},
    "paper": {"va": 6, "vt": 4},
    "joint": {"features": 4, "hidden": 7},
}


def _inputs(seed: int = 0):
    r = np.random.default_rng(seed)
    pooled = {
        "video": r.normal(size=(8, 5)),
        "audio": r.normal(size=(8, 4)),
        "text": r.normal(size=(8, 2, 3)),
    }
    present = {
        "video": np.arange(8) != 2,
        "audio": np.arange(8) % 3 != 1,
        "text": r.uniform(size=(8, 2)) < 0.6,
    }
    return pooled, present


def _built(kind):
    built = heads.build_heads(kind=kind, **OPTIONS[kind])
    params, state = built.init(jax.random.key(0), WIDTHS)
    r = np.random.default_rng(0)
    params, state = jax.tree.map(
        lambda x: jnp.asarray(x + 0.3 * r.uniform(size=x.shape), jnp.float32),
        (params, state),
    )
    return built, params, state


def _linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _norm(p, s, x, mask):
    """Batch statistics where a mask is given, running ones where it is None."""
    if mask is None:
        mean, var, new = s["mean"], s["var"], s
    else:
        rows = x[mask]
        mean, var = rows.mean(0), rows.var(0)
        new = {
            "mean": 0.9 * s["mean"] + 0.1 * mean,
            "var": 0.9 * s["var"] + 0.1 * var,
        }
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"], new


def _reference(kind, p, s, pooled, present, train):
    """Written out head by head from the paper notes, without chains."""

    def relu(x):
        return np.maximum(x, 0)

    v, a, t = pooled["video"], pooled["audio"], pooled["text"].reshape(-1, 3)
    mask: dict[str, Any] = present if train else dict.fromkeys(present)
    new: dict = {name: {} for name in s}
    if kind == "joint":
        out = {}
        for m, x in (("video", v), ("audio", a), ("text", t)):
            head, old, fresh = p[f"{m}_joint"], s[f"{m}_joint"], new[f"{m}_joint"]
            there = None if mask[m] is None else mask[m].reshape(-1)
            for i in range(2):
                x = _linear(head[f"dense_{i}"], relu(x) if i else x)
                x, fresh[f"norm_{i}"] = _norm(
                    head[f"norm_{i}"], old[f"norm_{i}"], x, there
                )
            out[m] = x
        return {"joint": out}, new
    hidden, new["video_va"]["norm_0"] = _norm(
        p["video_va"]["norm_0"],
        s["video_va"]["norm_0"],
        _linear(p["video_va"]["dense_0"], v),
        mask["video"],
    )
    v_va, new["video_va"]["norm_1"] = _norm(
        p["video_va"]["norm_1"],
        s["video_va"]["norm_1"],
        _linear(p["video_va"]["dense_1"], relu(hidden)),
        mask["video"],
    )
    a_va = _linear(p["audio_va"]["dense_0"], a)
    t_vt = _linear(p["text_vt"]["dense_0"], t)
    if kind == "paper":
        a_va, new["audio_va"]["norm_0"] = _norm(
            p["audio_va"]["norm_0"], s["audio_va"]["norm_0"], a_va, mask["audio"]
        )
        flat = None if mask["text"] is None else mask["text"].reshape(-1)
        t_vt, new["text_vt"]["norm_0"] = _norm(
            p["text_vt"]["norm_0"], s["text_vt"]["norm_0"], t_vt, flat
        )
    bridge = relu if kind == "official" else lambda x: x
    dense, norm = p["va_vt"]["dense_0"], p["va_vt"]["norm_0"]
    before = _linear(dense, bridge(v_va))
    v_vt, new["va_vt"]["norm_0"] = _norm(
        norm, s["va_vt"]["norm_0"], before, mask["video"]
    )
    if train:
        rows = before[mask["video"]]
        used = {"mean": rows.mean(0), "var": rows.var(0)}
    else:
        used = s["va_vt"]["norm_0"]
    a_vt, _ = _norm(norm, used, _linear(dense, bridge(a_va)), None)
    return {
        "va": {"video": v_va, "audio": a_va},
        "vt": {"video": v_vt, "audio": a_vt, "text": t_vt},
    }, new


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", list(heads.KINDS))
def test_heads_equal_float64_reference(kind, train) -> None:
    built, params, state = _built(kind)
    pooled, present = _inputs()
    ours, moved = built.apply(
        params,
        state,
        {m: jnp.asarray(x, jnp.float32) for m, x in pooled.items()},
        {m: jnp.asarray(x) for m, x in present.items()},
        train=train,
    )
    wide, running = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, state))
    # Absent rows are read as zeros.
    pooled = {m: x * present[m][..., None] for m, x in pooled.items()}
    expected, new = _reference(kind, wide, running, pooled, present, train)
    assert set(ours) == set(built.spaces) == set(expected)
    for space, members in expected.items():
        assert set(ours[space]) == set(built.spaces[space]) == set(members)
        for m, x in members.items():
            got = ours[space][m]
            assert got.dtype == jnp.float32
            assert got.shape[:-1] == pooled[m].shape[:-1]
            np.testing.assert_allclose(got.reshape(x.shape), x, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), moved, new)


@pytest.mark.parametrize("kind", list(heads.KINDS))
def test_absent_rows_have_no_influence_and_no_gradient(kind) -> None:
    built, params, state = _built(kind)
    pooled, present = _inputs()
    pooled = {m: jnp.asarray(x, jnp.float32) for m, x in pooled.items()}
    masks = {m: jnp.asarray(x) for m, x in present.items()}

    @jax.jit
    def run(pooled):
        spaces, new = built.apply(params, state, pooled, masks, train=True)
        return spaces, new

    def junk(value):
        return {m: jnp.where(masks[m][..., None], x, value) for m, x in pooled.items()}

    plain, huge = run(pooled), run(junk(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, plain, huge)
    # Not even when the loss looks at the outputs of absent rows.
    grads = jax.grad(lambda p: sum((x**2).sum() for x in jax.tree.leaves(run(p)[0])))(
        junk(1e3)
    )
    for m, g in grads.items():
        assert not bool(jnp.where(masks[m][..., None], 0.0, g).any())
        assert bool(jnp.isfinite(g).all())
        assert bool(g.any())


def test_nobody_present_is_finite_and_moves_no_statistics() -> None:
    built, params, state = _built("paper")
    pooled, present = _inputs()

    def total(params):
        spaces, new = built.apply(
            params,
            state,
            {m: jnp.asarray(x, jnp.float32) for m, x in pooled.items()},
            {m: jnp.zeros(x.shape, bool) for m, x in present.items()},
            train=True,
        )
        return sum(x.sum() for x in jax.tree.leaves(spaces)), new

    (value, new), grads = jax.value_and_grad(total, has_aux=True)(params)
    assert bool(jnp.isfinite(value))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_statistics_are_global_under_a_sharded_batch() -> None:
    built, params, state = _built("official")
    pooled, present = _inputs()
    args = (
        {m: jnp.asarray(x, jnp.float32) for m, x in pooled.items()},
        {m: jnp.asarray(x) for m, x in present.items()},
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    run = jax.jit(lambda x, p: built.apply(params, state, x, p, train=True))
    one, eight = run(*args), run(*jax.device_put(args, rows))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, eight)


def test_modalities_left_out() -> None:
    built = heads.build_heads(kind="official", modalities=("video", "audio"))
    assert built.spaces == {"va": ("video", "audio"), "vt": ("video", "audio")}
    built, params, state = _built("official")
    pooled, _ = _inputs()
    audio = {"audio": jnp.asarray(pooled["audio"], jnp.float32)}
    spaces, new = built.apply(
        params, state, audio, {"audio": jnp.ones(8, bool)}, train=False
    )
    assert {s: set(x) for s, x in spaces.items()} == {"va": {"audio"}, "vt": {"audio"}}
    jax.tree.map(np.testing.assert_array_equal, new, state)
    with pytest.raises(ValueError, match="needs the pooled width of 'video'"):
        built.init(jax.random.key(0), {"audio": 4})


def test_official_head_of_ut_medium_counts_1_71_million() -> None:
    built = heads.build_heads(kind="official")
    widths = dict.fromkeys(WIDTHS, 1024)
    params, _ = jax.eval_shape(lambda k: built.init(k, widths), jax.random.key(0))
    assert trees.size(params) == 1_707_264


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "oficial"}, "did you mean 'official'"),
        ({"kind": "joint", "va": 3}, "not an option of kind 'joint'"),
        ({"kind": "joint", "features": 0}, "at least 1"),
        ({"modalities": ("vidoe",)}, "did you mean 'video'"),
        ({"modalities": ("audio", "text")}, "use kind 'joint'"),
    ],
)
def test_bad_options_are_named(options, message) -> None:
    with pytest.raises(errors.UserError, match=message):
        heads.build_heads(**options)
