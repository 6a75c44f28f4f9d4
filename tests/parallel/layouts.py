"""A tiny encoder trained on any mesh: what the tests of sharding share."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmssl import gradients, models
from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import rules
from mmssl.types import Batch, Encoded, RawBatch

ROWS, VOCAB, STEPS, RATE = 16, 16, 3, 0.1
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "data_fsdp_tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "replica_data_fsdp": {"replica": 2, "data": 2, "fsdp": 2},
}
WAYS: dict[str, tuple[gradients.Engine, bool, int]] = {
    "exact": (gradients.Exact(), False, 1),
    # Audited at every step, and never trusted: the fallback is under test, too.
    "subset_scanned": (gradients.Subset(audit_every=1, rmse=0.0), True, 2),
}
"""Name -> engine, scan over layers, layers."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `STEPS` steps give.

    Attributes:
      params: the last, as they lie on the devices.
      start: the first, on the host.
      grams: per step [b, k, k].
      weights: per step [b, k].
    """

    params: Any
    start: Any
    grams: list[np.ndarray]
    weights: list[np.ndarray]


def mesh_of(layout: str) -> jax.sharding.Mesh:
    sizes = LAYOUTS[layout]
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return mesh_lib.make_mesh(sizes, devices=devices)


def losses(heads: Any, z: Any) -> tuple[dict[str, jax.Array], None]:
    """The same NCE in two random spaces: gradients that often conflict."""
    video, text = z["video"], z["text"].mean(1)
    made = {}
    for name, head in heads.items():
        s = (video @ head) @ text.T
        own = (s * jnp.eye(len(s))).sum(1)
        made[name] = (jax.nn.logsumexp(s, 1) - own).mean()
    return made, None


@functools.cache
def problem(scan: bool, layers: int) -> tuple[models.Model, Any, Any, list[Batch]]:
    """Model, parameters, heads and a batch per step, on one device."""
    model = models.build_model(
        size={"layers": layers, "width": 16, "mlp": 32, "heads": 2},
        video={"frames": 2, "size": (4, 4), "patch": (2, 2, 2)},
        text={"vocab": VOCAB, "length": 3, "candidates": 2},
        drop_token=0.0,
        dropout=0.0,
        scan=scan,
    )
    r = np.random.default_rng(0)
    heads = {n: np.asarray(r.normal(0, 0.2, (16, 16)), np.float32) for n in "ab"}

    def batch() -> Batch:
        text = r.integers(1, VOCAB, (ROWS, 2, 3)).astype(np.int32)
        text[::3, 0, 2:] = 0
        media: Any = {
            "video": r.integers(0, 256, (ROWS, 2, 4, 4, 3)).astype(np.uint8),
            "text": text,
        }
        present: Any = {name: np.ones(ROWS, bool) for name in media}
        ids: Any = np.arange(ROWS, dtype=np.uint32)
        return prepare(RawBatch(media=media, present=present, example_id=ids))

    prepare = jax.jit(model.prepare)
    params = model.init(jax.random.key(0))
    return model, jax.device_get(params), heads, [batch() for _ in range(STEPS)]


def tower(model: models.Model, name: str) -> gradients.Tower:
    """One modality's pooled features, as the train step cuts them out."""

    def only(batch: Batch) -> Batch:
        return dataclasses.replace(batch, modalities={name: batch.modalities[name]})

    def pooled(encoded: Encoded) -> jax.Array:
        return encoded.pooled[name]

    return gradients.Tower(
        lambda params, rows: pooled(model.encode(params, only(rows))),
        lambda params, rows: model.record(params, only(rows), select=pooled),
    )


def harmonizer(way: str) -> gradients.Harmonizer:
    return gradients.Harmonizer(gradients.WEIGHTINGS["pcgrad"](), engine=WAYS[way][0])


@functools.cache
def program(way: str, layout: str, *, plain: bool = False) -> Any:
    """The compiled step on a mesh: (params, heads, batch, state) -> (params, ...).

    Plain gradient descent. Adam's first steps are signs of gradients, which turn
    rounding into whole steps where a gradient is about zero.
    """
    _, scan, layers = WAYS[way]
    model, params, heads, batches = problem(scan, layers)
    own = gradients.Harmonizer() if plain else harmonizer(way)
    mesh, zero, key = mesh_of(layout), jnp.zeros((), jnp.int32), jax.random.key(0)
    towers = {name: tower(model, name) for name in ("video", "text")}

    def step(params: Any, heads: Any, batch: Batch, state: Any) -> Any:
        back = gradients.backward(
            towers,
            params,
            batch,
            losses,
            heads,
            harmonizer=own,
            state=state,
            step=zero,
            key=key,
        )
        grads = rules.at_rest(back.params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        if back.gram is None:
            return params, back.state, None, None
        weigh = own.weigher(tuple(back.losses), state, zero, key)
        return params, back.state, back.gram, weigh(back.gram)

    whole, split = mesh_lib.replicated(mesh), rules.shardings(params, mesh)
    rows = mesh_lib.batch_sharding(mesh)
    jitted = jax.jit(
        mesh_lib.ambient(mesh, step),
        in_shardings=(split, whole, rows, whole),
        out_shardings=(split, whole, rows, rows),
    )
    return compiled(jitted.lower(params, heads, batches[0], own.init()))


def compiled(lowered: Any) -> Any:
    """Compiles; where XLA offers it, by the emitters that take a third of the time."""
    try:
        return lowered.compile({"xla_cpu_use_fusion_emitters": False})
    except jax.errors.JaxRuntimeError:
        return lowered.compile()


@functools.cache
def train(way: str, layout: str) -> Trained:
    """A few steps on a mesh."""
    _, start, heads, batches = problem(*WAYS[way][1:])
    mesh, step = mesh_of(layout), program(way, layout)
    whole = mesh_lib.replicated(mesh)
    params = jax.device_put(start, rules.shardings(start, mesh))
    heads, state = jax.device_put((heads, harmonizer(way).init()), whole)
    grams, weights = [], []
    for batch in batches:
        rows = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
        params, state, gram, weight = step(params, heads, rows, state)
        grams.append(np.asarray(gram))
        weights.append(np.asarray(weight))
    return Trained(params, start, grams, weights)


def distance(one: Any, other: Any) -> float:
    """Euclidean, over all leaves, in float64."""
    off = jax.tree.map(
        lambda a, b: ((np.asarray(a, np.float64) - np.asarray(b)) ** 2).sum(),
        jax.device_get(one),
        jax.device_get(other),
    )
    return float(np.sqrt(sum(jax.tree.leaves(off))))
