"""torch_encoder.py of an export computes what the exporter did; needs torch."""

import dataclasses
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
from mmssl.export import encoder as encoders
from mmssl.export.safetensors_export import export

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.usefixtures("compile_quickly")

WORDS = ("red", "ball", "bounces", "blue", "box", "slides")
SIZE = {"layers": 2, "width": 16, "mlp": 32, "heads": 2}
VIDEO = {"frames": 4, "size": [16, 24], "patch": [2, 8, 8]}
TEXT = {"vocab": len(WORDS) + 2, "length": 20, "candidates": 3}
WAVE = {"samples": 800, "rate": 1600, "patch": 80}
LOG_MEL = {
    "tokenizer": "log_mel",
    "samples": 1536,
    "rate": 3200,
    "hop": 64,
    "mels": 10,
    "patch": [4, 5],
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Keyword arguments of a model and of its heads, by objective."""

    model: dict[str, Any]
    heads: dict[str, Any]
    dtype: str = "float32"


VARIANTS = {
    "specific": Variant(
        model={
            "backbone": "specific",
            "size": {"video": SIZE, "audio": SIZE | {"width": 8}, "text": SIZE},
            "video": VIDEO,
            "audio": WAVE,
            "text": TEXT,
            "word_width": 12,
        },
        heads={"contrast": {"kind": "official", "va": 8, "vt": 6}},
    ),
    "shared": Variant(
        model={
            "size": SIZE,
            "video": VIDEO | {"motion": True},
            "audio": LOG_MEL,
            "text": TEXT,
            "word_width": 12,
            "pooled_width": 10,
            "scan": True,
        },
        heads={
            "a": {"kind": "joint", "features": 6, "hidden": 12},
            "b": {"kind": "joint", "features": 5, "norm": False},
        },
    ),
    "sound": Variant(
        model={"size": SIZE, "audio": WAVE},
        heads={},
        dtype="bfloat16",
    ),
    "paper": Variant(
        model={"backbone": "specific", "size": SIZE, "video": VIDEO, "text": TEXT},
        heads={"a": {"kind": "paper", "modalities": ["video", "text"]}},
    ),
}


def stirred(tree: Any, seed: int) -> Any:
    """No array keeps its initial zeros or ones: what is left out would not show."""
    rng = np.random.default_rng(seed)
    return trees.map_named(
        lambda _, x: x + 0.1 * np.abs(rng.standard_normal(x.shape)).astype(x.dtype),
        tree,
    )


def write(out: pathlib.Path, variant: Variant) -> None:
    model = models.build_model(**variant.model)
    heads = {name: models.build_heads(**kw) for name, kw in variant.heads.items()}
    made = {n: head.init(jax.random.key(1), model.widths) for n, head in heads.items()}
    words = out.with_suffix(".txt")
    words.write_text("\n".join(WORDS) + "\n")
    audio = variant.model.get("audio", WAVE)
    data: dict[str, Any] = {"seconds": audio["samples"] / audio["rate"]}
    data |= {m: variant.model.get(m) for m in ("video", "audio", "text")}
    export(
        params=stirred(model.init(jax.random.key(0)), 0),
        heads={n: (stirred(p, 1), stirred(s, 2)) for n, (p, s) in made.items()},
        model_kwargs=variant.model,
        heads_kwargs=variant.heads,
        data_kwargs=data,
        tokenizer_path=words,
        run_info={},
        out=out,
        dtype=variant.dtype,
    )


def reference(folder: pathlib.Path) -> Any:
    """The module that lies in the export."""
    path = folder / "torch_encoder.py"
    spec = importlib.util.spec_from_file_location("torch_encoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def media(encoder: encoders.Encoder) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kwargs = encoder.config["model"]
    out: dict[str, np.ndarray] = {}
    if kwargs.get("video"):
        shape = (3, kwargs["video"]["frames"], *kwargs["video"]["size"], 3)
        out["video"] = rng.integers(0, 256, shape, np.uint8)
    if kwargs.get("audio"):
        shape = (3, kwargs["audio"]["samples"])
        out["audio"] = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    if kwargs.get("text"):
        out["text"] = rng.integers(1, len(WORDS) + 2, (3, 20)).astype(np.int32)
        out["text"][1, 5:] = out["text"][2, 1:] = 0
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pathlib.Path]:
    """Name of a variant -> its export, written once."""
    root = tmp_path_factory.mktemp("torch")

    def get(name: str) -> pathlib.Path:
        if not (root / name).is_dir():
            write(root / name, VARIANTS[name])
        return root / name

    return get


@pytest.fixture(params=VARIANTS)
def folder(
    request: pytest.FixtureRequest, written: Callable[[str], pathlib.Path]
) -> pathlib.Path:
    return written(request.param)


def test_every_output_is_ours(folder: pathlib.Path) -> None:
    theirs = reference(folder).Encoder.load(folder)
    with encoders.from_folder(folder, batch=3) as ours:
        for modality, rows in media(ours).items():
            given = rows[:, None] if modality == "text" else rows
            expected = ours._outputs(modality, given)
            with torch.no_grad():
                found = theirs(modality, torch.as_tensor(rows))
            assert {s.replace("pooled", "") for s in found} == expected.keys()
            for space, want in expected.items():
                have = found[space or "pooled"].numpy()
                np.testing.assert_allclose(
                    have, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=space
                )
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


def test_the_calls_of_its_text(written: Callable[[str], pathlib.Path]) -> None:
    folder = written("specific")
    theirs = reference(folder).Encoder.load(folder)
    with encoders.from_folder(folder, batch=3) as ours:
        raw = media(ours)
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
