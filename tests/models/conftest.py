"""A model small enough that every test compiles in about a second."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import types
from mmssl.models import vatt

B = 3
GEOMETRY: dict[str, Any] = {
    "video": {"frames": 4, "size": (8, 8), "patch": (2, 4, 4)},
    "audio": {"samples": 64, "rate": 1000, "patch": 16},
    "text": {"vocab": 11, "length": 4, "candidates": 2},
}
SIZE = {"layers": 2, "width": 16, "mlp": 24, "heads": 2}


def small_model(**changes: Any) -> vatt.Model:
    settings = {"size": SIZE, "dropout": 0.0, **GEOMETRY, **changes}
    return vatt.build_model(**settings)


def raw_batch(seed: int = 0, rows: int = B) -> types.RawBatch:
    r = np.random.default_rng(seed)
    text = r.integers(1, 11, (rows, 2, 4))
    text[0, 0, 2:] = 0
    text[1, 1] = 0
    return types.RawBatch(
        media={
            "video": jnp.asarray(r.integers(0, 256, (rows, 4, 8, 8, 3)), jnp.uint8),
            "audio": jnp.asarray(r.uniform(-1, 1, (rows, 64)), jnp.float32),
            "text": jnp.asarray(text, jnp.int32),
        },
        present={m: jnp.ones(rows, bool) for m in ("video", "audio", "text")},
        example_id=jnp.arange(rows, dtype=jnp.uint32),
    )


@pytest.fixture(scope="module", autouse=True)
def _quick(compile_quickly: None) -> None:
    """All of this room's tests."""


@pytest.fixture(scope="session")
def make_model() -> Callable[..., vatt.Model]:
    return small_model


@pytest.fixture(scope="session")
def make_raw() -> Callable[..., types.RawBatch]:
    return raw_batch


@pytest.fixture(scope="session", params=["shared", "specific"])
def dropping(request: pytest.FixtureRequest) -> tuple[vatt.Model, types.Params]:
    """A model with dropout at every site, and its parameters, per backbone."""
    changes: dict[str, Any] = {"size": {**SIZE, "layers": 1}, "backbone": request.param}
    if request.param == "specific":
        changes["audio"] = None  # its tower is like video's
    model = small_model(dropout=0.3, **changes)
    return model, model.init(jax.random.key(0))


@pytest.fixture(scope="session")
def plain() -> tuple[vatt.Model, types.Params, types.Batch]:
    """A shared model without dropout, its parameters and a batch."""
    model = small_model(word_width=6)
    return (
        model,
        model.init(jax.random.key(0)),
        jax.jit(model.prepare)(raw_batch()),
    )
