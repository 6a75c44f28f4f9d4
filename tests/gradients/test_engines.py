"""Every engine against per-sample gradients in float64 that know no engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import gradients, trees
from mmssl.errors import UserError
from mmssl.gradients import Exact, Harmonizer, LastK, Sketch, Subset, Vmap, products
from mmssl.gradients import cotangents as ct
from mmssl.gradients import sites as at
from mmssl.gradients.engines import ENCODER
from mmssl.gradients.weightings import MGDA, PCGrad
from tests.gradients import toy

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
ALL = ".*"


def two_sided(gram):
    """PCGrad's weights for two losses, from arXiv 2211.02077, eq. 2 and 3."""
    d = np.minimum(gram[:, 0, 1], 0)
    return np.stack([1 - d / gram[:, 0, 0], 1 - d / gram[:, 1, 1]], -1)


def by_rule(rule, gram, names):
    return np.asarray(rule(jnp.asarray(gram, jnp.float32), names=names, key=KEY))


def relative(found, wanted):
    return np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize(
    ("engine", "names", "options"),
    [
        (Vmap(), toy.K3, {"group": 0}),
        (Vmap(scope=ALL, chunk=3), toy.K2, {}),
        (Vmap(chunk=2), toy.K2, {"group": 2, "micro_batch": 4}),
        (Exact(), toy.K2, {}),
        (Exact(scope=ALL, chunk=4), toy.K3, {}),
        (Exact(scope=ALL), toy.K2, {"micro_batch": 2}),
        (Exact(chunk=1), toy.K2, {"group": 2, "micro_batch": 4}),
    ],
    ids=repr,
)
def test_gramian_and_gradient_are_the_explicit_ones(engine, names, options):
    grads = toy.explicit(names)
    scope = r"shared/.*" if engine.scope == ENCODER else engine.scope
    gram = toy.gram(grads, scope=scope, group=options.get("group", 1) or toy.ROWS)
    if names == toy.K2:
        rule, weights = PCGrad(), two_sided(gram)
    else:
        rule = MGDA()
        weights = by_rule(rule, gram, names)
    back = toy.run(Harmonizer(rule, engine=engine, **options), names=names)
    assert relative(back["gram"], gram) < 3e-6
    assert toy.error(back["params"], toy.weighted(grads, weights)) < 1e-5
    assert np.ptp(weights) > 0.1 or options.get("group") == 0


def traced_sites(check, **extra):
    """Calls `check` on the problem's sites, of which only shapes are computed."""
    p = toy.problem()

    def go(params):
        recorded = {n: t.record(params, p.rows) for n, t in toy.towers().items()}
        z = {n: r.encoded for n, r in recorded.items()}
        c = ct.per_loss(toy.losses, p.heads, z)
        check(at.make_sites(recorded, {**params, **extra}, c))

    jax.eval_shape(go, p.params)


def test_the_toy_takes_every_way_to_a_product():
    """Else agreement of `keep` and `tokens` would say nothing of one of them."""

    def check(sites):
        tokens = {
            path: products.prefers_tokens(site.leaf, site.uses, toy.ROWS)
            for path, site in sites.items()
            if site.leaf.kind in ("dense", "lookup")
        }
        assert not tokens["shared/layer_00/mlp"]
        assert tokens["shared/layer_01/mlp"]
        assert tokens["text/word"]
        kinds = {site.leaf.kind for site in sites.values()}
        assert kinds == {"dense", "lookup", "small"}

    traced_sites(check)


def test_every_tower_is_pulled_back_by_the_losses_that_read_it():
    def check(sites):
        uses = sites["shared/layer_00/mlp"].uses
        assert [sorted(use.deltas) for use in uses] == [[0, 1], [0], [1]]
        assert sites["audio/patch"].losses == {0}
        assert sites["video/patch"].losses == {0, 1}

    traced_sites(check)


def test_a_tower_that_no_loss_reads_costs_no_backward():
    """FLOPs of the lowered step: without text's losses, as without text's tower."""
    p, harmonizer = toy.problem(), Harmonizer(PCGrad(), engine=Exact(scope="shared/.*"))

    def flops(pair, towers):
        def go(params):
            back = gradients.backward(
                towers,
                params,
                p.rows,
                lambda h, z: toy.losses(h, z, names=pair),
                p.heads,
                harmonizer=harmonizer,
                state=harmonizer.init(),
                step=jnp.zeros((), jnp.int32),
                key=KEY,
            )
            return back.params, back.gram

        return jax.jit(go).lower(p.params).cost_analysis()["flops"]

    towers = toy.towers()
    three, full = flops(("va",), towers), flops(("va", "vt"), towers)
    assert three < 0.7 * full


def test_explicit_shares_add_up_to_the_gradient():
    """The reference itself, against one ordinary gradient of the recorded towers."""
    p = toy.problem()

    def total(params):
        z = {n: t.encode(params, p.rows) for n, t in toy.towers().items()}
        return sum(toy.losses(p.heads, z)[0].values())

    wanted = toy.weighted(toy.explicit(), np.ones((toy.ROWS, 2)))
    assert toy.error(jax.jit(jax.grad(total))(p.params), wanted) < 1e-5


