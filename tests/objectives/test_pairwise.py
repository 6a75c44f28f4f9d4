"""Tiles and rings: the dense reduction's values and gradients, in flat memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.objectives import contrastive, losses, pairwise
from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import traffic
from tests.objectives import test_contrastive as scalar

pytestmark = pytest.mark.usefixtures("compile_quickly")

E = 16
DISTINCT = ("official", "sigmoid")
"""One form of each reduction."""
LAYOUTS = (
    {"data": 8},
    {"replica": 2, "data": 2, "fsdp": 2},
    {"fsdp": 4, "tensor": 2},
)


def loss(form, chunk, x, y, x_mask, y_mask, ids, temperature, bias):
    """Mean loss; per-sample losses and terms beside it."""
    made = losses.FORMS[form]
    terms = losses.pair_terms(
        x,
        y,
        x_mask=x_mask,
        y_mask=y_mask,
        example_id=ids,
        temperature=temperature,
        bias=bias,
        reduction=made.reduction,
        chunk=chunk,
    )
    each = made.loss(terms)
    return losses.masked_mean(each, terms.valid), (each, terms)


def everything(form, chunk):
    """jit of ((mean, (each, terms)), gradients by x, y, temperature and bias)."""
    f = functools.partial(loss, form, chunk)
    return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 5, 6), has_aux=True))


def arguments(b=32, n=3, seed=0):
    """Pairs that are alike, so that some find each other and some do not."""
    x, y, *rest = map(jnp.asarray, scalar.example(seed=seed, b=b, n=n, e=E))
    return (
        x,
        contrastive.normalise(y + 0.5 * x[:, None]),
        *rest,
        jnp.float32(0.2),
        jnp.float32(-1.0),
    )


def on(mesh, values):
    """The batch over the mesh's rows, scalars everywhere."""
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    return [jax.device_put(v, rows if v.ndim else whole) for v in values]


@pytest.mark.parametrize(
    ("form", "shape"), [*zip(scalar.FORMS, LAYOUTS, strict=True)], ids=str
)
def test_the_ring_is_the_dense_loss(form, shape):
    """Losses, hits and gradients; of temperature and bias, too."""
    values = arguments(n=3 if shape == LAYOUTS[0] else 1)
    mesh = mesh_lib.make_mesh(shape)
    wanted = everything(form, None)(*values)
    with jax.set_mesh(mesh):
        found = everything(form, 3)(*on(mesh, values))
    assert 0 < wanted[0][1][1].x_hit.sum() < len(values[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        jax.device_get(found),
        jax.device_get(wanted),
    )
    assert found[1][0].sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 2)


@pytest.mark.parametrize("form", scalar.FORMS)
def test_the_ring_is_the_float64_reference(form):
    x, y, x_mask, y_mask, ids = scalar.example(b=16)
    wanted = scalar.reference(form, x, y, x_mask, y_mask, ids, 0.2)
    mesh = mesh_lib.make_mesh({"data": 8})
    values = map(jnp.asarray, (x, y, x_mask, y_mask, ids, np.float32(0.2)))
    with jax.set_mesh(mesh):
        ring = jax.jit(
            jax.value_and_grad(
                lambda *a: loss(form, 1, *a, None), argnums=(0, 1), has_aux=True
            )
        )
        (_, (each, _)), (dx, dy) = ring(*on(mesh, values))
    for found, exact in zip((each, dx, dy), (wanted[0], *wanted[2:]), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=2e-6)


def messages(form, shape, *, backward):
    """Of the compiled program: (kinds but all-reduce, all-reduces)."""
    mesh = mesh_lib.make_mesh(shape)
    values = on(mesh, arguments(b=64, n=1))

    def terms(*values):
        return loss(form, 4, *values)[1][1].x_others

    f = everything(form, 4) if backward else jax.jit(terms)
    with jax.set_mesh(mesh):
        text = f.lower(*values).compile().as_text()
    found = traffic.collectives(text)
    reduced = [c for c in found if c.kind == "all-reduce"]
    return [c for c in found if c not in reduced], reduced


@pytest.mark.parametrize("form", DISTINCT)
def test_two_messages_a_hop_and_nothing_else_crosses(form):
    """Forward and backward send rows ahead and sums behind; scalars are reduced.

    docs/scaling.md counts on these bytes.
    """
    sent, reduced = messages(form, {"data": 8}, backward=True)
    assert {c.kind for c in sent} == {"collective-permute"}
    assert [c.times for c in sent] == [8] * 4
    vector = E + 1  # the bias is a coordinate
    words = (vector + 2) + 2 + (vector + 4) + vector
    assert sum(c.sent for c in sent) == 4 * 64 * words
    assert all(c.bytes <= 16 for c in reduced)


def test_an_outer_axis_is_crossed_once_per_turn_of_the_inner_one():
    sent, reduced = messages("official", {"replica": 2, "data": 4}, backward=False)
    assert not reduced
    assert sorted(c.times for c in sent) == [2, 2, 8, 8]
    assert all(c.crosses(4) == (c.times == 2) for c in sent)


def temporary(form, chunk, b, devices=1):
    """Bytes per device beside arguments and results; nothing is allocated."""
    mesh = mesh_lib.make_mesh({"data": devices}, devices=jax.devices()[:devices])
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    shapes = [
        jax.ShapeDtypeStruct(
            (b, *v.shape[1:]) if v.ndim else (),
            v.dtype,
            sharding=rows if v.ndim else whole,
        )
        for v in arguments(n=2)
    ]
    with jax.set_mesh(mesh):
        compiled = everything(form, chunk).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_per_device_does_not_grow_with_the_global_batch():
    two, eight = (temporary("sigmoid", 64, 128 * n, devices=n) for n in (2, 8))
    assert eight <= 1.05 * two


def test_memory_of_one_device_is_linear_in_its_batch():
    small, large = (temporary("official", 64, b) for b in (512, 2048))
    assert large < 4.2 * small
    dense = [temporary("official", None, b) for b in (512, 2048)]
    assert dense[1] > 14 * dense[0]
    assert dense[1] > 8 * large


@pytest.mark.parametrize("shape", [None, LAYOUTS[0]], ids=str)
def test_many_cotangents_at_once(shape):
    """A vmapped pullback, as `jax.jacrev` makes it, equals one after the other."""
    values = arguments(b=16)
    mesh = mesh_lib.make_mesh(shape or {}, devices=None if shape else jax.devices()[:1])

    def each(x, chunk):
        return loss("official", chunk, x, *values[1:])[1][0]

    with jax.set_mesh(mesh):
        jacobian = jax.jit(jax.jacrev(functools.partial(each, chunk=2)))
        found = jax.device_get(jacobian(values[0]))
    wanted = jax.jit(jax.jacrev(functools.partial(each, chunk=None)))(values[0])
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_the_best_logit_has_no_derivative():
    x, y, x_mask, y_mask, ids, *_ = arguments(b=8)

    @jax.jit
    @jax.grad
    def slope(x):
        sides = pairwise.Rows(x, x_mask, ids), pairwise.Rows(y, y_mask, ids)
        return pairwise.streamed(pairwise.LOG_SUM_EXP, 3, *sides)[0].best.sum()

    assert not slope(x).any()
