"""Builds on Apache Beam, with real worker processes, killed and done again."""

import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import pytest

from mmssl.data import build, records, runners, shards
from mmssl.errors import UserError
from tests.conftest import ROOT
from tests.data.test_build_again import content

pytestmark = [
    pytest.mark.filterwarnings("ignore:label:DeprecationWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("apache_beam") is None,
        reason="apache-beam is not installed: pip install 'mmssl[beam]'",
    ),
]


@pytest.fixture(scope="module")
def manifest(demo_manifest: pathlib.Path) -> pathlib.Path:
    """Real clips under 120 ids, so that a build takes longer than a kill."""
    rows = [json.loads(line) for line in demo_manifest.read_text().splitlines()]
    path = demo_manifest.with_name("many.jsonl")
    many = [row | {"id": f"{row['id']}-{i}"} for i in range(10) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in many))
    return path


def command(manifest: pathlib.Path, out: pathlib.Path) -> Any:
    words = (
        f"data build --manifest {manifest} --out {out} --runner DirectRunner "
        "--workers 2 --shard-rows 4"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "mmssl.cli", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_a_killed_build_goes_on_and_equals_a_clean_one(manifest, tmp_path) -> None:
    out, outcomes = tmp_path / "out", tmp_path / ".out.partial/new/outcomes"
    process = command(manifest, out)
    until = time.monotonic() + 400
    while not any(outcomes.glob("*.json")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    finished = len(list(outcomes.glob("*.json")))
    assert not out.exists()

    again = command(manifest, out)
    said = again.communicate(timeout=400)[0]
    assert again.returncode == 0, said
    assert "shards were done before" in said
    clean = build.build(manifest=manifest, out=tmp_path / "clean", shard_rows=4)
    assert 0 < finished < clean.shards
    assert content(out) == content(tmp_path / "clean")
    assert len(records.read_metadata(out)["files"]) > 30
    assert not any(tmp_path.glob(".*"))


def test_a_local_worker_ends_with_its_driver() -> None:
    driver = subprocess.Popen(["sleep", "100"])
    code = (
        "import time; from mmssl.data import runners; "
        f"runners._follow({driver.pid}); print('up', flush=True); time.sleep(100)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert worker.stdout
    assert worker.stdout.readline() == b"up\n"
    time.sleep(0.1)
    assert worker.poll() is None
    driver.kill()
    driver.wait()
    assert worker.wait(timeout=60) == 1
    worker.stdout.close()


def test_a_pipeline_of_many_shards_is_small(tmp_path, monkeypatch) -> None:
    import apache_beam as beam

    made = []
    monkeypatch.setattr(
        beam.Pipeline,
        "run",
        lambda pipeline: made.append(pipeline.to_runner_api()) or mock.Mock(),
    )
    keys = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(5000)]
    tasks = [shards.Task("train", i, k, i, i + 1, 1) for i, k in enumerate(keys)]
    (tmp_path / records.OUTCOMES).mkdir()
    runners.run(
        tmp_path,
        tasks,
        settings=shards.Settings(()),
        runner="DirectRunner",
        options=runners.options("DirectRunner", 2, []),
        workers=2,
        pool=None,
        count=lambda rows: None,
    )
    assert len(made[0].SerializeToString()) < 50_000
    assert list(shards.read_tasks(tmp_path)) == tasks


def test_options_reach_the_runner() -> None:
    from apache_beam.options import pipeline_options as beam_options

    extra = ["project=p", "region=r", "no_use_public_ips"]
    given = runners.options("DataflowRunner", 4, extra)
    cloud = given.view_as(beam_options.GoogleCloudOptions)
    assert (cloud.project, cloud.region) == ("p", "r")
    assert given.view_as(beam_options.WorkerOptions).use_public_ips is False

    local = runners.options("DirectRunner", 4, [])
    direct = local.view_as(beam_options.DirectOptions)
    assert direct.direct_running_mode == "multi_processing"
    assert direct.direct_num_workers == 4
    own = runners.options("DirectRunner", 4, ["direct_num_workers=2"])
    assert own.view_as(beam_options.DirectOptions).direct_num_workers == 2


def test_an_unknown_runner_is_one_message(manifest, tmp_path) -> None:
    with pytest.raises(UserError, match=r"--runner DirectRuner: .*DirectRuner"):
        build.build(manifest=manifest, out=tmp_path / "x", runner="DirectRuner")
    assert not any(tmp_path.iterdir())


def test_dataflow_writes_no_local_folder(manifest, tmp_path) -> None:
    with pytest.raises(UserError, match="do not see this machine's disk"):
        build.build(manifest=manifest, out=tmp_path / "x", runner="DataflowRunner")


def test_without_beam_a_runner_is_refused_and_none_is_the_default(monkeypatch) -> None:
    assert runners.default() == "DirectRunner"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runners.default() is None
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'mmssl\[beam\]'"):
        runners.options("DirectRunner", 1, [])
