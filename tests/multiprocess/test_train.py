"""`mmssl train` by two real processes on real media equals one process."""

import json
import os
import subprocess
import sys

import pytest

from mmssl import config as config_lib
from mmssl import runs
from mmssl.data import build, demo, tokenizer
from mmssl.train import heartbeat
from tests.conftest import ROOT
from tests.multiprocess.ports import free_port

STEPS = 3
RECIPE = str(ROOT / "configs" / "demo.py")
OVERRIDES = [
    f"--config.steps={STEPS}",
    "--config.batch=8",
    "--config.data.video=None",
    "--config.data.workers=1",
    "--config.model.size={'layers': 1, 'width': 16, 'mlp': 16, 'heads': 2}",
    "--config.objectives.contrast.pairs={'at': "
    "{'modalities': ('audio', 'text'), 'space': 'joint'}}",
    # Adam makes full steps of gradients that are zero but for rounding.
    "--config.optim.name=sgd",
    "--config.optim.warmup=1",
    "--config.log.every=1",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every=2",
]
QUICK = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    demo.write_demo(root / "media", clips=16)
    build.build(manifest=root / "media" / "manifest.jsonl", out=root / "data")
    tokenizer.train_tokenizer(dataset=root / "data")
    return root / "data"


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
def test_two_processes_equal_one(dataset, tmp_path):
    overrides = [*OVERRIDES, f"--config.data.path={dataset}"]
    address = f"localhost:{free_port()}"
    two = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "mmssl.cli", "train"),
                *("--config", RECIPE, *overrides, "--workdir", str(tmp_path / "two")),
                *("--coordinator", address, "--processes", "2"),
                *("--process", str(process)),
            ],
            cwd=ROOT,
            env={**os.environ, **QUICK, "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], "\n".join(said)
    # One of them speaks for all.
    assert f"step {STEPS}/{STEPS}" in said[0]
    assert "next: mmssl eval" in said[0]
    assert "step" not in said[1]

    config = config_lib.load(RECIPE, overrides)
    assert runs.train(config, str(tmp_path / "one")).complete
    one, both = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in both] == list(range(1, STEPS + 1))
    for (_, alone), (_, shared) in zip(one, both, strict=True):
        assert shared == pytest.approx(alone, rel=1e-5)
    described = [
        json.loads((tmp_path / name / "data.json").read_text())
        for name in ("one", "two")
    ]
    assert [found["processes"] for found in described] == [1, 2]
    saved = sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir())
    assert saved == ["2", "3"]
    for process in range(2):
        beat = heartbeat.read(tmp_path / "two", process)
        assert beat is not None
        assert beat.stage == heartbeat.ENDED
    # The same run goes on anywhere; here it has nothing left to do.
    assert runs.train(config, str(tmp_path / "two")).samples == 0
