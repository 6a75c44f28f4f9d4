"""The scripts of launch/: dry runs, shellcheck, the manifest. No cluster is needed."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml

from mmssl import cli
from mmssl.data import runners
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
# Arguments as a person quotes them: spaces, quotes and braces must arrive.
TRAIN = ["--config", "configs/demo.py", "--workdir", "/data/x", "--config.a={'b': [1]}"]
TPU = {
    "NAME": "n",
    "ZONE": "z",
    "TYPE": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
}


def script(name: str, *arguments: str, **variables: str) -> Any:
    return subprocess.run(
        ["bash", str(LAUNCH / name), *arguments],
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.s*")), ids=lambda p: p.name)
def test_shellcheck(path: pathlib.Path) -> None:
    shellcheck = pathlib.Path(sys.executable).with_name(
        "shellcheck"
    )  # of the dev extra
    found = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def arguments_of(line: str) -> list[str]:
    """What a shell hands to the command of a line."""
    shown = f"set -- {line.strip()}; printf '%s\\0' \"$@\""
    return subprocess.check_output(["bash", "-c", shown], text=True).split("\0")[:-1]


def parsed(words: list[str]) -> Any:
    rest, overrides = cli.split_overrides(words)
    return cli.parser().parse_args(rest), overrides


def test_slurm_shows_a_command_that_mmssl_takes() -> None:
    shown = script("slurm.sbatch", "--dry-run", *TRAIN).stdout
    words = arguments_of(shown)
    assert words[:2] == ["srun", "--kill-on-bad-exit=1"]
    arguments, overrides = parsed(words[words.index("train") :])
    assert (arguments.cluster, arguments.workdir) == ("slurm", "/data/x")
    assert overrides == TRAIN[-1:]


def test_tpu_vm_shows_all_of_its_road() -> None:
    said = script("tpu_vm.sh", "--dry-run", "resume", *TRAIN, SPOT="1", **TPU).stderr
    order = ["queued-resources delete", "create n", "--spot", "git archive", "run.sh"]
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    line = next(x for x in said.splitlines() if "mmssl train" in x)
    arguments, overrides = parsed(arguments_of(line)[1:])
    assert arguments.cluster == "tpu"
    assert overrides == TRAIN[-1:]


GCLOUD = """#!/bin/bash
# Answers each question with the next line of a file; "!" is a failure.
cd "$(dirname "$0")"
answer() {
  local line
  line=$(head -n 1 "$1") && sed -i 1d "$1"
  [[ $line == !* ]] && echo "$line" >&2 && exit 1
  echo "$line"
}
case "$*" in
  *describe*) answer states ;;
  *"scp"*) echo scp >>calls && answer scps ;;
  *"tail -n 1"*) answer logs ;;
  *ssh*) ;;
  *) echo "$4" >>calls ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "scps", "calls"),
    [
        # Neither silence nor a slice on its way is a reason to delete.
        (
            ["!UNAVAILABLE", "PROVISIONING", "!UNAVAILABLE", *["ACTIVE"] * 9],
            [],
            ["scp"] * 2,
        ),
        # What breaks off is done again.
        (["!NOT_FOUND", *["ACTIVE"] * 9], ["!"], ["create", *["scp"] * 3]),
        (
            ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", *["ACTIVE"] * 9],
            [],
            ["scp", "delete", "create", "scp", "scp"],
        ),
    ],
)
def test_tpu_vm_resumes_until_the_run_ends(tmp_path, states, scps, calls) -> None:
    logs = ["step 8", "!no route", "exit code 2"]
    for name, lines in (("states", states), ("scps", scps), ("logs", logs)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    for name, text in (("gcloud", GCLOUD), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = script("tpu_vm.sh", "resume", *TRAIN, **TPU, PATH=path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout.endswith("exit code 2\n")
    assert (tmp_path / "calls").read_text().split() == calls


@pytest.mark.parametrize(
    ("command", "variables", "told"),
    [
        ("create", {"NAME": "n", "ZONE": "z"}, "TYPE is not set"),
        ("delete", {"NAME": "n"}, "ZONE is not set"),
        ("fly", TPU, "resume    create and install"),
    ],
)
def test_tpu_vm_says_what_is_missing(command, variables, told) -> None:
    ended = script("tpu_vm.sh", "--dry-run", command, **variables)
    assert (ended.returncode, told in ended.stderr) == (2, True)


BUILD = ["--manifest", "gs://b/my clips.jsonl", "--out", "gs://b/data", "--update"]


@pytest.mark.parametrize(
    ("runner", "variables", "told"),
    [
        (
            "DataflowRunner",
            {"PROJECT": "p", "REGION": "r", "TEMP": "gs://b/t", "MAX_WORKERS": "9"},
            {"project": "p", "sdk_container_image": "image", "max_num_workers": 9},
        ),
        (
            "FlinkRunner",
            {"MASTER": "host:8081"},
            {"flink_master": "host:8081", "environment_config": "image"},
        ),
        (
            "SparkRunner",
            {"MASTER": "spark://host:7077"},
            {"spark_master_url": "spark://host:7077", "environment_type": "DOCKER"},
        ),
    ],
)
def test_data_beam_shows_a_command_that_mmssl_and_beam_take(
    runner, variables, told
) -> None:
    more = {"IMAGE": "image", "RUNNER": runner, "BEAM_OPTIONS": "a=b job_name=x"}
    shown = script("data_beam.sh", "--dry-run", *BUILD, **variables, **more).stdout
    arguments, _ = parsed(arguments_of(shown)[1:])
    assert (arguments.manifest, arguments.update) == (BUILD[1], True)
    assert arguments.runner == runner
    assert arguments.beam_options[-2:] == ["a=b", "job_name=x"]
    pytest.importorskip("apache_beam")
    given = runners.options(runner, 1, arguments.beam_options[:-2])
    known = given.get_all_options(drop_default=True)
    assert known.items() >= (told | {"number_of_worker_harness_threads": 1}).items()


def test_data_beam_says_what_is_missing() -> None:
    ended = script("data_beam.sh", "--dry-run", *BUILD, IMAGE="i", PROJECT="p")
    assert (ended.returncode, "REGION is not set" in ended.stderr) == (2, True)


def test_manifest_restarts_all_but_after_bad_input() -> None:
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    (on_exit,) = job["podFailurePolicy"]["rules"]
    assert on_exit["onExitCodes"]["values"] == [cli.USAGE]
    assert on_exit["onExitCodes"]["containerName"] == container["name"]
    arguments, overrides = parsed(container["args"])
    assert arguments.cluster == "tpu"
    assert (ROOT / arguments.config).is_file()
    assert len(overrides) == 1
    mounted = {m["name"] for m in container["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]}
