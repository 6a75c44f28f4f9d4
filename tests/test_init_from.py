"""Starting from what is there: by name, with every difference told or refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmssl import init_from, trees
from mmssl.errors import UserError
from mmssl.train.checkpoint import Checkpointer
from tests.train import toy_run


def state(heads=("va",), *, seed=0, classes=3, ema=False):
    base = toy_run.fresh_state()
    params = {
        "w": jax.random.normal(jax.random.key(seed), (6, 3)),
        "b": jnp.full((3,), seed, jnp.float32),
    }
    heads = {
        "contrast": {
            name: jax.random.normal(jax.random.key(seed + 1), (3, classes))
            for name in heads
        }
    }
    return dataclasses.replace(
        base,
        params=params,
        heads=heads,
        opt_state=toy_run.TX.init({"params": params, "heads": heads}),
        extras={"contrast": {"mean": jnp.full((3,), seed, jnp.float32)}},
        ema=jax.tree.map(jnp.copy, {"params": params, "heads": heads}) if ema else {},
    )


@pytest.fixture
def workdir(tmp_path):
    """Of a run with one head, trained a little: two checkpoints."""
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(state(seed=step), {"next": step}, step=step)
    return str(tmp_path / "run")


def test_what_fits_is_taken_and_the_rest_is_told(workdir):
    fresh = state(heads=("va", "vt"), seed=9)
    plan = init_from.plan(fresh, path=workdir)
    assert plan.missing == ["heads/contrast/vt"]
    assert (plan.unexpected, plan.excluded) == ([], [])
    lines = "\n".join(plan.lines())
    assert "run (step 2): 4 arrays taken" in lines
    assert "missing there, start afresh: \n    heads/contrast/vt" in lines
    started, source = plan.apply(fresh), state(seed=2)
    jax.tree.map(np.testing.assert_array_equal, started.params, source.params)
    jax.tree.map(np.testing.assert_array_equal, started.extras, source.extras)
    heads, old, new = (s.heads["contrast"] for s in (started, source, fresh))
    np.testing.assert_array_equal(heads["va"], old["va"])
    np.testing.assert_array_equal(heads["vt"], new["vt"])
    # The optimizer, the step and the key are the new run's.
    for name in ("step", "opt_state", "key"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(started, name), getattr(fresh, name)
        )


def test_a_step_and_patterns(workdir):
    fresh = state(seed=9)
    plan = init_from.plan(
        fresh, path=workdir, step=1, include=["params/.*"], exclude=["params/b"]
    )
    assert plan.taken == ["params/w"]
    assert set(plan.excluded) == {
        "params/b",
        "heads/contrast/va",
        "extras/contrast/mean",
    }
    started = plan.apply(fresh)
    np.testing.assert_array_equal(started.params["w"], state(seed=1).params["w"])
    np.testing.assert_array_equal(started.params["b"], fresh.params["b"])


def test_names_there_that_are_not_here_are_left_out(workdir):
    plan = init_from.plan(state(heads=("at",), seed=9), path=workdir)
    assert plan.unexpected == ["heads/contrast/va"]
    assert "unexpected, left out" in plan.lines()[-1]


def test_another_shape_is_an_error_until_it_is_excluded(workdir):
    fresh = state(classes=5, seed=9)
    with pytest.raises(UserError) as error:
        init_from.plan(fresh, path=workdir)
    assert "heads/contrast/va: (3, 3) there, (3, 5) here" in str(error.value)
    plan = init_from.plan(fresh, path=workdir, exclude="heads/.*")
    assert plan.excluded == ["heads/contrast/va"]
    assert plan.apply(fresh).heads["contrast"]["va"].shape == (3, 5)


def test_the_average_begins_at_what_was_taken(workdir):
    fresh = state(seed=9, ema=True)
    started = init_from.plan(fresh, path=workdir, include="params/.*").apply(fresh)
    np.testing.assert_array_equal(started.ema["params"]["w"], started.params["w"])
    np.testing.assert_array_equal(
        started.ema["heads"]["contrast"]["va"], fresh.heads["contrast"]["va"]
    )
    # No memory is shared: the first step may take it all.
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(started)


def test_arrays_keep_the_shardings_and_dtypes_of_the_new_run(workdir):
    mesh = jax.make_mesh((2, 3), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("a", "b"))
    fresh = state(seed=9)
    w = jax.device_put(fresh.params["w"].astype(jnp.bfloat16), split)
    fresh = dataclasses.replace(fresh, params={**fresh.params, "w": w})
    started = init_from.plan(fresh, path=workdir).apply(fresh)
    assert started.params["w"].sharding == split
    assert started.params["w"].dtype == jnp.bfloat16
    want = state(seed=2).params["w"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(started.params["w"], want)


def test_an_export_has_names_of_its_own(tmp_path):
    saved = state(seed=2)
    arrays = {f"model/{n}": x for n, x in trees.named_leaves(saved.params).items()}
    arrays["heads/contrast/params/va"] = saved.heads["contrast"]["va"]
    arrays["heads/contrast/state/mean"] = saved.extras["contrast"]["mean"]
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({n: np.asarray(x) for n, x in arrays.items()}, path)
    fresh = state(seed=9)
    plan = init_from.plan(fresh, path=str(path))
    assert (len(plan.taken), plan.missing, plan.unexpected) == (4, [], [])
    started = plan.apply(fresh)
    for name in init_from.ROOTS:
        jax.tree.map(
            np.testing.assert_array_equal, getattr(started, name), getattr(saved, name)
        )


def test_mistakes_are_named(workdir, tmp_path):
    fresh = state(seed=9)
    for options, message in (
        ({"path": str(tmp_path)}, "neither a workdir"),
        ({"path": str(tmp_path / "x.safetensors")}, "not a readable safetensors"),
        ({"path": workdir, "step": 7}, "expected checkpoint 7"),
        ({"path": workdir, "include": ["encoder/.*"]}, "'encoder/.*' matches no"),
        ({"path": workdir, "exclude": ["("]}, "is not a regular expression"),
        ({"path": workdir, "exclude": [".*"]}, "nothing to take"),
    ):
        with pytest.raises(UserError, match=message):
            init_from.plan(fresh, **options)
