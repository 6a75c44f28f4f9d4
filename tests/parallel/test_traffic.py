"""Collectives read off compiled programs: kinds, bytes, loops, groups."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import traffic

pytestmark = pytest.mark.usefixtures("compile_quickly")

TEXT = """
HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %send = f32[4]{0} collective-permute(%v), source_target_pairs={{1,2},{3,0}}
  %c = f32[2] conditional(%i, %a, %b), branch_computations={%left, %right}
}

%left (p: f32[2]) -> f32[2] {
  %g = (bf16[8]{0}, bf16[16]{0}) all-gather-start(%p), replica_groups=[2,2]<=[2,2]T(1,0)
}

%right (p: f32[2]) -> f32[2] {
  ROOT %n = f32[2] negate(%p)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %r = f32[4]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  %w = f32[4] while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_loops_branches_and_groups():
    reduce, permute, gather = traffic.collectives(TEXT)
    assert reduce == traffic.Collective("all-reduce", 16, 1, ((0, 1), (2, 3)))
    assert (permute.kind, permute.times, permute.bytes) == ("collective-permute", 5, 16)
    assert gather == traffic.Collective("all-gather", 32, 5, ((0, 2), (1, 3)))
    assert not reduce.crosses(2)
    assert permute.crosses(2)
    assert gather.crosses(2)
    assert not gather.crosses(4)
    assert traffic.by_kind([reduce, permute, gather]) == {
        "all-reduce": (1, 16.0),
        "collective-permute": (5, 80.0),
        "all-gather": (5, 80.0),
    }


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("{{0},{1}}", ((0,), (1,))),
    ],
)
def test_groups_in_every_spelling(written, groups):
    reduce = f"  %r = f32[] all-reduce(%x), replica_groups={written}, to_apply=%add"
    (found,) = traffic.collectives(f"ENTRY %main (x: f32[]) -> f32[] {{\n{reduce}\n}}")
    assert found.groups == groups


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("(f32[4], f32[4], u32[], u32[]) collective-permute-start(%x)", 16),
        ("((f32[4], f32[2]), (f32[8], f32[4])) all-gather-start(%x, %y)", 48),
        ("(f32[4], f32[2]) all-reduce-start(%x, %y)", 24),
        ("f32[8] all-gather-done(%x)", None),
    ],
)
def test_of_what_runs_beside_the_result_is_counted(written, size):
    text = f"ENTRY %main (x: f32[]) -> f32[] {{\n  %r = {written}\n}}"
    assert [c.bytes for c in traffic.collectives(text)] == ([size] if size else [])


def test_a_real_program_is_read():
    """A sum over rows, in a loop; and a sum that ends in shards."""
    mesh = mesh_lib.make_mesh({"fsdp": 8})
    rows = mesh_lib.batch_sharding(mesh)
    whole = mesh_lib.replicated(mesh)

    def f(x):
        def one(total, _):
            own = jax.lax.with_sharding_constraint((x * total.sum()).sum(0), whole)
            return total + own, None

        return jax.lax.scan(one, jnp.zeros(3), length=4)[0]

    x = jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=rows)
    compiled = jax.jit(f, out_shardings=whole).lower(x).compile()
    found = traffic.collectives(compiled.as_text())
    assert [(c.kind, c.bytes, c.times) for c in found] == [("all-reduce", 12, 4)]
    assert found[0].groups == (tuple(range(8)),)
    assert found[0].sent == pytest.approx(2 * 7 / 8 * 12 * 4)

    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    gather = jax.jit(lambda x: x * 1.0, in_shardings=split, out_shardings=whole)
    text = gather.lower(jnp.zeros(64)).compile().as_text()
    (only,) = traffic.collectives(text)
    assert (only.kind, only.bytes, only.sent) == ("all-gather", 256, 224.0)