METRIC = r".*(norm/.*|mlp/bias)"


def test_subset_compares_its_metric_and_all_in_fallback():
    engine = Subset(metric=METRIC, audit_every=50)
    harmonizer = Harmonizer(PCGrad(), engine=engine)
    grads = toy.explicit()
    state = harmonizer.init()
    part = toy.gram(grads, scope=f"shared/{METRIC}")
    back = toy.run(harmonizer, state=state, step=1)
    assert relative(back["gram"], part) < 3e-6
    wanted = toy.weighted(grads, two_sided(part))
    assert toy.error(back["params"], wanted) < 1e-5

    state["engine"]["fallback"] = jnp.ones(())
    whole = toy.gram(grads)
    back = toy.run(harmonizer, state=state, step=1)
    assert relative(back["gram"], whole) < 3e-6
    wanted = toy.weighted(grads, two_sided(whole))
    assert toy.error(back["params"], wanted) < 1e-5
    assert relative(part, whole) > 0.1


def monitored(engine):
    """Its Gramian; the gradient without a rule is checked on the way."""
    back = toy.run(Harmonizer(engine=engine, monitor=True))
    ones = np.ones((toy.ROWS, 2))
    assert toy.error(back["params"], toy.weighted(toy.explicit(), ones)) < 1e-5
    return np.asarray(back["gram"], np.float64)


def test_last_k_compares_the_last_blocks():
    gram = toy.gram(toy.explicit(), scope=r"shared/(layer_01/.*|norm/scale)")
    assert relative(monitored(LastK(k=1)), gram) < 3e-6


def test_a_sketch_of_many_directions_is_the_gramian():
    """Error of a product of two gradients: about size^-1/2 of their norms."""
    size = 4096
    gram = toy.gram(toy.explicit())
    scale = np.sqrt(gram[:, 0, 0] * gram[:, 1, 1])
    off = (monitored(Sketch(size=size)) - gram)[:, 0, 1] / scale
    assert 1e-4 < np.sqrt((off**2).mean()) < 1.5 * size**-0.5


def test_embedding_compares_the_cotangents_alone():
    p = toy.problem()
    z = {n: t.encode(p.params, p.rows) for n, t in toy.towers().items()}
    c = ct.per_loss(toy.losses, p.heads, z)
    flat = np.concatenate(
        [
            np.asarray(x, np.float64).reshape(2, toy.ROWS, -1)
            for x in c.encoded.values()
        ],
        axis=2,
    )
    wanted = np.einsum("kbd,lbd->bkl", flat, flat)
    assert relative(monitored(gradients.Embedding()), wanted) < 1e-5


# -- what a user can get wrong ---------------------------------------------------------


def fails(match, harmonizer, **options):
    with pytest.raises(UserError, match=match):
        toy.run(harmonizer, **options)


def test_sizes_that_do_not_divide_are_named():
    fails(r"group 3 does not divide the 8", Harmonizer(PCGrad(), group=3))
    fails(r"chunk 3 does not divide the 8", Harmonizer(PCGrad(), engine=Exact(chunk=3)))
    for wrong in ({"micro_batch": 3}, {"micro_batch": 4, "group": 3}):
        fails(r"micro_batch . must divide the batch of 8", Harmonizer(**wrong))
    with pytest.raises(UserError, match=r"harmonizer.group: expected 0 or more"):
        Harmonizer(group=-1)


@pytest.mark.parametrize("engine", [Vmap, Exact, Subset])
def test_a_scope_that_matches_nothing_is_named(engine):
    fails(r"scope 'nosuch' matches none", Harmonizer(PCGrad(), engine=engine("nosuch")))


def test_a_metric_that_matches_nothing_is_named():
    engine = Subset(metric="nosuch")
    fails(r"metric 'nosuch' matches no parameter", Harmonizer(PCGrad(), engine=engine))


def test_embedding_refuses_rules_that_use_norms():
    with pytest.raises(UserError, match=r"'embedding' is a proxy .* 'PCGrad'"):
        Harmonizer(PCGrad(), engine=gradients.Embedding())


def test_a_tower_that_records_nothing_needs_vmap():
    fails(
        r"tower 'video', which records none; use engine 'vmap'",
        Harmonizer(PCGrad(), engine=Exact()),
        recorded=False,
    )


def test_a_parameter_outside_every_leaf_is_named():
    """Its gradient would be silently missing."""
    with pytest.raises(UserError, match=r"parameters under 'stray' belong to no leaf"):
        traced_sites(lambda sites: None, stray={"gain": jnp.ones(())})


def test_gradients_keep_names_shapes_and_dtypes():
    p = toy.problem()
    back = toy.run(Harmonizer(PCGrad(), engine=Exact()))
    found, wanted = trees.named_leaves(back["params"]), trees.named_leaves(p.params)
    assert {n: (g.shape, g.dtype) for n, g in found.items()} == {
        n: (x.shape, x.dtype) for n, x in wanted.items()
    }
