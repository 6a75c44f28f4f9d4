"""Micro-batches: the large batch's gradient, negatives and all, in less memory.

The first pass keeps embeddings only, the losses see them all, round the ring, and the
second pass pulls their cotangents back part by part (GradCache, arXiv 2101.06983).
For the tolerance see `test_layouts`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import gradients, models
from mmssl.objectives import contrastive
from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import rules
from mmssl.types import Encoded
from tests.parallel import layouts

pytestmark = pytest.mark.usefixtures("compile_quickly")

TOLERANCE = 1e-4
RULES = {
    "plain": gradients.Harmonizer(),
    "harmonized": layouts.harmonizer("exact"),
}


def lowered(rule, layout, *, chunk, micro_batch, rows=layouts.ROWS):
    """(params, heads, batch) -> (gradients, Gramian, losses), not yet compiled."""
    model, params, _, batches = layouts.problem(scan=False, layers=1)
    own = dataclasses.replace(RULES[rule], micro_batch=micro_batch)
    heads = models.build_heads(kind="joint", modalities=("video", "text"), features=8)
    pair = {"modalities": ("video", "text"), "space": "joint"}
    made = {
        form: contrastive.CrossModalContrast(
            heads, {form: pair}, form=form, chunk=chunk, bias=-1.0
        )
        for form in ("official", "sigmoid")
    }
    owned = {n: o.init(jax.random.key(1), model.widths) for n, o in made.items()}
    head = {name: params for name, (params, _) in owned.items()}
    mesh, zero, key = layouts.mesh_of(layout), jnp.zeros((), jnp.int32), None
    towers = {name: layouts.tower(model, name) for name in ("video", "text")}

    def step(params, heads, batch):
        def losses(heads, z):
            found = {
                name: objective(
                    heads[name], owned[name][1], Encoded({}, z), batch, key=key, step=0
                ).losses[name]
                for name, objective in made.items()
            }
            return found, None

        back = gradients.backward(
            towers,
            params,
            batch,
            losses,
            heads,
            harmonizer=own,
            state=own.init(),
            step=zero,
            key=jax.random.key(0),
        )
        return rules.at_rest(back.params), back.heads, back.gram, back.losses

    split, whole = rules.shardings(params, mesh), mesh_lib.replicated(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batches[0]
    )
    jitted = jax.jit(
        mesh_lib.ambient(mesh, step),
        in_shardings=(split, whole, mesh_lib.batch_sharding(mesh)),
    )
    values = params, head, batches[0]
    shardings = split, whole, mesh_lib.batch_sharding(mesh)
    return jitted.lower(params, head, batch), values, shardings


@functools.cache
def found(rule, layout, **options):
    program, values, shardings = lowered(rule, layout, **options)
    placed = [jax.device_put(v, s) for v, s in zip(values, shardings, strict=True)]
    return jax.device_get(layouts.compiled(program)(*placed))


@pytest.mark.parametrize(
    ("rule", "layout"), [("plain", "data_fsdp_tensor"), ("harmonized", "data")]
)
def test_parts_and_a_ring_give_the_gradient_of_the_whole(rule, layout):
    """One device holds everything at once; eight hold one or two rows of a part."""
    whole = found(rule, "one", chunk=None, micro_batch=0)
    parts = found(rule, layout, chunk=1, micro_batch=8)
    for wanted, got in zip(whole, parts, strict=True):
        size = layouts.distance(wanted, jax.tree.map(np.zeros_like, wanted))
        assert layouts.distance(got, wanted) <= TOLERANCE * size
    assert (whole[2] is None) == (rule == "plain")


def test_memory_is_that_of_one_part():
    def temporary(micro_batch):
        program, *_ = lowered(
            "plain", "one", chunk=16, micro_batch=micro_batch, rows=128
        )
        return layouts.compiled(program).memory_analysis().temp_size_in_bytes

    assert temporary(0) > 4 * temporary(8)
