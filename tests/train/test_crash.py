"""A fault at every write of a checkpoint: nothing half-written is ever restored."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmssl.train.checkpoint import Checkpointer
from tests.train import crash, toy_run

pytestmark = pytest.mark.slow


def crashed(root: pathlib.Path, mode: str, *numbers: int) -> list[pathlib.Path]:
    """Folders of checkpoints, each left behind by one fault, in their order."""
    run = subprocess.run(
        [sys.executable, "-m", crash.__name__, str(root), mode, *map(str, numbers)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == (-9 if mode == "kill" else 0), run.stderr[-2000:]
    return sorted(root.iterdir(), key=lambda folder: int(folder.name))


def restored(folder: pathlib.Path) -> int:
    """The step that is restored, after a look at every bit of it."""
    with Checkpointer(folder) as checkpointer:
        found = checkpointer.restore(jax.eval_shape(toy_run.fresh_state))
        for step in checkpointer.steps():
            checkpointer.verify(step)
    assert found.warnings == ()
    assert found.data_state == {"next": found.step}
    jax.tree.map(np.testing.assert_array_equal, found.state, crash.state_at(found.step))
    return found.step


def test_a_disk_that_is_full_from_the_nth_write_on(tmp_path):
    folders = crashed(tmp_path, "full")
    steps = [restored(folder) for folder in folders]
    told = [(folder / "told").read_text() for folder in folders]
    assert len(folders) > 15
    assert told[-1] == ""
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    for step, text in zip(steps[:-1], told[:-1], strict=True):
        assert "No space left on device" in text
        assert f"the last good checkpoint is {step}" in text
        assert ("was saved, but an older one" in text) == (step == 2)


def test_array_data_that_does_not_fit(tmp_path):
    for folder in crashed(tmp_path, "limit", 0, 300, 1000):
        assert restored(folder) == 1
        assert "checkpoint 2 could not be saved" in (folder / "told").read_text()


@pytest.mark.parametrize("number", [7, 15])
def test_a_kill_within_a_save(tmp_path, number):
    """With array data half there; and with all there but the manifest's name."""
    (folder,) = crashed(tmp_path, "kill", number)
    assert (folder / "2").is_dir()
    assert restored(folder) == 1
    # The next run clears up.
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(crash.state_at(3), {"next": 3}, step=3)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]
    assert not (folder / "2").exists()
    assert restored(folder) == 3
