"""What every entry of OBJECTIVES guarantees; a new entry adds one row to EXAMPLES."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import types
from mmssl.models import heads
from mmssl.objectives import OBJECTIVES

pytestmark = pytest.mark.usefixtures("compile_quickly")

WIDTHS = {"video": 6, "audio": 5, "text": 4}
CANDIDATES, ROWS = 3, 8


@dataclasses.dataclass(frozen=True)
class LinearHeads:
    """Linear heads with a running mean, so that state and its masking are exercised."""

    members: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("va", ("video", "audio")),
        ("vt", ("video", "text")),
    )
    size: int = 4

    @property
    def spaces(self):
        return dict(self.members)

    def init(self, key, widths):
        params, state = {}, {}
        for space, members in self.members:
            for m in members:
                key = jax.random.fold_in(key, len(params) * 8 + widths[m])
                params.setdefault(space, {})[m] = jax.random.normal(
                    key, (widths[m], self.size)
                )
                state.setdefault(space, {})[m] = jnp.zeros(self.size)
        return params, state

    def apply(self, params, state, pooled, present, *, train):
        out, new = {}, {}
        for space, members in self.members:
            for m in members:
                z = pooled[m] @ params[space][m]
                weights = present[m].astype(z.dtype)[..., None]
                axes = tuple(range(z.ndim - 1))
                mean = (z * weights).sum(axes) / jnp.maximum(weights.sum(axes), 1.0)
                shift = mean if train else state[space][m]
                z = z - jnp.broadcast_to(shift, z.shape)
                out.setdefault(space, {})[m] = z
                new.setdefault(space, {})[m] = mean
        return out, new if train else state


EXAMPLES = {
    "contrastive": [
        {"heads": LinearHeads()},
        {"heads": heads.build_heads(va=4, vt=3), "form": "textbook"},
        {"heads": LinearHeads(), "form": "sigmoid", "chunk": 3},
        {
            "heads": LinearHeads((("joint", ("video", "audio", "text")),)),
            "pairs": {
                "va": {"modalities": ("video", "audio"), "space": "joint"},
                "ta": {"modalities": ("text", "audio"), "space": "joint"},
            },
        },
    ],
    "fine_grained": [
        {"features": 4},
        {"features": 4, "form": "sigmoid", "phrases": {"kind": "token"}, "chunk": 3},
        {
            "features": 4,
            "pairs": {
                "va": {"modalities": ("video", "audio"), "window": 1.0},
                "ta": {"modalities": ("text", "audio")},
            },
            "rates": {"video": 1.0, "audio": 2.0},
            "phrases": {"kind": "chunk", "width": 2},
            "form": "official",
            "null": 0.5,
        },
    ],
}
CASES = [
    pytest.param(kind, kwargs, id=f"{kind}-{i}")
    for kind, rows in EXAMPLES.items()
    for i, kwargs in enumerate(rows)
]


def test_every_objective_has_an_example():
    assert set(EXAMPLES) == set(OBJECTIVES)


def make(kind, kwargs):
    objective = OBJECTIVES[kind](**kwargs)
    return objective, *objective.init(jax.random.key(0), WIDTHS)


def sample(missing=(), seed=0):
    """Pooled vectors and a batch; `missing` modalities are absent in every row."""
    rng = np.random.default_rng(seed)
    pooled, tokens, parts = {}, {}, {}
    for m, width in WIDTHS.items():
        lead = (ROWS, CANDIDATES) if m == "text" else (ROWS,)
        present = (rng.random(ROWS) < 0.75) & (m not in missing)
        valid = np.ones((*lead, 2), bool)
        if m == "text":
            valid[:, 1] = rng.random(ROWS)[:, None] < 0.5
            valid[2] = False
        pooled[m] = jnp.asarray(rng.standard_normal((*lead, width)), jnp.float32)
        tokens[m] = jnp.asarray(rng.standard_normal((*lead, 2, width)), jnp.float32)
        parts[m] = types.ModalityBatch(
            tokens=jnp.zeros((*lead, 2), jnp.int32),
            positions=jnp.zeros((*lead, 2, 1), jnp.int32),
            valid=jnp.asarray(valid),
            present=jnp.asarray(present),
        )
    batch = types.Batch(parts, jnp.arange(ROWS, dtype=jnp.uint32))
    return types.Encoded(tokens, pooled), batch


@functools.partial(jax.jit, static_argnums=0)
def run(objective, head, state, encoded, batch):
    return objective(
        head, state, encoded, batch, key=jax.random.key(1), step=jnp.asarray(0)
    )


@functools.partial(jax.jit, static_argnums=0)
def gradients(objective, head, state, encoded, batch):
    def total(head, encoded):
        return sum(run(objective, head, state, encoded, batch).losses.values())

    return jax.grad(total, argnums=(0, 1))(head, encoded)


def subsets():
    names = sorted(WIDTHS)
    return [c for k in range(len(names) + 1) for c in itertools.combinations(names, k)]


@pytest.mark.parametrize("missing", subsets(), ids="-".join)
@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_finite_and_missing_has_zero_gradient(kind, kwargs, missing):
    objective, head, state = make(kind, kwargs)
    encoded, batch = sample(missing)
    out = run(objective, head, state, encoded, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
    gh, ge = gradients(objective, head, state, encoded, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gh, ge)))
    for m in objective.requires:
        part = batch.modalities[m]
        there = np.asarray(part.present)
        if m == "text":
            there = there[:, None] & np.asarray(part.valid.any(-1))
        assert (np.asarray(ge.pooled[m])[~there] == 0).all()
        assert (np.asarray(ge.tokens[m])[~there] == 0).all()
    if len(missing) == len(WIDTHS):
        assert all(value == 0 for value in out.losses.values())
        assert all((np.asarray(v) == 0).all() for v in out.per_sample.values())


@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_absent_rows_have_no_influence(kind, kwargs):
    objective, head, state = make(kind, kwargs)
    encoded, batch = sample()
    rng = np.random.default_rng(9)

    def scramble(m, x):
        there = batch.modalities[m].present
        if m == "text":
            there = there[:, None] & batch.modalities[m].valid.any(-1)
        there = there.reshape(there.shape + (1,) * (x.ndim - there.ndim))
        noise = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
        return jnp.where(jnp.broadcast_to(there, x.shape), x, 100.0 * noise)

    other = types.Encoded(
        {m: scramble(m, x) for m, x in encoded.tokens.items()},
        {m: scramble(m, x) for m, x in encoded.pooled.items()},
    )
    a = run(objective, head, state, encoded, batch)
    b = run(objective, head, state, other, batch)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-6), a, b)


@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_shapes_names_and_jit(kind, kwargs):
    objective, head, state = make(kind, kwargs)
    assert hash(objective) == hash(OBJECTIVES[kind](**kwargs))
    assert objective == OBJECTIVES[kind](**kwargs)
    assert objective.requires <= set(WIDTHS)
    encoded, batch = sample()
    eager = run.__wrapped__(objective, head, state, encoded, batch)
    jitted = run(objective, head, state, encoded, batch)
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6),
        eager,
        jitted,
    )
    assert set(eager.losses) == set(eager.per_sample)
    assert jax.tree.structure(eager.state) == jax.tree.structure(state)
    for value in (*eager.losses.values(), *eager.metrics.values()):
        assert value.shape == ()
        assert value.dtype == jnp.float32
    for value in eager.per_sample.values():
        assert value.shape == (ROWS,)
    for name, z in eager.embeddings.items():
        norms = np.linalg.norm(z, axis=1)
        there = np.asarray(batch.modalities[name.split("/")[0]].present)
        np.testing.assert_allclose(norms[~there], 0, atol=1e-6)
        assert ((np.abs(norms - 1) < 1e-4) | (norms == 0)).all()


@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_project_is_row_wise_and_normalised(kind, kwargs):
    objective, head, state = make(kind, kwargs)
    encoded, _ = sample()
    whole = objective.project(head, state, encoded.pooled)
    part = objective.project(head, state, jax.tree.map(lambda x: x[:3], encoded.pooled))
    for space, members in whole.items():
        for m, z in members.items():
            np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1.0, rtol=1e-4)
            np.testing.assert_allclose(z[:3], part[space][m], rtol=1e-5, atol=1e-6)
