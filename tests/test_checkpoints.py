"""`mmssl checkpoint`: what is in a workdir, whether it is whole, and out of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmssl import checkpoints, cli, trees
from mmssl.train import arrays
from mmssl.train.checkpoint import Checkpointer


def state(step=0):
    return {
        "step": jnp.int32(step),
        "params": {
            "w": jnp.arange(64.0).reshape(8, 8) + step,
            "h": jnp.full((8,), step, jnp.bfloat16),
        },
        "opt_state": {"mu": jnp.ones((8, 8)) * step, "on": jnp.array([True, False])},
    }


def split(tree, *, rows, columns):
    mesh = jax.make_mesh((rows, columns), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def place(x):
        spec = PartitionSpec(*("a", "b")[: x.ndim]) if x.size > 7 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def fill(workdir, states):
    workdir.mkdir(exist_ok=True)
    for name in ("config.json", "data.json"):
        (workdir / name).write_text("{}")
    with Checkpointer(workdir / "checkpoints", fingerprint="f") as checkpointer:
        for step, tree in states.items():
            checkpointer.save(tree, {"step": step}, step=step, metrics={"loss": 0.5})
    return str(workdir)


@pytest.fixture
def workdir(tmp_path):
    return fill(tmp_path / "run", {3: state(3), 6: state(6)})


def run(capsys, *arguments):
    code = cli.main(["checkpoint", *arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_verify_names_the_damaged_file(workdir, capsys, tmp_path):
    code, out, _ = run(capsys, "verify", workdir)
    assert code == 0
    assert out.count("ok") == 2
    folder = tmp_path / "run" / "checkpoints" / "6" / "state"
    path = max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, out, _ = run(capsys, "verify", workdir)
    assert code == 1
    assert f"{path} does not match its SHA-256" in out
    assert out.count("ok") == 1
    assert run(capsys, "verify", workdir, "--step", "3")[0] == 0
    # What reads it passes over it, and says so.
    code, out, err = run(capsys, "inspect", workdir, "--hash")
    assert code == 0
    assert out.startswith("step 3\n")
    assert "checkpoint 6 is damaged" in err


def test_the_hash_is_of_the_content_whatever_the_mesh(workdir, tmp_path, capsys):
    out = run(capsys, "inspect", workdir, "--hash")[1]
    step, content, data = (line.split(maxsplit=1) for line in out.splitlines())
    assert (step, data) == (["step", "6"], ["data", '{"step": 6}'])
    for rows, columns in ((8, 1), (2, 4)):
        tree = split(state(6), rows=rows, columns=columns)
        other = fill(tmp_path / f"{rows}x{columns}", {6: tree})
        assert run(capsys, "inspect", other, "--hash")[1] == out
    seen = {content[1]}
    for name, change in (
        ("value", lambda x: x.at[0].add(1) if x.ndim else x),
        ("shape", lambda x: x[None]),
    ):
        tree = state(6)
        tree["params"]["h"] = change(tree["params"]["h"])
        other = fill(tmp_path / name, {6: tree})
        seen.add(run(capsys, "inspect", other, "--hash")[1].split()[3])
    parts = run(capsys, "inspect", workdir, "--hash", "--names", "params/.*")[1]
    seen.add(parts.split()[3])
    assert len(seen) == 4


def test_a_large_state_is_hashed_part_by_part(workdir, monkeypatch):
    opened = checkpoints.open_one(workdir)
    whole = opened.content_hash()
    monkeypatch.setattr(arrays, "AT_ONCE", 100)
    assert opened.content_hash() == whole


def test_inspect_lists_names_shapes_and_sizes(workdir, capsys):
    out = run(capsys, "inspect", workdir, "--step", "3")[1]
    assert out.startswith("step 3\nsaved 20")
    rows = [line.split() for line in out.splitlines()]
    assert ["params/w", "[8,", "8]", "float32", "64"] in rows
    assert ["params/h", "[8]", "bfloat16", "8"] in rows
    assert ["params", "2", "72", "0.0"] in rows
    out = run(capsys, "inspect", workdir, "--names", "params/.*")[1]
    assert "opt_state" not in out
    code, _, err = run(capsys, "inspect", workdir, "--names", "w")
    assert code == 2
    assert "matches no whole name of the 5 arrays" in err


def test_convert_to_safetensors(workdir, tmp_path, capsys):
    out = tmp_path / "params.safetensors"
    code, text, _ = run(
        capsys, "convert", workdir, "--out", str(out), "--names", "params/.*"
    )
    assert (code, text) == (0, f"{out}: 2 arrays of step 6\n")
    found = safetensors.numpy.load_file(out)
    want = trees.named_leaves({"params": state(6)["params"]})
    assert found.keys() == want.keys()
    for name, array in want.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], np.asarray(array))
    with safetensors.safe_open(out, framework="numpy") as file:
        assert json.loads(file.metadata()["data_state"]) == {"step": 6}
    code, _, err = run(capsys, "convert", workdir, "--out", str(out))
    assert code == 2
    assert "exists already" in err


def test_convert_to_a_workdir_of_one_device(tmp_path, capsys):
    workdir = fill(tmp_path / "pod", {6: split(state(6), rows=2, columns=4)})
    out = str(tmp_path / "one")
    assert run(capsys, "convert", workdir, "--out", out)[0] == 0
    want = run(capsys, "inspect", workdir, "--hash")[1]
    assert run(capsys, "inspect", out, "--hash")[1] == want
    assert run(capsys, "verify", out)[0] == 0
    assert (tmp_path / "one" / "config.json").read_text() == "{}"
    with Checkpointer(tmp_path / "one" / "checkpoints", fingerprint="f") as saved:
        restored = saved.restore(state())
    assert (restored.step, restored.data_state) == (6, {"step": 6})
    code, _, err = run(capsys, "convert", workdir, "--out", out)
    assert code == 2
    assert "already there" in err


def test_a_folder_without_checkpoints(tmp_path, capsys, workdir):
    for command in ("verify", "inspect"):
        code, _, err = run(capsys, command, str(tmp_path))
        assert code == 2
        assert "expected a workdir with checkpoints, found none" in err
    code, _, err = run(capsys, "inspect", workdir, "--step", "5")
    assert "checkpoint 5, found [3, 6]" in err
