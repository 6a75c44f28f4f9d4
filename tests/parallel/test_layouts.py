"""Harmonized training gives one result, whatever the mesh.

The tolerance: float32 sums in another order. A sum of n terms is off by about
sqrt(n) u of its terms' size, u = 6e-8, n up to a few thousand here; a step passes some
ten such sums one after the other, and NCE multiplies what reaches it by the gap of its
logits. That is 1e-5 of the gradient or less; measured, 1e-6. Gramians hold squares of
gradients, and weights their quotients, with what the parameters have drifted on top:
1e-4; measured, 1e-5. A row, a block or a device that counts wrongly is off by its
share, 1/16 or more.
"""

import importlib

import numpy as np
import pytest

from mmssl import trees
from tests.conftest import ROOT
from tests.parallel import layouts

pytestmark = pytest.mark.usefixtures("compile_quickly")

TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("way", "layout"),
    [
        *(("exact", layout) for layout in layouts.LAYOUTS if layout != "one"),
        ("subset_scanned", "data_fsdp_tensor"),
    ],
)
def test_every_layout_trains_the_same(way, layout):
    wanted, got = layouts.train(way, "one"), layouts.train(way, layout)
    moved = layouts.distance(wanted.params, wanted.start)
    assert moved > 0.1
    assert layouts.distance(got.params, wanted.params) < TOLERANCE * moved
    for one, other in zip(wanted.grams, got.grams, strict=True):
        np.testing.assert_allclose(other, one, atol=10 * TOLERANCE * np.abs(one).max())
    for one, other in zip(wanted.weights, got.weights, strict=True):
        assert one.max() > 1.01  # something conflicts
        np.testing.assert_allclose(other, one, rtol=10 * TOLERANCE)


@pytest.mark.parametrize("layout", ["fsdp", "tensor", "data_fsdp_tensor"])
def test_kernels_are_split_over_fsdp_and_tensor(layout):
    sizes = layouts.mesh_of(layout).shape
    for name, x in trees.named_leaves(layouts.train("exact", layout).params).items():
        shards = x.size // x.addressable_shards[0].data.size
        if not name.endswith(("kernel", "word/embedding")):
            # Biases of what `tensor` splits are split with it; the rest is whole.
            assert shards in (1, sizes["tensor"]), name
        elif "attention/" in name or "/mlp_" in name:
            assert shards == sizes["fsdp"] * sizes["tensor"], name
        else:
            assert shards == sizes["fsdp"], name


@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_harmonization_adds_no_byte_between_devices(layout, monkeypatch):
    """Gramians and weights are each device's own; gradients are summed as always."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    moved = importlib.import_module("harmonize").moved
    plain, harmonized = (
        moved(layouts.program("exact", layout, plain=plain).as_text())
        for plain in (True, False)
    )
    assert plain["all-reduce"] > 4 * trees.size(layouts.problem(False, 1)[1])
    assert harmonized == plain
    # Under fsdp every kernel of the encoder is gathered once, for both directions.
    kernels = {
        name: x.size
        for name, x in trees.named_leaves(layouts.problem(False, 1)[1]).items()
        if x.ndim == 2 and not name.endswith("table")
    }
    gathered = harmonized["all-gather"] - 2 * 4 * layouts.ROWS * 16
    assert gathered == (4 * sum(kernels.values()) if layout == "fsdp" else 0)
