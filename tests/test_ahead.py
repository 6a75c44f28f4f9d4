"""The step compiled for a topology, and what is read off it."""

import re
import subprocess
import sys

import jax
import pytest

from mmssl import ahead, check, costs, trees
from mmssl.errors import UserError
from mmssl.parallel import traffic
from tests.conftest import ROOT
from tests.test_costs import experiment

TINY = (
    "--config.batch=16",
    "--config.model.size={'layers': 1, 'width': 16, 'mlp': 32, 'heads': 2}",
    "--config.model.text={'vocab': 32}",
    "--config.objectives.contrast.heads={'kind': 'joint', 'features': 8}",
)


def test_a_forecast_of_eight_chips():
    """Nothing is gathered; gradients are summed once; the rest are the rings."""
    made = experiment("demo.py", *TINY)
    chip, devices = costs.topology("v5e-8")
    found = ahead.forecast(made, chip)
    assert found.devices == devices == made.mesh.size
    assert found.flops == costs.step_flops(made)
    assert found.arguments == pytest.approx(
        check.memory(made).state + check.memory(made).batch, rel=0.01
    )
    assert found.temporary > 0
    kinds = traffic.by_kind(found.collectives)
    assert set(kinds) == {"all-reduce", "collective-permute"}
    state = made.abstract_state()
    size = 4 * sum(x.size for x in jax.tree.leaves((state.params, state.heads)))
    # Beside the gradients: statistics of the heads' BatchNorm, losses, metrics.
    assert 1 <= kinds["all-reduce"][1] / (2 * 7 / 8 * size) < 1.2
    assert found.network_seconds == 0
    least, most = found.step_seconds
    assert 0 < found.compute_seconds <= least <= most


def test_another_number_of_devices_needs_another_process():
    with pytest.raises(UserError, match="8 already"):
        ahead.simulate(16)


@pytest.mark.parametrize(
    ("topology", "overrides", "message"),
    [
        ("v5e-12", (), "batch 32 is not divisible by .* 12"),
        ("h100x8", ("--config.mesh.tensor=8",), "mesh.tensor 8"),
        ("v9-8", (), "no figures of chip 'v9'"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_compiled(
    topology, overrides, message
):
    command = [sys.executable, "-m", "mmssl.cli", "check", "--no-data"]
    config = ["--config", "configs/demo.py", "--topology", topology, *overrides]
    done = subprocess.run(
        [*command, *config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr


def activations(*overrides):
    return check.memory(experiment("demo.py", *TINY, *overrides)).activations


def test_activations_grow_with_the_rows_and_not_with_the_vocabulary():
    one = activations()
    assert one > 0
    assert activations("--config.model.text={'vocab': 4096}") == one
    assert activations("--config.batch=32") == 2 * one


def test_kernels_in_the_precision_of_compute_are_kept_without_remat():
    def constant(*overrides):
        half = ("--config.model.dtype=bfloat16", *overrides)
        return 2 * activations(*half) - activations(*half, "--config.batch=32")

    made = experiment("demo.py", *TINY)
    named = trees.named_leaves(made.abstract_state().params)
    sizes = {name: 2 * x.size for name, x in named.items() if "kernel" in name}
    kernels = sum(sizes.values())
    blocks = sum(size for name, size in sizes.items() if "layer_" in name)
    assert constant("--config.model.remat='none'") == pytest.approx(kernels, rel=0.1)
    recomputed = pytest.approx(kernels - blocks, rel=0.01)
    assert constant("--config.model.remat='full'") == recomputed
