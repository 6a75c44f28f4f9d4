"""Checkpoints: what is restored is what was saved, or it is refused by name."""

import dataclasses
import errno
import os
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmssl import trees
from mmssl.errors import AgainError, UserError
from mmssl.gradients import Curriculum, Harmonizer, Subset
from mmssl.train import integrity
from mmssl.train.checkpoint import Checkpointer
from tests.train import toy_run


def state_at(step: int) -> dict:
    return {
        "a": jnp.arange(6.0).reshape(2, 3) + step,
        "b": {"c": jnp.full((4,), step, jnp.bfloat16), "step": jnp.int32(step)},
    }


def assert_state(state, step: int) -> None:
    for name, leaf in trees.named_leaves(state_at(step)).items():
        found = trees.named_leaves(state)[name]
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(leaf))


def fill(directory: pathlib.Path, steps, **options) -> None:
    with Checkpointer(directory, **options) as checkpointer:
        for step in steps:
            checkpointer.save(state_at(step), {"next": step}, step=step)


def payload(directory: pathlib.Path) -> list[pathlib.Path]:
    """Files with array data, the largest last."""
    files = [p for p in directory.rglob("*") if p.is_file() and p.parent.name == "d"]
    return sorted(files, key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path, *, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: pathlib.Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def longer(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def test_round_trip_and_retention(tmp_path):
    fill(tmp_path, [1, 2, 3, 10], keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "3"]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [3, 10]
        assert checkpointer.latest() == 10
        restored = checkpointer.restore(jax.eval_shape(lambda: state_at(0)))
        assert (restored.step, restored.data_state) == (10, {"next": 10})
        assert restored.warnings == ()
        assert_state(restored.state, 10)
        assert_state(checkpointer.restore(state_at(0), step=3).state, 3)


def test_saved_state_may_be_donated_at_once(tmp_path):
    add = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
    state = {"x": jnp.zeros((512, 256))}
    with Checkpointer(tmp_path, keep=9) as checkpointer:
        for step in range(4):
            checkpointer.save(state, {}, step=step)
            for _ in range(3):
                state = add(state)
        checkpointer.wait()
        for step in range(4):
            x = checkpointer.restore(state, step=step).state["x"]
            assert np.asarray(x == 3.0 * step).all()


def test_restores_to_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("x", "y"))
    values = jnp.arange(64.0).reshape(8, 8)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save({"x": jax.device_put(values, rows)}, {}, step=1)
        checkpointer.wait()
        three = jax.make_mesh((2, 2, 2), tuple("abc"), axis_types=(AxisType.Auto,) * 3)
        targets = (
            NamedSharding(mesh, PartitionSpec(None, "x")),
            NamedSharding(three, PartitionSpec(("c", "a"), "b")),
            NamedSharding(three, PartitionSpec()),
            jax.sharding.SingleDeviceSharding(jax.devices()[3]),
        )
        for target in targets:
            like = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=target)}
            x = checkpointer.restore(like).state["x"]
            assert x.sharding.is_equivalent_to(target, 2)
            np.testing.assert_array_equal(np.asarray(x), np.asarray(values))


@pytest.mark.parametrize("where", [0, 100, -1])
def test_flipped_byte_is_named_and_passed_over(tmp_path, where):
    fill(tmp_path, [1, 2])
    damaged = payload(tmp_path / "2")[-1]
    flip(damaged, at=where)
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(state_at(0))
        assert restored.step == 1
        assert_state(restored.state, 1)
        (warning,) = restored.warnings
        assert str(damaged) in warning
        assert "checkpoint 2 is damaged" in warning
        with pytest.raises(UserError, match="checkpoint 2 is damaged"):
            checkpointer.restore(state_at(0), step=2)
        # The next save sets it aside, so that it neither counts nor pushes out others.
        checkpointer.save(state_at(2), {"next": 2}, step=2)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
        assert (tmp_path / "2.damaged").is_dir()
        assert_state(checkpointer.restore(state_at(0)).state, 2)


def test_every_file_is_covered(tmp_path):
    fill(tmp_path / "good", [1])
    files = [p for p in (tmp_path / "good" / "1").rglob("*") if p.is_file()]
    assert len(files) > 3
    for file in files:
        for fault in (flip, cut, longer, pathlib.Path.unlink):
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "good", copy)
            fault(copy / file.relative_to(tmp_path / "good"))
            with pytest.raises(integrity.DamagedError, match=file.name):
                Checkpointer(copy).verify(1)
            shutil.rmtree(copy)


def test_a_changed_manifest_is_damage_too(tmp_path):
    fill(tmp_path, [1])
    manifest = tmp_path / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"next": 1', '"next": 2'))
    with pytest.raises(integrity.DamagedError, match="does not match its own SHA-256"):
        Checkpointer(tmp_path).verify(1)


