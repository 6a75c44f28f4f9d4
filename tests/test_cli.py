"""The command line as a stranger meets it: help, wrong arguments, exit codes."""

import argparse
import errno
import math
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from mmssl import cli, commands, doctor
from mmssl.errors import UserError

# TFDS reads a protobuf field that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

ROOT = pathlib.Path(__file__).resolve().parent.parent

DEMO = "--config configs/demo.py"

COMMANDS = (
    ["data", "build"],
    ["data", "manifest"],
    ["data", "validate"],
    ["data", "view"],
    ["data", "demo"],
    ["data", "tokenizer"],
    ["train"],
    ["eval"],
    ["export"],
    ["report"],
    ["check"],
    ["doctor"],
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mmssl ARGS` in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize("words", [[], ["data"], *COMMANDS], ids=" ".join)
def test_help_is_complete(run: Run, words: list[str]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert ("Example:" if words else "The whole road:") in out
    assert f"mmssl {' '.join(words)}" in out.split("xample:")[-1]


def test_every_command_is_listed(run: Run) -> None:
    _, out, _ = run("--help")
    assert all(f"\n    {words[0]} " in out for words in COMMANDS)


def test_help_loads_nothing_slow() -> None:
    """It answers at once: what takes seconds to import is imported by the commands."""
    code = """
import contextlib, sys
from mmssl import cli
with contextlib.suppress(SystemExit):
    cli.main(["--help"])
print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = set(done.stderr.split())
    slow = {"jax", "numpy", "flax", "optax", "tensorflow_datasets", "grain", "av"}
    assert "mmssl" in loaded
    assert not loaded & slow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "did you mean 'train'?"]),
        (["data", "biuld"], ["'biuld'", "did you mean 'build'?"]),
        ([], ["COMMAND", "mmssl --help"]),
        (["train", "--workdri=x"], ["--workdri", "did you mean '--workdir'?"]),
        (["train", "--config=c.py"], ["--workdir", "mmssl train --help"]),
        (["train", "--config=c.py", "--workdir=w", "more"], ["'more'"]),
        (["data", "build", "--out=x"], ["--manifest", "--folder"]),
        (["data", "build", "--out=x", "--folder=a", "--manifest=b"], ["not allowed"]),
        (
            ["data", "build", "--out=x", "--folder=a", "--splits=a=.9,b=.2"],
            ["sum to 1"],
        ),
        (["data", "build", "--out=x", "--folder=a", "--splits=0.9"], ["NAME=SHARE"]),
        (["data", "build", "--out=x", "--folder=a", "--workers=0"], ["--workers"]),
        (["data", "validate", "d", "--media", "-5"], ["--media", "'-5'", "'all'"]),
        (["data", "validate", "d", "--media=some"], ["--media", "'some'"]),
        (["data", "demo", "--out=x", "--clips=few"], ["--clips", "'few'"]),
        (["data", "demo", "--out=x", "--misaligned=3"], ["0 to 1"]),
        (["data", "tokenizer", "--data=x", "--kind=words"], ["did you mean 'word'?"]),
        (["eval", "--workdir=w", "--config.steps=3"], ["--config.steps=3", "with a"]),
        (["train", "--workdir=w", "--config.steps"], ["--config.steps=VALUE"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_get_one_message(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("mmssl: error: ")
    assert "Traceback" not in err
    assert all(word in err for word in words), err


def test_overrides_are_taken_out_in_both_forms() -> None:
    rest, overrides = cli.split_overrides(
        ["train", "--config.a.b=1", "--config", "c.py", "--config.c", "x y"]
    )
    assert rest == ["train", "--config", "c.py"]
    assert overrides == ["--config.a.b=1", "--config.c=x y"]


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `mmssl doctor` raise."""

    def examine(paths: object) -> object:
        raise error

    monkeypatch.setattr(doctor, "examine", examine)


def wrapped(inner: Exception) -> Exception:
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("the thing; do this"), "mmssl: error: the thing; do this"),
        (FileNotFoundError(errno.ENOENT, "x", "a.mp4"), "'a.mp4' does not exist"),
        (PermissionError(errno.EACCES, "x", "/etc/w"), "'/etc/w' permission denied"),
        (OSError(errno.EROFS, "x", "/ro/w"), "read-only"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.ENOSPC, "x", "w/c.tmp"), "full while writing 'w/c.tmp'"),
        (wrapped(OSError(errno.EDQUOT, "Disk quota exceeded")), "the disk is full"),
        (ValueError("RESOURCE: write: No space left on device"), "the disk is full"),
    ],
)
def test_what_a_user_can_mend_has_no_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    raising(error, monkeypatch)
    code, _, err = run("doctor")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    monkeypatch.setenv("MMSSL_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_the_keyboard_stops_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    assert run("doctor")[0] == 130


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("nameless")])
def test_bugs_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    raising(error, monkeypatch)
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m mmssl.cli --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_table_without_rows_is_its_header() -> None:
    text = commands.table([], header=("who", "R@10"))
    assert text.splitlines() == ["who  R@10", "---  ----"]
    assert commands.table([]) == ""


def test_table_aligns_numbers_to_the_right() -> None:
    rows = [("chance", 5.0), ("trained", 0.12345)]
    assert commands.table(rows, header=("who", "R@10")).splitlines() == [
        "who       R@10",
        "-------  -----",
        "chance       5",
        "trained  0.123",
    ]


# doctor


def test_doctor_reads_the_bounds() -> None:
    assert doctor.package("numpy", ">=1").state == "ok"
    assert "outside <1" in doctor.package("numpy", "<1").detail
    assert doctor.package("numpy", "<1").state == "broken"
    absent = doctor.package("no-such-package", ">=1")
    assert (absent.state, "missing" in absent.detail) == ("broken", True)


def test_doctor_names_a_path_that_cannot_be_used(tmp_path: object) -> None:
    good, absent = doctor.storage(str(tmp_path)), doctor.storage(f"{tmp_path}/no")
    assert [f.state for f in good] == ["ok"]
    assert [(f.state, "does not exist" in f.detail) for f in absent] == [
        ("broken", True)
    ]


def test_doctor_encodes_and_decodes() -> None:
    assert next(doctor.codecs()).state == "ok"


def test_doctor_goes_on_after_a_broken_look(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> object:
        raise RuntimeError("no device today")

    monkeypatch.setattr(doctor, "devices", broken)
    monkeypatch.setattr(doctor, "packages", lambda: iter(()))
    monkeypatch.setattr(doctor, "loader", lambda: iter(()))
    code, out, _ = run("doctor")
    assert code == 1
    assert "BROKEN  devices" in out
    assert "RuntimeError: no device today" in out
    assert "storage" in out


def test_commands_are_functions_of_parsed_arguments() -> None:
    parsed = cli.parser().parse_args(["report", "--workdir", "w"])
    assert isinstance(parsed, argparse.Namespace)
    assert parsed.workdir == "w"


# a stranger's session


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with `media` and the dataset `data` with its tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    for line in (
        f"data demo --out {folder}/media --clips 24",
        f"data build --manifest {folder}/media/manifest.jsonl --out {folder}/data",
        f"data tokenizer --data {folder}/data --vocab-size 64",
    ):
        assert cli.main(line.split()) == 0
    return folder


def test_a_built_dataset_is_valid(run: Run, world: pathlib.Path) -> None:
    code, out, err = run("data", "validate", f"{world}/data")
    assert (code, out.splitlines()[-1]) == (0, "ok")
    assert "24/24 records" in err


def test_copies_on_both_sides_of_a_split_are_told(
    run: Run, world: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    clip = next((world / "media" / "media").glob("*.mp4"))
    for name in "abcdefghijkl":
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    command = f"data build --folder {tmp_path} --out {tmp_path}/data"
    code, out, _ = run(*command.split(), "--splits", "train=0.5,test=0.5")
    assert code == 0
    assert "warning: 1 media with the same bytes in more than one split" in out
    assert "mp4 (train)" in out
    assert "mp4 (test)" in out


@pytest.mark.parametrize(("media", "decoded"), [("all", 24), ("0", 0)])
def test_as_much_media_as_asked_is_decoded(
    run: Run, world: pathlib.Path, media: str, decoded: int
) -> None:
    _, out, _ = run("data", "validate", f"{world}/data", "--media", media)
    assert f"media of {decoded} decoded" in out


def test_a_damaged_dataset_is_not(
    run: Run, world: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(world / "data", tmp_path / "bad")
    shard = next((tmp_path / "bad").glob("*train*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, out, _ = run("data", "validate", f"{tmp_path}/bad")
    assert code == 1
    assert "file_changed" in out
    assert shard.name in out


def test_check_reports_a_config_with_its_data(run: Run, world: pathlib.Path) -> None:
    code, out, _ = run(*f"check {DEMO} --config.data.path={world}/data".split())
    assert code == 0
    assert "one real batch of 32 rows" in out
    # Twice the log of 32 rows: the loss of a model that knows nothing.
    loss = float(re.findall(r"^loss +([\d.]+)$", out, flags=re.MULTILINE)[0])
    assert loss == pytest.approx(2 * math.log(32), rel=0.1)
    assert "heads/contrast" in out


def test_check_says_what_a_harmonizer_compares(run: Run) -> None:
    line = f"check {DEMO} --no-data --config.harmonizer.engine=embedding"
    curriculum = "--config.harmonizer.curriculum.end=0.25"
    code, out, _ = run(*line.split(), curriculum)
    assert code == 0
    assert re.search(r"^weighting +Sum\(\)$", out, re.M)
    assert re.search(r"^engine +Embedding$", out, re.M)
    assert re.search(r"^of +each sample$", out, re.M)
    expected = r"^curriculum +threshold -0.3 to 0.25 \(linear, steps 0 to 160\)$"
    assert re.search(expected, out, re.M)


def test_check_counts_a_pods_model_without_data(run: Run) -> None:
    line = "check --config configs/vatt_ma_medium.py --no-data"
    code, out, _ = run(*line.split())
    assert code == 0
    assert re.search(r"^video +2048x32x224x224x3 +8x14x14 +1568 +784 ", out, re.M)
    assert re.search(r"^shared +151,\d{3},\d{3}$", out, re.M)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data build --manifest {w}/no.jsonl --out {t}/d", ["no.jsonl", "nothing"]),
        ("data build --folder {w}/no --out {t}/d", ["/no", "nothing"]),
        ("data build --folder {t} --out {t}/d", ["no media files"]),
        ("data build --manifest {t}/empty.jsonl --out {t}/d", ["is empty"]),
        ("data build --manifest {t}/twice.jsonl --out {t}/d", ["'a' twice", "line 2"]),
        ("data build --manifest {t}/types.jsonl --out {t}/d", ["'n'", "two types"]),
        ("data build --manifest {t}/gone.jsonl --out {t}/d", ["gone.mp4", "missing"]),
        ("data build --folder {w}/media --out {w}/data", ["not empty"]),
        ("data build --folder {w}/media --out {t}/file/d", ["file"]),
        ("data demo --out {w}/media --clips 3", ["not empty"]),
        ("data validate {w}/media", ["not a dataset"]),
        ("data validate {t}/newer", ["schema version 999", "1"]),
        ("data tokenizer --data {w}/no", ["not a dataset"]),
        ("data tokenizer --files {w}/no.txt --out {t}/a.model", ["no.txt"]),
        ("data tokenizer --files x", ["--out"]),
        ("data tokenizer --data {w}/data --vocab-size 2", ["at least 8"]),
        ("train --config configs/dmo.py --workdir {t}/w", ["'configs/demo.py'?"]),
        ("train {demo} --workdir {t}/w", ["data.path", "data build"]),
        ("train {demo} {data} --workdir {t}/w --config.stepz=3", ["'steps'?"]),
        ("train {demo} {data} --workdir {t}/w --config.steps=x", ["int", "'x'"]),
        ("train {demo} {data} --workdir {t}/w --config.data.split=tran", ["'train'?"]),
        ("train {demo} {data} --workdir {t}/w --config.model.size=big", ["tiny"]),
        ("train {demo} {data} --workdir {t}/w --config.batch=30", ["30", "8"]),
        ("train {demo} {data} --workdir {t}/w {h}weighting=pcgradd", ["'pcgrad'?"]),
        ("train {demo} {data} --workdir {t}/w {h}curriculum.start=2", ["m.start: "]),
        (
            "train {demo} {data} --workdir {t}/w {h}monitor=True {h}engine=embedding "
            "{h}group=5",
            ["harmonizer.group 5", "32 rows"],
        ),
        ("check {demo} --config.data.path={w}/no", ["not a dataset"]),
        ("eval --workdir {t}/no", ["no config.json", "mmssl train"]),
        ("export --workdir {t}/no --out {t}/e", ["no config.json"]),
        ("report --workdir {t}/no", ["no config.json"]),
    ],
)
def test_bad_input_gets_one_message_and_leaves_nothing(
    run: Run, world: pathlib.Path, tmp_path: pathlib.Path, line: str, words: list[str]
) -> None:
    rows = {
        "empty": "",
        "twice": '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}',
        "types": '{"id": "a", "text": "x", "labels": {"n": 1}}\n'
        '{"id": "b", "text": "x", "labels": {"n": "one"}}',
        "gone": '{"media": "gone.mp4"}',
    }
    if "jsonl" in line or "newer" in line or "file" in line:
        for name, text in rows.items():
            (tmp_path / f"{name}.jsonl").write_text(text)
        (tmp_path / "file").write_text("")
        shutil.copytree(world / "data", tmp_path / "newer")
        metadata = tmp_path / "newer" / "mmssl.json"
        stated = re.sub('_version": 1', '_version": 999', metadata.read_text())
        metadata.write_text(stated)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    data = f"--config.data.path={world}/data"
    words_of = {"w": world, "t": tmp_path, "demo": DEMO, "data": data}
    line = line.format(**words_of, h="--config.harmonizer.")
    code, _, err = run(*line.split())
    assert code == 2
    messages = [x for x in err.splitlines() if x.startswith("mmssl: error: ")]
    assert len(messages) == 1
    assert "Traceback" not in err
    assert all(word in err for word in words), err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# documentation


def options(words: list[str]) -> set[str]:
    """The long options and positionals of a command."""
    parser: argparse.ArgumentParser = cli.parser()
    for word in words:
        choices = next(a.choices for a in parser._actions if a.choices)
        assert isinstance(choices, dict)
        parser = choices[word]
    actions = [a for a in parser._actions if a.dest != "help"]
    return {
        a.option_strings[-1] if a.option_strings else str(a.metavar) for a in actions
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_page_of_commands_has_every_option(words: list[str]) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    section = page.split(f"## mmssl {' '.join(words)}\n")[1].split("\n## ")[0]
    written = set(re.findall(r"^\| `([^`\s\[]+)", section, flags=re.MULTILINE))
    assert written - {"--config.a.b=value"} == options(words)


def linked() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    return [
        (page.relative_to(ROOT).as_posix(), target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target
    ]


@pytest.mark.parametrize(("page", "target"), linked())
def test_links_between_pages_lead_somewhere(page: str, target: str) -> None:
    assert ((ROOT / page).parent / target).is_file()


def commands_in_pages() -> list[str]:
    """Every `mmssl ...` line of the pages and the Makefile, whole."""
    found = []
    for page in [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md")]:
        text = (
            page.read_text()
            .replace("\\\n", " ")
            .replace("$(MMSSL)", "mmssl")
            .replace("$(CLIPS)", "9")
        )
        found += re.findall(r"^(?:    |\t)mmssl (.*)$", text, flags=re.MULTILINE)
    return sorted({line.partition("#")[0].strip() for line in found})


@pytest.mark.parametrize("line", commands_in_pages())
def test_commands_in_the_pages_parse(line: str) -> None:
    rest, _ = cli.split_overrides(line.split())
    assert callable(cli.parser().parse_args(rest).run)
