"""The benchmarks' shared machinery and the arithmetic over seeds."""

import argparse
import importlib
import json
import os
import pathlib
import platform
import time

import pytest

from mmssl.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("harness")


@pytest.fixture
def grid(harness):
    return importlib.import_module("grid")


def options(harness):
    made = harness.parser("toy", about="A toy.", example="python benchmarks/toy.py")
    made.add_argument("--data")
    return made


def measured(harness):
    figures = {"speed": harness.spread([3.0, 1.0, 2.0], unit="1/s")}
    return harness.Measured(figures, {"rounds": 3}, {"raw": [float("nan"), 1.0]})


def test_spread_is_min_median_max(harness):
    expected = {"median": 2.5, "min": 1.0, "max": 9.0, "n": 4, "unit": "s"}
    assert harness.spread([9.0, 1.0, 2.0, 3.0], unit="s") == expected


def test_rounds_interleave_the_arms_after_the_warmup(harness):
    calls = []
    arms = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = harness.interleave(arms, rounds=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}


def test_times_are_of_the_arm_that_took_them(harness):
    arms = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    times = harness.interleave(arms, rounds=2, warmup=0)
    assert min(times["slow"]) >= 0.02 > max(times["fast"])
    assert harness.ratios([6.0, 2.0], [3.0, 4.0]) == [2.0, 0.5]


def test_the_file_holds_machine_versions_spread_and_summary(harness, tmp_path, capsys):
    out = tmp_path / "new" / "toy.json"
    private = f"/home/{platform.node()}/secret/grid"
    seen = []

    def measure(arguments):
        seen.append(arguments)
        return measured(harness)

    argv = ["--out", str(out), "--data", private, "--config.batch=8"]
    assert harness.main(options(harness), measure, argv) == 0
    found = json.loads(out.read_text())
    assert found["summary"]["speed"] == measured(harness).summary["speed"]
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["cpu"]
    assert set(found["versions"]) >= {"python", "mmssl", "jax"}
    assert found["quick"] is False
    assert found["raw"] == [None, 1.0]
    assert set(found["git"]) == {"commit", "changed"}
    assert found["command"].endswith("--data grid --config.batch=8")
    assert seen[0].overrides == ["--config.batch=8"]
    text = out.read_text()
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    assert platform.node() not in text
    assert "speed" in capsys.readouterr().out


def test_a_part_is_added_and_says_how_the_rest_came(harness, tmp_path, capsys):
    out = str(tmp_path / "toy.json")

    def part(**figures):
        found = harness.Measured(figures, dict.fromkeys(figures, 1), {"raw": figures})
        return lambda arguments: found

    def run(found, *more):
        return harness.main(options(harness), found, ["--out", out, *more])

    assert run(part(a={"n": 1}, b={"n": 1}), "--config.first=1") == 0
    assert run(part(b={"n": 2}, c={"n": 2}), "--add") == 0
    found = json.loads(pathlib.Path(out).read_text())
    assert found["summary"] == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 2}}
    assert set(found["settings"]) == {"a", "b", "c"}
    (earlier,) = found["earlier"]
    assert earlier["command"].endswith("--config.first=1")
    assert found["command"].endswith("--add")
    capsys.readouterr()
    assert run(pytest.fail, "--add", "--quick") == 2
    assert "quick=False" in capsys.readouterr().err
    assert harness.main(options(harness), pytest.fail, ["--add"]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    harness, tmp_path, monkeypatch
):
    path = tmp_path / "toy.json"
    path.write_text("old")

    def broken(self, target):
        raise OSError("no space")

    monkeypatch.setattr(pathlib.Path, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        harness.write(path, {"a": 1})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["toy.json"]


def test_an_unwritable_out_is_found_before_measuring(harness, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["--out", str(tmp_path / "file" / "x.json")]
    assert harness.main(options(harness), pytest.fail, argv) == 2
    assert "error" in capsys.readouterr().err


def test_bad_input_is_one_message(harness, capsys):
    def measure(arguments: argparse.Namespace):
        raise UserError("no data at X; give --data")

    assert harness.main(options(harness), measure, []) == 2
    assert capsys.readouterr().err.endswith("error: no data at X; give --data\n")


def test_quick_says_so(harness, tmp_path, capsys):
    out = tmp_path / "quick.json"
    argv = ["--quick", "--out", str(out)]
    assert harness.main(options(harness), lambda _: measured(harness), argv) == 0
    assert json.loads(out.read_text())["quick"] is True
    assert "quote none" in capsys.readouterr().out


def seed_result(seed, r10, accuracy):
    retrieval = {"R@1": 0.1, "R@5": 0.2, "R@10": r10, "median_rank": 4.0, "mrr": 0.5}
    rows = [
        ["retrieval", "video->audio", name, value, value / 2, 0.05, 79]
        for name, value in retrieval.items()
    ]
    for section in ("probe", "knn"):
        rows.append([section, "video digit", "accuracy", accuracy, 0.2, 0.15, 79])
    return {"seed": seed, "train_seconds": 10.0 * (seed + 1), "rows": rows}


def test_figures_are_mean_min_max_over_seeds(grid):
    found = [seed_result(0, 0.2, 0.5), seed_result(1, 0.6, 0.7)]
    summary = grid.aggregate(found)
    figure = summary["video_to_audio_r10"]
    assert figure == pytest.approx(
        {"mean": 0.4, "min": 0.2, "max": 0.6, "random": 0.2, "chance": 0.05, "n": 79}
    )
    assert summary["probe_video_digit"]["mean"] == pytest.approx(0.6)
    assert summary["knn_video_digit"]["max"] == 0.7
    assert summary["video_to_audio_median_rank"]["mean"] == 4.0
    seconds = {"mean": 15.0, "min": 10.0, "max": 20.0, "unit": "s"}
    assert summary["train_seconds"] == seconds


def test_markdown_tables_are_whole(grid):
    found = [seed_result(0, 0.2, 0.5), seed_result(1, 0.6, 0.7)]
    lines = grid.markdown(grid.aggregate(found), seeds=2).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    retrieval, probe = rows[:5], rows[5:8]
    assert {row.count("|") for row in retrieval} == {9}
    assert {row.count("|") for row in probe} == {5}
    assert "40.0% (20.0% to 60.0%)" in retrieval[2]
    assert probe[2] == "| digit | 60.0% (50.0% to 70.0%) | 20.0% | 15.0% |"


def test_grid_elsewhere_is_named(grid, tmp_path):
    with pytest.raises(UserError, match="--data"):
        grid.source_folder(str(tmp_path))
