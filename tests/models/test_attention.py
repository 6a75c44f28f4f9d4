"""Attention by name: the fused kernel's arguments, and the fallback that says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.models import encoder, layers, vatt
from tests.models.conftest import GEOMETRY

FUSED = {"attention": "cudnn", "dropout": 0.0, "dtype": "bfloat16"}
SIZE = {"layers": 1, "width": 16, "mlp": 24, "heads": 2}


def test_the_fused_call_is_the_same_attention():
    """JAX's own reference behind the call that a GPU answers with cuDNN."""
    r = np.random.default_rng(0)
    q, k, v = (jnp.asarray(r.normal(size=(3, 5, 2, 8)), jnp.float32) for _ in "qkv")
    valid = jnp.arange(5)[None] < jnp.array([[5], [3], [1]])
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k) + layers.padding_bias(valid)
    wanted = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits, -1), v)
    got = encoder.fused_attention(q, k, v, valid, implementation="xla")
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture
def nothing_said():
    vatt._say.cache_clear()
    yield
    vatt._say.cache_clear()


@pytest.mark.usefixtures("nothing_said")
def test_a_platform_without_it_takes_xla_and_says_so_once(capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for _ in range(2):
        model = vatt.build_model(size=SIZE, **GEOMETRY, **FUSED)
        assert model.module.attention == "xla"
    assert capsys.readouterr().err == (
        "model.attention 'cudnn' needs an NVIDIA GPU; this is tpu, using 'xla'\n"
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = vatt.build_model(size=SIZE, **GEOMETRY, **FUSED)
    assert model.module.attention == "cudnn"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "cudn"}, "did you mean 'cudnn'"),
        ({"dropout": 0.1}, "set model.attention_dropout=0"),
        ({"attention_dropout": 0.2}, "found a rate of 0.2"),
        ({"dtype": "float32"}, "set model.dtype='bfloat16'"),
        ({"size": {**SIZE, "width": 12}}, "have 6"),
        ({"attention_dropout": 1.0}, "model.attention_dropout: expected"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        vatt.build_model(**{"size": SIZE, **GEOMETRY, **FUSED, **changes})


def test_dropout_of_weights_has_its_own_rate(make_model, make_raw):
    """At rate 0 the other sites' masks are what they are at any rate."""
    both, none = (
        make_model(size=SIZE, audio=None, dropout=0.3, attention_dropout=rate)
        for rate in (None, 0.0)
    )
    params = both.init(jax.random.key(0))
    batch = both.prepare(make_raw())
    keys = jax.random.split(jax.random.key(1), 3)
    one, other, still = (
        model.encode(params, batch, keys=keys).pooled["video"]
        for model, keys in ((both, keys), (none, keys), (both, None))
    )
    assert jnp.abs(one - other).max() > 1e-4
    assert jnp.abs(other - still).max() > 1e-4
