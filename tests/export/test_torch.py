"""torch_encoder.py of an export computes what the exporter did; needs torch."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from mmssl import models, trees
from mmssl.export import architecture, forward
from mmssl.export import encoder as encoders
from mmssl.export import program as programs
from tests.export import exports

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.usefixtures("compile_quickly")


def reference(folder: pathlib.Path) -> Any:
    """The module that lies in the export."""
    path = folder / "torch_encoder.py"
    spec = importlib.util.spec_from_file_location("torch_encoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pathlib.Path]:
    """Name of a variant -> its export, written once."""
    root = tmp_path_factory.mktemp("torch")

    def get(name: str) -> pathlib.Path:
        if not (root / name).is_dir():
            exports.write(root / name, exports.VARIANTS[name])
        return root / name

    return get


@pytest.fixture(params=exports.VARIANTS)
def folder(
    request: pytest.FixtureRequest, written: Callable[[str], pathlib.Path]
) -> pathlib.Path:
    return written(request.param)


def test_every_output_is_ours(folder: pathlib.Path) -> None:
    theirs = reference(folder).Encoder.load(folder)
    with encoders.from_folder(folder, batch=3) as ours:
        for modality, rows in exports.media(ours).items():
            expected = ours._outputs(modality, rows)
            with torch.no_grad():
                found = theirs(modality, torch.as_tensor(rows))
            assert found.keys() == expected.keys()
            for space, want in expected.items():
                close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(want).max()}
                np.testing.assert_allclose(found[space], want, **close, err_msg=space)
        assert theirs.default_spaces == ours.default_spaces


def test_its_own_check_finds_no_difference(folder: pathlib.Path) -> None:
    far = reference(folder).differences(folder)
    assert (
        far.keys()
        == json.loads((folder / "manifest.json").read_text())["forward"][
            "outputs"
        ].keys()
    )
    assert max(far.values()) < 1e-5


@pytest.mark.parametrize("wrong", [3.0, float("nan")])
def test_its_own_check_fails(
    wrong: float,
    written: Callable[[str], pathlib.Path],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(written("specific"), tmp_path / "e")
    module = reference(tmp_path / "e")
    module.check(tmp_path / "e")
    path = tmp_path / "e" / "forward.safetensors"
    expected = module.load_file(path)
    expected["video/va"] = wrong * expected["video/va"]
    path.write_bytes(safetensors_torch.save(expected))
    with pytest.raises(SystemExit) as stopped:
        module.check(tmp_path / "e")
    # A message as its argument is printed, and the exit code 1.
    assert str(stopped.value) == "not the exporter's, tolerance 0.02: video/va"
    assert "video/pooled" in capsys.readouterr().out


def test_the_calls_of_its_text(written: Callable[[str], pathlib.Path]) -> None:
    folder = written("specific")
    theirs = reference(folder).Encoder.load(folder)
    with encoders.from_folder(folder, batch=3) as ours:
        raw = exports.media(ours)
        close = {"rtol": 1e-5, "atol": 1e-5}
        video = ours.encode_video(raw["video"])
        np.testing.assert_allclose(theirs.encode_video(raw["video"]), video, **close)
        found = theirs.encode_video(raw["video"], space="va")
        np.testing.assert_allclose(
            found, ours.encode_video(raw["video"], space="va"), **close
        )
        pcm = (raw["audio"] * 32768).astype(np.int16)
        audio = ours.encode_audio(pcm)
        np.testing.assert_allclose(theirs.encode_audio(pcm), audio, **close)
        ids = np.zeros((1, 20), np.int64)
        ids[0, :3] = [2, 3, 1]
        text = ours.encode_text("Red ball flies")
        np.testing.assert_allclose(theirs.encode_text(ids), text, **close)
    with pytest.raises(ValueError, match=r"video: expected \[b, 4, 16, 24, 3\]"):
        theirs.encode_video(raw["video"][:, :2])


def test_wrong_weights_are_refused(
    written: Callable[[str], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(written("sound"), tmp_path / "e")
    module = reference(tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    tensors = module.load_file(tmp_path / "e" / "model.safetensors")
    name = sorted(tensors)[0]
    rest = {n: x for n, x in tensors.items() if n != name}
    for bad in (rest, tensors | {"model/more": tensors[name]}):
        with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
            module.Encoder(config["architecture"]).load_state_dict(module.renamed(bad))
    data = bytearray((tmp_path / "e" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "e" / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="differs from what was exported"):
        module.Encoder.load(tmp_path / "e")


def test_it_needs_torch_and_safetensors_only(
    written: Callable[[str], pathlib.Path],
) -> None:
    folder = written("shared")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'numpy', 'mmssl')))\n"
        f"sys.argv = ['torch_encoder.py']; sys.path.insert(0, {str(folder)!r})\n"
        "import torch_encoder as t\n"
        f"print(max(t.differences({str(folder)!r}).values()) < 1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["shared", "specific"])
@pytest.mark.parametrize("size", models.SIZES)
def test_every_preset(
    size: str, backbone: str, written: Callable[[str], pathlib.Path]
) -> None:
    """At their initialisation, in the sizes that are trained."""
    variant = exports.VARIANTS[backbone]
    sizes = {"size": size, "scan": True, "word_width": None, "pooled_width": None}
    program = programs.build({"model": variant.model | sizes, "heads": variant.heads})
    key = jax.random.key(0)
    made = {n: h.init(key, program.model.widths) for n, h in program.heads.items()}
    held = {
        "model": program.model.init(key),
        "heads": {n: {"params": p, "state": s} for n, (p, s) in made.items()},
    }
    module = reference(written("sound"))
    theirs = module.Encoder(json.loads(json.dumps(architecture.describe(program))))
    named = trees.named_leaves(jax.device_get(held))
    tensors = {name: torch.tensor(x) for name, x in named.items()}
    theirs.load_state_dict(module.renamed(tensors))
    run = jax.jit(program, static_argnums=0)
    for modality, tower in theirs.towers.items():
        shape = program.media(modality, 2).shape
        rows = forward.fixed_input(modality, shape, vocab=tower["vocab"])
        with torch.no_grad():
            found = theirs(modality, torch.as_tensor(rows))
        gaps = forward.difference(
            {name: x.numpy() for name, x in found.items()},
            jax.device_get(run(modality, held, rows)),
        )
        print(size, backbone, modality, max(gaps.values()))
        assert max(gaps.values()) < 1e-5
