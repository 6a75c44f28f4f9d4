"""The step compiles once, and what it compiled is kept."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmssl.errors import UserError
from mmssl.train import compilation, profile
from mmssl.train.compilation import CompiledOnce, keep_compiled
from tests.train import toy_run


def double():
    traced = []

    @jax.jit
    def step(state, raw):
        traced.append(raw["x"].shape)
        return {"w": state["w"] + raw["x"].sum()}, state["w"] * 2

    return step, traced


def test_it_compiles_at_the_first_call_only():
    step, traced = double()
    once = CompiledOnce(step)
    state = {"w": jnp.ones(())}
    for _ in range(3):
        state, output = once(state, {"x": jnp.ones((4, 2))})
    assert (float(state["w"]), float(output)) == (25.0, 34.0)
    assert traced == [(4, 2)]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (jnp.ones((3, 2)), "batch/x: float32[4, 2] -> float32[3, 2]"),
        (jnp.ones((4, 2), jnp.bfloat16), "batch/x: float32[4, 2] -> bfloat16[4, 2]"),
    ],
)
def test_another_shape_or_dtype_is_an_error_that_names_it(changed, told):
    step, traced = double()
    once = CompiledOnce(step)
    state, _ = once({"w": jnp.ones(())}, {"x": jnp.ones((4, 2))})
    with pytest.raises(UserError) as error:
        once(state, {"x": changed})
    assert told in str(error.value)
    assert "state/w" not in str(error.value)
    assert len(traced) == 1
    # Nothing was lost: the same step still takes what it was made for.
    once(state, {"x": jnp.ones((4, 2))})


def test_another_sharding_is_an_error_that_names_it():
    step, _ = double()
    once = CompiledOnce(step)
    mesh = jax.make_mesh((4,), ("x",))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    whole = NamedSharding(mesh, PartitionSpec())
    state = {"w": jax.device_put(jnp.ones(()), whole)}
    x = jnp.ones((4, 2))
    state, _ = once(state, {"x": jax.device_put(x, rows)})
    state = {"w": jax.device_put(state["w"], whole)}
    with pytest.raises(UserError, match=r"batch/x: .*P\('x',\).* -> .*P\(\)"):
        once(state, {"x": jax.device_put(x, whole)})


def test_the_loop_stops_at_a_batch_of_another_shape(tmp_path):
    class Shrinking(toy_run.Pipeline):
        def __iter__(self):
            for raw, *rest in super().__iter__():
                if self.index == 4:
                    with jax.transfer_guard("allow"):
                        raw = jax.tree.map(lambda x: x[:3], raw)
                yield raw, *rest

    step = CompiledOnce(toy_run.STEP)
    with pytest.raises(UserError, match=r"batch/media/audio: .*\[4, 6\].*\[3, 6\]"):
        toy_run.run(tmp_path, steps=9, pipeline=Shrinking(), step_fn=step)


SCRIPT = """
import logging, sys
import jax, jax.numpy as jnp
from mmssl.train.compilation import keep_compiled
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(keep_compiled())
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
print(sum(name.endswith("cache_hits") for name in hits))
"""


def compiled_in(environment) -> tuple[str, int]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"JAX_PLATFORMS": "cpu", "HOME": "/nowhere", **environment},
        cwd=toy_run.pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "AOT result" not in run.stderr, run.stderr
    out = run.stdout.split()
    return out[-2], int(out[-1])


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    caches = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = str(tmp_path / "mmssl" / "compiled" / platform.node())
    assert compiled_in(caches) == (folder, 0)
    found, hits = compiled_in(caches)
    assert found == folder
    assert hits > 0


@pytest.fixture
def named_folder(monkeypatch):
    """As if JAX's variables had switched the cache on, and named a folder."""
    monkeypatch.setattr(compilation, "_quieten", lambda: None)
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)


def test_a_folder_that_is_named_comes_first(named_folder):
    assert keep_compiled() == "/elsewhere"


def test_switched_off_nothing_is_kept():
    assert keep_compiled() is None  # as for all tests


def test_a_profile_of_two_steps(tmp_path):
    traced = profile.Profile(tmp_path / "profile", (3, 4))
    progress = toy_run.Quiet()
    toy_run.run(tmp_path, steps=6, profile=traced, progress=progress)
    assert "profile of steps 3 to 4" in " ".join(progress.notes)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # Ended before its last step: what there is is written.
    traced = profile.Profile(tmp_path / "cut", (2, 99))
    toy_run.run(tmp_path / "b", steps=3, profile=traced)
    assert list((tmp_path / "cut").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(3,), (4, 3), (0, 2), (1, 2, 3)])
def test_a_profile_of_no_steps_is_refused(tmp_path, steps):
    with pytest.raises(UserError, match=r"log\.profile"):
        profile.Profile(tmp_path, steps)
