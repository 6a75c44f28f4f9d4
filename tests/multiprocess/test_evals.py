"""Two processes that embed their rows find what one finds, and both have it."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.multiprocess import evaluating
from tests.multiprocess.ports import free_port

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_two_processes_equal_one():
    address = f"localhost:{free_port()}"
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.multiprocess.evaluating"),
                *(address, "2", str(process)),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    alone = evaluating.judged()
    failed = [each.pop("failed") for each in found]
    assert failed == ["UserError: process 1: no storage", "OSError: no storage"]
    assert found[0] == found[1]
    assert found[0]["ids"] == alone["ids"]
    assert len(alone["ids"]) == evaluating.CLIPS - 3
    assert found[0]["kinds"] == alone["kinds"]
    assert found[0]["sums"] == pytest.approx(alone["sums"], rel=1e-5)
    assert found[0]["sections"] == alone["sections"]
