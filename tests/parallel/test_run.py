"""A run on a mesh: its whole state split, stepped, saved and read on other meshes."""

import copy
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from mmssl import check, trees
from mmssl.data import device
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.parallel import mesh as mesh_lib
from mmssl.train.checkpoint import Checkpointer
from mmssl.types import RawBatch
from tests.parallel import layouts

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROWS = 16
CONFIG: dict[str, Any] = {
    "seed": 0,
    "steps": 10,
    "batch": ROWS,
    "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    "data": {
        "seconds": 0.064,
        "audio": {"rate": 1000},
        "text": {"length": 4, "candidates": 1},
    },
    "model": {
        "size": {"layers": 1, "width": 16, "mlp": 32, "heads": 2},
        "audio": {"patch": 16},
        "drop_token": 0.5,
        "dropout": 0.0,
    },
    "objectives": {
        "contrast": {
            "kind": "contrastive",
            "heads": {"kind": "joint", "features": 8, "norm": False},
        }
    },
    "harmonizer": {"weighting": "sum"},
    "optim": {"name": "sgd", "peak_lr": 0.1, "schedule": "constant"},
    "ema": {"decay": 0.5},
}


def experiment(mesh=CONFIG["mesh"], **changes):
    made = Experiment({**copy.deepcopy(CONFIG), "mesh": mesh, **changes})
    made.model = made.build_model(vocab=16)
    count = int(np.prod(list(mesh.values())))
    made.mesh = mesh_lib.make_mesh(mesh, devices=jax.devices()[:count])
    return made


def batch(made, *, bad=False):
    r = np.random.default_rng(0)
    audio = r.uniform(-1, 1, (ROWS, 64)).astype(np.float32)
    if bad:
        audio[3, 5] = np.nan
    media: Any = {
        "audio": audio,
        "text": r.integers(1, 16, (ROWS, 1, 4)).astype(np.int32),
    }
    present: Any = {name: np.ones(ROWS, bool) for name in media}
    ids: Any = np.arange(ROWS, dtype=np.uint32)
    raw = RawBatch(media=media, present=present, example_id=ids)
    return device.put(raw, mesh_lib.batch_sharding(made.mesh))


@functools.cache
def stepped(on_mesh):
    """(experiment, start, after one step, after a bad one), the states on the host."""
    made = experiment() if on_mesh else experiment({"data": 1})
    state = made.init_state()
    step = layouts.compiled(made.step.lower(state, batch(made)))
    start = jax.device_get(state)
    state, output = step(state, batch(made))
    assert bool(output.metrics["finite"])
    first = jax.device_get(state)
    state, output = step(state, batch(made, bad=True))
    assert not bool(output.metrics["finite"])
    return made, start, first, state


def test_a_mesh_changes_nothing_of_a_step():
    (_, start, one, _), (_, same, other, _) = stepped(False), stepped(True)
    assert layouts.distance(start, same) == 0
    moved = layouts.distance(one.params, start.params)
    assert layouts.distance(one, other) < 1e-5 * moved


def test_the_state_keeps_its_shardings():
    made, _, _, last = stepped(True)
    wanted = trees.named_leaves(made.state_shardings)
    for name, x in trees.named_leaves(last).items():
        assert x.sharding.is_equivalent_to(wanted[name], x.ndim), name
    query = "params/shared/layer_00/attention/query/kernel"
    assert trees.named_leaves(last)[query].addressable_shards[0].data.shape == (8, 8)


def test_the_average_follows_and_a_bad_step_leaves_it():
    _, start, first, last = stepped(True)
    for name in ("params", "heads"):
        before, after, mean = (
            trees.named_leaves(tree)
            for tree in (
                getattr(start, name),
                getattr(first, name),
                first.ema[name],
            )
        )
        for path, x in mean.items():
            # At step 0 a tenth stays, whatever the decay.
            np.testing.assert_allclose(
                x, 0.1 * before[path] + 0.9 * after[path], rtol=1e-5, atol=1e-7
            )
    assert layouts.distance(first.ema, last.ema) == 0
    assert layouts.distance(first.params, last.params) == 0
    averaged = first.averaged()
    assert averaged.params is first.ema["params"]
    assert averaged.heads is first.ema["heads"]
    with pytest.raises(UserError, match="no average"):
        dataclasses.replace(first, ema={}).averaged()


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 1}])
def test_checkpoints_are_read_on_another_mesh(mesh, tmp_path):
    _, _, _, state = stepped(True)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, {}, step=2)
        checkpointer.wait()
        restored = checkpointer.restore(experiment(mesh).abstract_state()).state
    assert layouts.distance(state, restored) == 0
    size = experiment(mesh).mesh.size
    for x in jax.tree.leaves(restored):
        assert x.sharding.num_devices == size


def test_memory_counts_shards():
    one = check.memory(experiment({"data": 1}))
    split = check.memory(experiment({"fsdp": 8}))
    assert split.state < 0.4 * one.state
    assert split.batch == one.batch // 8
    assert check.memory(experiment({"tensor": 2})).batch == one.batch


def test_heads_and_rows_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"mesh.tensor 4: the encoder of audio has 2"):
        experiment({"data": 2, "tensor": 4}).abstract_state()
    with pytest.raises(UserError, match="batch 12 is not divisible"):
        _ = Experiment({**CONFIG, "mesh": {"data": 8}, "batch": 12}).step


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 32),
        ({"group": 0}, 32),
        ({"group": 3}, 48),
        ({"micro_batch": 48}, 48),
        ({"group": 5, "micro_batch": 80}, 80),
        ({"group": 5}, 40),
    ],
)
def test_a_check_takes_rows_that_divide_as_the_batch(options, rows):
    config = {**CONFIG, "mesh": {"data": 8}, "batch": 240, "harmonizer": options}
    made = Experiment(config)
    made.check_rows()
    assert check.few_rows(made) == rows
    Experiment({**config, "batch": rows}).check_rows()


def test_micro_batches_must_divide_over_the_mesh():
    def checked(**options):
        config = {**CONFIG, "mesh": {"data": 8}, "batch": 96, "harmonizer": options}
        Experiment(config).check_rows()

    checked(micro_batch=48, group=3)
    with pytest.raises(UserError, match="micro_batch 12 is not divisible by 8"):
        checked(micro_batch=12)
    with pytest.raises(UserError, match="micro_batch 40 is not divisible by 16"):
        checked(micro_batch=40, group=2)
