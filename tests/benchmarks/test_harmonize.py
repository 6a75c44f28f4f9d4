"""The cost of harmonization, counted; and the benchmark's own arithmetic."""

import importlib

import jax
import pytest

from mmssl.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("harmonize")


@pytest.mark.parametrize("size", ["base", "medium"])
def test_flops_stay_below_their_limits_at_vatts_shapes(bench, size):
    ratios = bench.flops_ratios(size, bench.MAIN)
    assert 1 < ratios["subset"] <= 1.27
    assert ratios["subset"] < ratios["exact"] <= 1.40


def test_a_step_is_affine_in_its_depth(bench):
    def flops(layers):
        shape = bench.dataclasses.replace(
            bench.QUICK, size={**bench.QUICK.size, "layers": layers}
        )
        step = bench.Step(shape, bench.arms(8)["subset"], batch=8)
        return step.lowered.cost_analysis()["flops"]

    one, two, three = map(flops, (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-3)


def test_arms_of_one_gradient_must_agree(bench):
    first = {
        "plain": {"loss": 5.0, "grad_norm": 9.0},
        "exact": {"loss": 5.0, "grad_norm": 3.0},
        "subset": {"loss": 5.0, "grad_norm": 3.5},
        "vmap": {"loss": 5.0, "grad_norm": 3.0},
    }
    bench.check_equal(first, 1e-3)
    first["vmap"] = {"loss": 5.0, "grad_norm": 3.1}
    with pytest.raises(UserError, match="'vmap'"):
        bench.check_equal(first, 1e-3)


def test_collectives_are_counted_by_their_results(bench):
    text = """
      %a = f32[8,4]{1,0} all-reduce(%x), replica_groups={}
      %b = (f32[2]{0}, bf16[3,5]{1,0}, pred[]) all-reduce-start(%y, %z)
      %c = u8[16]{0} all-gather(%w), dimensions={0}
      %d = f32[99]{0} add(%a, %b)
    """
    assert bench.moved(text) == {
        "all-reduce": 8 * 4 * 4 + 2 * 4 + 3 * 5 * 2 + 1,
        "all-gather": 16,
    }


def test_a_sum_over_the_batch_is_one_collective(bench):
    from mmssl.parallel import mesh as mesh_lib

    mesh = mesh_lib.make_mesh({"data": -1})
    rows = jax.ShapeDtypeStruct((16, 3), "float32")
    compiled = jax.jit(
        lambda x: x.sum(0),
        in_shardings=mesh_lib.batch_sharding(mesh),
        out_shardings=mesh_lib.replicated(mesh),
    )
    text = compiled.lower(rows).compile().as_text()
    assert bench.moved(text) == {"all-reduce": 3 * 4}