@pytest.mark.parametrize("name", ["manifest.json", "array data"])
def test_a_file_closed_to_us_is_not_taken_for_damage(tmp_path, monkeypatch, name):
    fill(tmp_path, [1, 2])
    closed = tmp_path / "2" / name if "." in name else payload(tmp_path / "2")[-1]
    fault, read = errno.EACCES, open

    def opened(file, *args, **kwargs):  # as root, chmod closes nothing
        if str(file) == str(closed):
            raise OSError(fault, os.strerror(fault), str(file))
        return read(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", opened)
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(UserError, match=f"{closed} cannot be read: Permission"):
            checkpointer.restore(state_at(0))
        fault = errno.EIO
        restored = checkpointer.restore(state_at(0))
    assert restored.step == 1
    assert f"{closed} cannot be read: Input/output" in restored.warnings[0]


def test_incomplete_folders_do_not_count(tmp_path):
    fill(tmp_path, [3])
    (tmp_path / "9").mkdir()
    shutil.copytree(tmp_path / "3", tmp_path / "7")
    (tmp_path / "7" / "manifest.json").unlink()
    (tmp_path / "8" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() == 3
        assert checkpointer.restore(state_at(0)).step == 3
        checkpointer.save(state_at(7), {}, step=7)
        checkpointer.wait()
        assert checkpointer.restore(state_at(0)).step == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "7"]


def test_an_owner_without_a_name(tmp_path, monkeypatch):
    def nameless(uid):  # as in a container that runs as any user
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nameless)
    fill(tmp_path, [1])
    assert Checkpointer(tmp_path).restore(state_at(0)).step == 1


def test_nothing_to_restore(tmp_path):
    checkpointer = Checkpointer(tmp_path / "none")
    assert checkpointer.latest() is None
    with pytest.raises(UserError, match=r"expected a checkpoint.*found none"):
        checkpointer.restore(state_at(0))
    fill(tmp_path, [1])
    with pytest.raises(UserError, match=r"expected checkpoint 5 .*found \[1\]"):
        Checkpointer(tmp_path).restore(state_at(0), step=5)
    flip(payload(tmp_path / "1")[0])
    with pytest.raises(UserError, match="no undamaged checkpoint is left"):
        Checkpointer(tmp_path).restore(state_at(0))


def test_other_arrays_are_listed_by_name(tmp_path):
    fill(tmp_path, [1])
    like = state_at(0)
    like["a"] = jnp.zeros((3, 2))
    like["b"]["new"] = like["b"].pop("c")
    like["b"]["step"] = jnp.float32(0)
    with pytest.raises(UserError) as error:
        Checkpointer(tmp_path).restore(like)
    for line in (
        "missing b/new",
        "unexpected b/c",
        "changed a: saved float32[2, 3], expected float32[3, 2]",
        "changed b/step: saved int32[], expected float32[]",
    ):
        assert line in str(error.value)


def test_another_configuration_is_refused(tmp_path):
    fill(tmp_path, [1], fingerprint="abc")
    with pytest.raises(UserError, match="fingerprint abc, expected abd"):
        Checkpointer(tmp_path, fingerprint="abd").restore(state_at(0))
    assert Checkpointer(tmp_path).restore(state_at(0)).step == 1


def test_failure_in_the_background_surfaces(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state_at(1), {}, step=1)
        checkpointer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(integrity, "_content", full)
            checkpointer.save(state_at(2), {}, step=2)
            with pytest.raises(
                AgainError, match=r"2 could not be saved.*No space"
            ) as e:
                checkpointer.save(state_at(3), {}, step=3)
        assert "last good checkpoint is 1" in str(e.value)
        checkpointer.save(state_at(4), {}, step=4)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 4]
    assert threading.active_count() < 20


def test_an_unwritable_directory_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    with pytest.raises(AgainError, match="could not be saved"):
        checkpointer.save(state_at(1), {}, step=1)


def test_values_that_would_not_come_back_are_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match="x is a int64"):
        checkpointer.save({"x": np.int64(3)}, {}, step=1)
    with pytest.raises(TypeError, match="int64"):
        checkpointer.save({"x": jnp.int32(3)}, {"next": np.int64(3)}, step=1)
    for name in ("every", "keep"):
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(UserError, match=f"checkpoint.{name} must be at least 1"):
            Checkpointer(tmp_path, **wrong)


def test_training_falls_back_from_a_damaged_checkpoint(tmp_path):
    whole, _, _ = toy_run.run(tmp_path / "whole", steps=12)
    toy_run.run(tmp_path / "run", steps=9, every=3)
    flip(payload(tmp_path / "run" / "checkpoints" / "9")[-1])
    progress = toy_run.Quiet()
    state, summary, _ = toy_run.run(
        tmp_path / "run", steps=12, every=3, progress=progress
    )
    assert summary.start == 6
    assert "checkpoint 9 is damaged" in progress.notes[0]
    assert "checkpoint 9 is damaged" in (tmp_path / "run/events.jsonl").read_text()
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_harmonizers_memory_is_in_the_checkpoint(tmp_path):
    """Running sums of the audit and of the quantile: without them a resumed run would
    audit and drop as if it had just begun."""
    harmonizer = Harmonizer(
        curriculum=Curriculum(steps=9, rule="quantile", start=0.1, end=0.2),
        engine=Subset(),
    )
    state = dataclasses.replace(toy_run.fresh_state(), harmonizer=harmonizer.init())
    assert len(jax.tree.leaves(state.harmonizer)) == 9
    leaves, tree = jax.tree.flatten(state.harmonizer)
    moved = tree.unflatten([x + i for i, x in enumerate(leaves, start=1)])
    with Checkpointer(tmp_path) as checkpointer:
        saved = dataclasses.replace(state, harmonizer=moved)
        checkpointer.save(saved, {}, step=1)
        checkpointer.wait()
        restored = checkpointer.restore(jax.eval_shape(lambda: state)).state
    jax.tree.map(np.testing.assert_array_equal, restored.harmonizer, moved)
