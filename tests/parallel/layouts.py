"""A tiny run, whole, on any mesh: what the tests of sharding share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmssl import config as config_lib
from mmssl.data import device
from mmssl.experiment import Experiment
from mmssl.parallel import mesh as mesh_lib
from mmssl.types import RawBatch

ROWS, VOCAB = 16, 16
ONE = {"data": 1}
LAYOUTS: dict[str, dict[str, int]] = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "data_fsdp_tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "replica_data_fsdp": {"replica": 2, "data": 2, "fsdp": 2},
}


def experiment(mesh: dict[str, int], **changes: Any) -> Experiment:
    """Two modalities' pairs on one shared encoder; on as many devices as `mesh` has.

    Momentum, not Adam: Adam's first steps are signs of gradients, which turn rounding
    into whole steps where a gradient is about zero.
    """
    model = {
        "size": {"layers": 2, "width": 16, "mlp": 32, "heads": 2},
        "video": {"patch": [2, 4, 4]},
        "audio": {"patch": 16},
        "drop_token": 0.5,
        "dropout": 0.1,
    }
    config = {
        "seed": 0,
        "steps": 10,
        "batch": ROWS,
        "mesh": mesh,
        "data": {
            "seconds": 0.064,
            "video": {"frames": 4, "size": [8, 8]},
            "audio": {"rate": 1000},
            "text": {"length": 4, "candidates": 2},
        },
        "model": model | changes.pop("model", {}),
        "objectives": {"vatt": {"kind": "contrastive", "form": "official"}},
        "harmonizer": {"weighting": "pcgrad", "engine": "exact"},
        "optim": {"name": "sgd", "peak_lr": 0.05, "schedule": "constant"},
        "ema": {},
    }
    made = Experiment(config_lib.plain(config | changes))
    made.model = made.build_model(vocab=VOCAB)
    count = int(np.prod(list(mesh.values())))
    made.mesh = mesh_lib.make_mesh(mesh, devices=jax.devices()[:count])
    return made


@functools.cache
def batches(count: int) -> tuple[RawBatch, ...]:
    """Noise; some texts are short, some rows lack a modality."""
    r = np.random.default_rng(0)

    def one(step: int) -> RawBatch:
        text = r.integers(1, VOCAB, (ROWS, 2, 4))
        text[::3, 0, 2:] = 0
        there = {m: np.ones(ROWS, bool) for m in ("video", "audio", "text")}
        there["text"][step::5] = False
        media: Any = {
            "video": r.integers(0, 256, (ROWS, 4, 8, 8, 3)).astype(np.uint8),
            "audio": r.uniform(-1, 1, (ROWS, 64)).astype(np.float32),
            "text": (text * there["text"][:, None, None]).astype(np.int32),
        }
        ids: Any = np.arange(ROWS, dtype=np.uint32) + ROWS * step
        present: Any = there
        return RawBatch(media=media, present=present, example_id=ids)

    return tuple(map(one, range(count)))


def train(made: Experiment, steps: int) -> tuple[Any, list[Any]]:
    """(the last state, on its devices; what each step put out, on the host)."""
    state, outputs = made.init_state(), []
    for raw in batches(steps):
        raw = device.put(raw, mesh_lib.batch_sharding(made.mesh))
        state, output = made.step(state, raw)
        outputs.append(jax.device_get(output))
    return state, outputs


def distance(one: Any, other: Any) -> float:
    """Euclidean, over all leaves, in float64."""
    off = jax.tree.map(
        lambda a, b: ((np.asarray(a, np.float64) - np.asarray(b)) ** 2).sum(),
        jax.device_get(one),
        jax.device_get(other),
    )
    return float(np.sqrt(sum(jax.tree.leaves(off))))


def weights(made: Experiment, output: Any) -> np.ndarray:
    """What each sample's share of each loss counted, from the step's Gramians."""
    weigh = made.harmonizer.weigher(
        output.losses, made.harmonizer.init(), 0, jax.random.key(0)
    )
    return np.asarray(weigh(jnp.asarray(output.gram)))
