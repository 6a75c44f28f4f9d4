"""StableHLO programs of an export: alone, they give its outputs for any batch."""

import datetime
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mmssl.export import encoder as encoders
from mmssl.export import weights
from tests.export import exports

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("stablehlo") / "e"
    exports.write(out, exports.VARIANTS["shared"], stablehlo=True)
    return out


LOADER = """
import jax.export, numpy, pathlib, safetensors.numpy, sys
folder = pathlib.Path(sys.argv[1])
weights = safetensors.numpy.load_file(folder / "model.safetensors")
for modality in ("video", "audio", "text"):
    program = jax.export.deserialize((folder / f"{modality}.stablehlo").read_bytes())
    media = safetensors.numpy.load_file(folder.parent / f"{modality}.in")["media"]
    for rows in (1, 3):
        outputs = program.call(weights, media[:rows])
        outputs = {name: numpy.asarray(x) for name, x in outputs.items()}
        safetensors.numpy.save_file(outputs, folder.parent / f"{modality}.{rows}")
assert not {"mmssl", "flax"} & set(sys.modules)
"""


def test_programs_alone_give_the_outputs(folder: pathlib.Path) -> None:
    with encoders.from_folder(folder, batch=3) as ours:
        media = exports.media(ours)
        for modality, rows in media.items():
            weights.save({"media": rows}, folder.parent / f"{modality}.in")
        run = [sys.executable, "-c", LOADER, str(folder)]
        subprocess.run(run, check=True, cwd="/")
        for modality, given in media.items():
            expected = ours._outputs(modality, given)
            for rows in (1, 3):
                found = weights.read(folder.parent / f"{modality}.{rows}")
                assert found.keys() == expected.keys()
                for name, want in expected.items():
                    close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(want).max()}
                    np.testing.assert_allclose(found[name], want[:rows], **close)


def test_what_is_written_beside_them(folder: pathlib.Path) -> None:
    described = json.loads((folder / "stablehlo.json").read_text())
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    days = [datetime.date.fromisoformat(described[k]) for k in ("exported", "expires")]
    assert datetime.timedelta(180) < days[1] - days[0] < datetime.timedelta(184)
    video = described["programs"]["video"]
    assert video["input"] == {"shape": ["b", 4, 16, 24, 3], "dtype": "uint8"}
    assert video["outputs"]["pooled"] == {"shape": ["b", 10], "dtype": "float32"}
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {f"{m}.stablehlo" for m in ("video", "audio", "text")} < files.keys()
