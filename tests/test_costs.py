"""FLOPs by formula against XLA's count, and the table of chips."""

import types

import jax
import pytest

from mmssl import check, costs
from mmssl import config as config_lib
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from tests.conftest import ROOT


def experiment(recipe, *overrides):
    config = config_lib.load(str(ROOT / "configs" / recipe), list(overrides))
    made = Experiment(config)
    check.without_data(made)
    return made


VATT = (
    "--config.batch=8",
    "--config.model.dropout=0.0",
    "--config.model.scan=False",
    "--config.model.dtype=float32",
)
SIZE = {"layers": 2, "width": 768, "mlp": 3072, "heads": 12}


@pytest.mark.parametrize("recipe", ["vatt_ma_medium.py", "vatt_mbs.py"])
def test_the_formula_is_what_xla_counts(recipe):
    """At VATT's real shapes, where products are nearly everything; nothing compiled."""
    made = experiment(recipe, *VATT, f"--config.model.size={SIZE}")
    raw = check.raw_shapes(made, made.config["batch"])
    lowered = made.step.lower(made.abstract_state(), raw)
    counted = lowered.cost_analysis()["flops"]
    assert costs.step_flops(made) == pytest.approx(counted, rel=0.015)


def test_parts_grow_as_they_should():
    def parts(*overrides):
        return costs.step_flops_by_part(experiment("vatt_ma_medium.py", *overrides))

    one = parts("--config.batch=64")
    two = parts("--config.batch=128")
    assert two.pop("losses") == 4 * one.pop("losses")
    assert two == {name: 2 * count for name, count in one.items()}
    deep = parts("--config.batch=64", "--config.model.size=large")
    for name in ("video/blocks", "audio/attention", "text/blocks"):
        assert deep[name] == 2 * one[name]
    assert deep["heads"] == one["heads"]


def test_a_fine_grained_loss_meets_all_tokens_of_all_clips():
    made = experiment("demo.py:fine_grained", "--config.batch=8")
    plain = costs.step_flops_by_part(experiment("demo.py", "--config.batch=8"))
    found = costs.step_flops_by_part(made)
    video, audio, text = 8 * 48, 8 * 15, 2 * 8 * 12
    losses = 6 * 128 * video * (audio + text)
    assert found["losses"] == plain["losses"] + losses
    heads = 6 * 128 * (128 * (2 * video + audio) + 3 * 128 * text)
    assert found["heads"] == plain["heads"] + heads


def test_tokens_are_those_after_drop_token():
    made = experiment("vatt_ma_medium.py", "--config.batch=8")
    assert costs.step_tokens(made) == 8 * (784 + 600 + 5 * 16)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_chips_by_the_names_of_their_devices(kind, name):
    assert costs.chip_of(kind) == costs.CHIPS[name]
    devices = [types.SimpleNamespace(device_kind=kind)] * 4
    assert costs.peak_flops(devices) == 4 * costs.CHIPS[name].flops


def test_unknown_devices_have_no_peak():
    assert costs.chip_of("cpu") is None
    assert costs.peak_flops(jax.devices()) == 0


def test_topologies():
    assert costs.topology("v5e-256") == (costs.CHIPS["v5e"], 256)
    assert costs.topology("h100x64") == (costs.CHIPS["h100"], 64)
    for wrong in ("v5e", "h100x0", "256"):
        with pytest.raises(UserError, match="like v5e-256"):
            costs.topology(wrong)
    with pytest.raises(UserError, match="did you mean 'h100'"):
        costs.topology("h10x8")
