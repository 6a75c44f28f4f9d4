"""The tables that split parameters: they cover, they refuse, and the state follows.

Nothing is compiled here; what the splits do is in `test_layouts` and `test_run`.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mmssl import gradients, models, objectives, trees
from mmssl.errors import UserError
from mmssl.optim import factory
from mmssl.optim.ema import Average
from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import rules
from mmssl.train.state import init_state

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def build(**changes):
    settings = {
        "size": {"layers": 2, "width": 16, "mlp": 32, "heads": 2},
        "video": {"frames": 4, "size": (8, 8), "patch": (2, 4, 4)},
        "audio": {"samples": 64, "rate": 1000, "patch": 16},
        "text": {"vocab": 12, "length": 4, "candidates": 2},
    }
    return models.build_model(**settings | changes)


@functools.cache
def state(scan=True, **changes):
    model = build(scan=scan, **changes)
    heads = models.build_heads(kind="official", va=8, vt=8)
    contrast = objectives.OBJECTIVES["contrastive"](heads=heads)
    return jax.eval_shape(
        functools.partial(
            init_state,
            init_params=model.init,
            objectives={"vatt": contrast},
            widths=model.widths,
            harmonizer=gradients.Harmonizer(),
            tx=factory.make_optimizer(steps=10, name="adamw", weight_decay=0.1).tx,
            ema=Average(),
        ),
        jax.random.key(0),
    )


def test_the_table_covers_every_model_and_has_no_dead_row():
    trees.match(
        {
            "shared": state().params,
            "specific": state(backbone="specific").params,
            "heads": state().heads,
        },
        rules.PARAMETERS,
        what="sharding",
    )


@pytest.mark.parametrize(
    ("name", "shape", "rest", "use"),
    [
        ("shared/layers/attention/query/kernel", (4, 16, 16), "fsdp tensor", "tensor"),
        ("shared/layer_00/attention/output/kernel", (16, 16), "tensor fsdp", "tensor"),
        ("0/mu/params/shared/layer_00/mlp_out/kernel", (32, 16), "tensor fsdp", ""),
        ("video/patch/kernel", (96, 16), "- fsdp", "-"),
        ("text/word/embedding", (12, 6), "fsdp -", "-"),
        ("text/word/embedding", (13, 6), "- -", "-"),
        ("shared/layers/mlp_in/bias", (4, 32), "tensor", "tensor"),
        ("shared/norm/scale", (16,), "-", "-"),
        ("0/count", (), "", ""),
    ],
)
def test_names_say_how(name, shape, rest, use):
    mesh = mesh_lib.make_mesh(MESH).abstract_mesh
    found = rules.spec(name, shape, mesh)
    axes = [None if part == "-" else part for part in rest.split()]
    assert tuple(found) == (*[None] * (len(shape) - len(axes)), *axes)
    if use:
        whole = rules.spec(name, shape, mesh, in_use=True)
        kept = {part for part in whole if part}
        assert kept == ({use} - {"-"})


def test_an_unknown_parameter_is_named():
    mesh = mesh_lib.make_mesh(MESH)
    with pytest.raises(ValueError, match="'shared/new/weight'; add one"):
        rules.spec("shared/new/weight", (4, 4), mesh)
    with pytest.raises(ValueError, match="does not have the axes"):
        rules.spec("shared/mlp_in/kernel", (2, 2, 16, 32), mesh)


def test_what_does_not_divide_is_refused_by_name():
    mesh = mesh_lib.make_mesh({"fsdp": 8})
    with pytest.raises(UserError, match=r"mesh.fsdp 8: .*query/kernel \[12, 12\].*: 4"):
        rules.spec("attention/query/kernel", (12, 12), mesh)
    with pytest.raises(UserError, match=r"mesh.tensor 8.*'heads'.*that does: 2"):
        rules.check("heads", 2, mesh_lib.make_mesh({"tensor": 8}), what="the encoder")


def test_optimizer_and_average_are_split_like_their_parameters():
    mesh = mesh_lib.make_mesh(MESH)
    whole = state()
    found = trees.named_leaves(rules.state_shardings(whole, mesh))
    arrays = trees.named_leaves(whole)
    followers = 0
    for name, sharding in found.items():
        _, slash, own = name.partition("/params/")
        if slash:
            assert sharding == found[f"params/{own}"], name
            followers += 1
        elif not name.startswith("params/"):
            assert sharding.spec == P() or not any(sharding.spec), name
        sharding.shard_shape(arrays[name].shape)
    assert followers == 3 * len(trees.named_leaves(whole.params))  # mu, nu, average


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((3, 5))
    assert rules.in_use("no/such/name", x) is x
    assert rules.at_rest({"x": x})["x"] is x
