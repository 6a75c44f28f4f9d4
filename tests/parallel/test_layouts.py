"""Harmonized training gives one result, whatever the mesh.

Float32 sums in another order: a sum of n terms is off by about sqrt(n) u of its terms'
size, u = 6e-8, here n up to a few thousand, and the contrastive losses at temperature
0.07 amplify what reaches them 14-fold: some 1e-5 of a step's gradient in all. A row, a
block or a device that counts wrongly is off by its share, 1/16 or more.
"""

import functools

import jax
import numpy as np
import pytest

from mmssl import trees
from tests.parallel import layouts

pytestmark = pytest.mark.usefixtures("compile_quickly")

STEPS = 3
TOLERANCE = 1e-4
SUBSET = {
    "harmonizer": {
        "weighting": "pcgrad",
        "engine": {"kind": "subset", "audit_every": 2, "rmse": 0.0},
    },
    "model": {"scan": True},
}
WAYS = {"exact": {}, "subset_scanned": SUBSET}


@functools.cache
def trained(way, layout=None):
    mesh = layouts.LAYOUTS[layout] if layout else layouts.ONE
    made = layouts.experiment(mesh, **WAYS[way])
    start = jax.device_get(made.init_state().params)
    return made, start, *layouts.train(made, STEPS)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_layout_trains_the_same(way, layout):
    one, start, state, outputs = trained(way)
    made, same, split, found = trained(way, layout)
    assert made.mesh.size == 8
    assert layouts.distance(start, same) == 0
    moved = layouts.distance(state.params, start)
    assert moved > 1e-2
    for tree in ("params", "heads", "opt_state", "extras", "harmonizer"):
        off = layouts.distance(getattr(split, tree), getattr(state, tree))
        assert off < TOLERANCE * moved, tree
    for wanted, got in zip(outputs, found, strict=True):
        scale = np.abs(wanted.gram).max()
        np.testing.assert_allclose(got.gram, wanted.gram, atol=TOLERANCE * scale)
        counted = layouts.weights(one, wanted)
        assert counted.max() > 1.01  # something conflicts
        np.testing.assert_allclose(layouts.weights(made, got), counted, rtol=1e-3)
        np.testing.assert_allclose(
            got.metrics["grad_norm"], wanted.metrics["grad_norm"], rtol=TOLERANCE
        )


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_parameters_and_what_follows_them_are_split(layout):
    made, _, state, _ = trained("exact", layout)
    sizes = made.mesh.shape
    both, split = sizes["fsdp"] * sizes["tensor"], 0
    arrays = trees.named_leaves(state)
    for name, x in arrays.items():
        shards = x.size // x.addressable_shards[0].data.size
        if name.endswith("attention/query/kernel") or "/mlp_in/kernel" in name:
            assert shards == both, name
            split += 1
    # Query and first MLP kernel of two layers, and their momentum.
    assert split == 2 * (2 + 2)
    for kept in (name for name in arrays if name.startswith("opt_state/")):
        own = "params/" + kept.partition("/params/")[2]
        if own in arrays:
            assert arrays[kept].sharding == arrays[own].sharding
