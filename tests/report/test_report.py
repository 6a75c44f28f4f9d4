"""The page: complete, escaped, self-contained, honest about gaps."""

import html.parser
import json
import math
import pathlib
import re

import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.report import conflict, curves, plots, sections, tables, write_report
from mmssl.report.html import VOID, Markup, join, tag
from mmssl.report.run import read_run

EVIL = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on unbalanced tags."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + "\n"

    def count(self, name: str, **attributes: str) -> int:
        return sum(
            tag == name and attributes.items() <= given.items()
            for tag, given in self.found
        )


def sample(name: str, *, text: str = "a red ball", seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "id": name,
        "frames": rng.integers(0, 256, (10, 12, 16, 3), np.uint8),
        "audio": rng.uniform(-1, 1, 4000).astype(np.float32),
        "rate": 8000,
        "text": [text],
        "labels": {"color": "red", "empty": ""},
        "swapped": "",
    }


def evaluation() -> dict:
    def cell(**scores: float) -> dict:
        return {
            "trained": scores,
            "random": {k: v / 4 for k, v in scores.items()},
            "chance": {k: v / 8 for k, v in scores.items()},
            "n": 80,
        }

    pair = {"R@1": 0.25, "R@10": 0.8125, "median_rank": 4.0}
    return {
        "retrieval": {"video->text": cell(**pair), "text->video": cell(**pair)},
        "probe": {m: {"color": cell(accuracy=0.7)} for m in ("audio", "video")},
        "split": "test",
        "examples": [{"direction": "video->text", "query": "one", "rank": 3}],
    }


def metrics(steps: int = 50) -> list[dict]:
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "time": 1000.0 + step, "loss": 9.0 / step + 1}
        row |= {"loss/va": 5.0 / step, "loss/vt": None if step == 7 else 4.0 / step}
        row |= {"lr": 1e-3, "grad_norm": 1.0, "finite": step != 7, "data_wait": 0.1}
        row |= {"health/rank/video/va": 3.0, "health/rank/video/vt": 2.0}
        rows.append(row)
    return rows


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "run-7"
    folder.mkdir()
    config = {"seed": 7, "steps": 50, "batch": 8, "model": {"backbone": "shared"}}
    datasets = [
        {
            "path": f"data/{name}",
            "used": 31,
            "hours": 0.5,
            "faults": {"truncated": 2},
            "partial": {"audio_corrupt": 1},
            "fault_files": {"truncated": [f"{name}/cut.mp4"]},
            "modalities": {"video": 31, "audio": 15},
            "coverage": {"train": {"found": 31, "listed": 40}},
            "faults_met": {"timeout": {"samples": 7, "files": [f"{name}/slow.mp4"]}},
        }
        for name in "ab"
    ]
    data = {"datasets": datasets, "hardware": "1 x cpu"}
    events = [
        {"time": 1000.0, "event": "start", "step": 0},
        {"time": 1007.0, "event": "nonfinite", "step": 7, "in_a_row": 1},
        {"time": 1020.0, "event": "resume", "step": 20},
    ]
    for name, value in (("config", config), ("data", data), ("eval", evaluation())):
        (folder / f"{name}.json").write_text(json.dumps(value))
    for name, rows in (("metrics", metrics()), ("events", events)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def test_page_holds_everything_and_loads_nothing(workdir: pathlib.Path) -> None:
    clips = [sample("one"), {**sample("two"), "audio": None, "swapped": "text"}]
    asked = {
        "direction": "video->text",
        "query": sample("one"),
        "results": [
            {"sample": sample(f"r{i}"), "score": 0.9 - i / 10, "correct": i == 2}
            for i in range(5)
        ],
        "rank": 3,
    }
    path = write_report(workdir, samples=clips, retrieval=[asked])
    assert path == workdir / "report.html"
    text = path.read_text()
    page = Page(text)
    for part in ("run-7", "25.0%", "81.2%", "62", "4 files", "1 x cpu", "rank 3"):
        assert part in page.text
    for part in ("text swapped on purpose", "no audio", "nonfinite", "resume"):
        assert part in page.text
    assert page.count("svg", **{"class": "chart"}) == 5
    assert page.count("audio") == 1
    assert page.count("em") == 1
    for _, attributes in page.found:
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert re.match(r"(data:|#|[a-z]+\.jsonl?$)", target), target
    policies = [given.get("content", "") for _, given in page.found]
    assert any(policy.startswith("default-src 'none'") for policy in policies)
    assert not re.search(r"url\(|@import|https?://", text)


def test_data_is_told_source_by_source(workdir: pathlib.Path) -> None:
    page = Page(write_report(workdir).read_text())
    for name in "ab":
        for part in (f"data/{name}", f"{name}/slow.mp4", f"{name}/cut.mp4"):
            assert part in page.text
    found = page.text.split("31 of 40 clips found (78%)")
    assert len(found) == 3
    for part in ("audio_corrupt", "met in training", "30 min 00 s", "48%"):
        assert part in page.text, part


def test_coverage_stands_beside_the_results(workdir: pathlib.Path) -> None:
    judged = evaluation() | {"coverage": {"found": 80, "listed": 100}}
    (workdir / "eval.json").write_text(json.dumps(judged))
    page = Page(write_report(workdir).read_text())
    assert "Judged on 80 of 100 clips found (80%)." in page.text


@pytest.mark.parametrize(
    "datasets",
    [3, [3], [{}], [{"used": "x", "faults": 3, "faults_met": {"a": 3, "b": {}}}]],
)
def test_damaged_data_does_not_stop_the_page(
    workdir: pathlib.Path, datasets: object
) -> None:
    (workdir / "data.json").write_text(json.dumps({"datasets": datasets}))
    assert 'id="data"' in write_report(workdir).read_text()


def compared(workdir: pathlib.Path, *, pair: str = "va_vt") -> None:
    """Adds what a run writes whose harmonizer compares gradients."""
    rows, told = metrics(), []
    for row in rows:
        row |= {f"conflict/{part}/{pair}": 0.25 for part in ("rate", "defined")}
        row |= {f"conflict/cos_{part}/{pair}": 0.1 for part in ("mean", "q50")}
        row |= {f"conflict/cos_q10/{pair}": -0.5, f"conflict/cos_q90/{pair}": 0.5}
        row |= {"conflict/dropped": 0.2, "conflict/realigned": 0.3}
        row |= {"conflict/norm/va": 1.0, "conflict/weight/va": 1.1, "audit/rmse": 0.01}
        ends = {
            "most": [{"id": f"m{i}", "cos": -0.75 + i / 9} for i in range(8)],
            "least": [{"id": f"l{i}", "cos": 0.75 - i / 9} for i in range(8)],
        }
        counts = [0] * 12 + [3] + [0] * 20 + [5] + [0] * 6
        told.append({"step": row["step"], "pairs": {pair: {"counts": counts, **ends}}})
    for name, lines in (("metrics", rows), ("conflict", told)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir / f"{name}.jsonl").write_text(text)


def test_conflict_has_its_curves_its_map_and_its_clips(workdir: pathlib.Path) -> None:
    compared(workdir)
    assert conflict.ids(read_run(workdir)) == ["m0", "m1", "m2", "l0", "l1", "l2"]
    clips = {"m0": sample("m0", text="off topic"), "l1": sample("l1")}
    text = write_report(workdir, clips=clips).read_text()
    page = Page(text)
    # Five of training, the map, cosine, rate, defined, dropped, norm, weight, audit.
    assert page.count("svg", **{"class": "chart"}) == 5 + 8
    for word in ("Gradient conflict", "37.5%", "cosine -0.750", "off topic", "m2"):
        assert word in page.text, word
    for word in ("weighting sum", "training saw another window", "step 50"):
        assert word in page.text, word
    assert page.count("article", **{"class": "sample"}) == 2
    assert page.count("a", href="#conflict") == 1
    training = text.split('id="training"')[1].split('id="conflict"')[0]
    assert "conflict/" not in training
    write_report(workdir)
    assert "were not at hand" in (workdir / "report.html").read_text()


def test_a_run_that_compares_nothing_has_no_such_section(workdir: pathlib.Path) -> None:
    text = write_report(workdir).read_text()
    assert 'id="conflict"' not in text
    assert "conflict.jsonl is not in the workdir" not in text


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 60, "pairs": 3}',
        '{"step": 60, "pairs": {"va_vt": {"counts": "none"}}}',
        '{"step": 60, "pairs": {"va_vt": {"counts": [1, 2], "most": [{"id": 3}]}}}',
        '{"step": 60, "pairs": {"va_vt": {"counts": [0, 0, 0, 0]}}}',
        '{"step": "x", "pairs": {}}',
        '{"step": 60, "pa',
    ],
)
def test_damaged_rows_of_conflict_do_not_stop_the_page(
    workdir: pathlib.Path, line: str
) -> None:
    compared(workdir)
    with (workdir / "conflict.jsonl").open("a") as file:
        file.write(line + "\n")
    assert 'id="conflict"' in write_report(workdir).read_text()


def test_a_heat_map_parts_conflict_from_agreement() -> None:
    counts = np.zeros((300, 10))
    counts[:, 2], counts[:, 7] = 1, 3
    drawn = plots.heat_map(list(range(300)), counts, label="x")
    paths = re.findall(
        r'd="([^"]+)" class="heat ([^"]+)" style="opacity:([^"]+)"', drawn
    )
    (below, against, faint), (above, along, full) = paths
    assert (against, along, full) == ("m-skip", "c-va", "1.0")
    assert float(faint) < 0.6
    # Columns are joined; all lie on their own side of the middle.
    assert below.count("M") == above.count("M") == plots.COLUMNS
    heights = [float(y) for y in re.findall(r"M\S+ (\S+?)H", above)]
    assert max(heights) < min(float(y) for y in re.findall(r"M\S+ (\S+?)H", below))
    one = plots.heat_map([5], np.ones((1, 4)), label="x")
    assert "nan" not in one


def test_a_band_of_its_own_is_drawn_at_any_length() -> None:
    steps = [1.0, 2.0, 3.0]
    drawn = plots.curves(
        [plots.Series("x", "c-1", steps, [0.0] * 3, [-1.0] * 3, [2.0] * 3)], label="x"
    )
    assert 'class="band c-1"' in drawn
    assert 'class="band' not in plots.curves(
        [plots.Series("x", "c-1", steps, [0.0] * 3)], label="x"
    )


def test_every_text_is_escaped(workdir: pathlib.Path) -> None:
    (workdir / "config.json").write_text(json.dumps({"data": {"path": EVIL}, EVIL: 1}))
    (workdir / "events.jsonl").write_text(
        json.dumps({"event": EVIL, "step": 3, "message": EVIL})
    )
    (workdir / "data.json").write_text(json.dumps({"faults": {EVIL: 1}, EVIL: EVIL}))
    result = evaluation()
    result["retrieval"][EVIL] = result["retrieval"].pop("video->text")
    (workdir / "eval.json").write_text(json.dumps(result))
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 3, EVIL: 1.0}))
    clip = {**sample(EVIL, text=EVIL), "labels": {EVIL: EVIL}, "swapped": EVIL}
    answer = {"sample": clip, "score": 0.5, "correct": True}
    query = {"direction": EVIL, "query": clip, "results": [answer], "rank": 1}
    text = write_report(workdir, samples=[clip], retrieval=[query]).read_text()
    page = Page(text)
    assert page.count("script") == 1
    assert "onerror" not in {name for _, given in page.found for name in given}
    assert EVIL in page.text
    assert EVIL not in text


@pytest.mark.parametrize(
    "gone", ["config.json", "metrics.jsonl", "events.jsonl", "eval.json", "data.json"]
)
def test_a_missing_part_is_said(workdir: pathlib.Path, gone: str) -> None:
    (workdir / gone).unlink()
    page = Page(write_report(workdir).read_text())
    assert f"{gone} is not in the workdir" in page.text
    assert "No sample clips were given" in page.text


@pytest.mark.parametrize("name", ["config.json", "eval.json", "data.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_damaged_json_is_said(workdir: pathlib.Path, name: str, content: str) -> None:
    (workdir / name).write_text(content)
    page = Page(write_report(workdir).read_text())
    assert re.search(rf"{name} (is not valid JSON|holds a )", page.text)


def test_torn_and_strange_lines_are_counted(workdir: pathlib.Path) -> None:
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"no": "step"}\n{"step": 51, "loss": "high"}\n{"step": 5')
    page = Page(write_report(workdir).read_text())
    assert "metrics.jsonl: 2 of 54 lines unreadable" in page.text


def test_no_workdir_is_a_user_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such workdir"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds none of config\.json"):
        write_report(tmp_path)


def test_repeated_steps_keep_the_last(workdir: pathlib.Path) -> None:
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}]
    rows += [{"step": 2, "loss": 3.0}, {"step": 2, "eval/knn": 0.5}]
    lines = "\n".join(map(json.dumps, rows))
    (workdir / "metrics.jsonl").write_text(lines)
    run = read_run(workdir)
    assert run.metrics == [rows[0], {"step": 2, "loss": 3.0, "eval/knn": 0.5}]
    assert run.replayed == 1


def test_a_stop_between_sessions_is_not_training_time(tmp_path: pathlib.Path) -> None:
    rows = [(0, "start"), (60, "interrupted"), (9000, "resume"), (9001, "start")]
    rows += [(9031, "end")]
    lines = [json.dumps({"time": t, "event": name, "step": 1}) for t, name in rows]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert sections.spent(read_run(tmp_path)) == 60 + 30


def test_children_are_escaped_unless_built_here() -> None:
    made = tag("p", "<b>", [tag("i", "&")], None, 3, title='"', data_a="x", for_="y")
    assert made == ('<p title="&quot;" data-a="x" for="y">&lt;b&gt;<i>&amp;</i>3</p>')
    assert isinstance(join(["<"]), Markup)
    assert isinstance(Markup("a") + "<b>", str)
    assert not isinstance(Markup("a") + "<b>", Markup)


def test_results_pivot_on_their_arms_wherever_they_stand() -> None:
    inside = {"retrieval": {"a->b": {"trained": {"R@1": 0.5}, "chance": {"R@1": 0.1}}}}
    outside = {
        "step": 9,
        "trained": {"retrieval": {"a->b": {"R@1": 0.5}}},
        "chance": {"retrieval": {"a->b": {"R@1": 0.1}}},
    }
    want = tables.Result("retrieval", "a->b", "R@1", {"trained": 0.5, "chance": 0.1})
    assert tables.results(inside) == ([want], {})
    assert tables.results(outside) == ([want], {"step": 9})
    assert tables.results({"wrapped": inside})[0] == [want]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1200.0, "1,200"),
        (0.25, "0.25"),
        (2.9984, "2.998"),
        (0.0124, "0.0124"),
        (3e-5, "3e-5"),
        (1234567.0, "1.23e6"),
        (math.nan, "nan"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert plots.number(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 17), (1e-5, 3e-5), (0, 1e9), (2, 2), (99, 101)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = plots.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) + 1e-9 for tick in found)


def test_curves_keep_extremes_and_gaps() -> None:
    steps = list(range(2000))
    values = [1.0] * 2000
    values[1234] = 50.0
    values[500:520] = [math.nan] * 20
    drawn = plots.curves([plots.Series("x", "c-1", steps, values)], label="x")
    line = re.search(r'<path d="([^"]+)" class="line', drawn)
    band = re.search(r'<path d="([^"]+)Z" class="band', drawn)
    assert line
    assert band
    assert line[1].count("M") == 2  # the gap lifts the pen
    heights = [float(y) for y in re.findall(r" (\d+\.\d)", band[1])]
    # The spike reaches the top of the plot although its bucket's mean does not.
    assert min(heights) < 30
    assert len(line[1]) < 4000


def test_charts_leave_no_metric_out() -> None:
    drawn = curves.charts(metrics())
    assert list(drawn) == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Data wait",
        "Health: rank",
    ]
    named = {one.name for series in drawn.values() for one in series}
    assert named == metrics()[0].keys() - {"step", "time", "finite"}
    rank = drawn["Health: rank"]
    assert [one.color for one in rank] == ["c-video", "c-video dashed"]
    assert [m.kind for m in curves.marks([], metrics())] == ["skipped step"]


def test_waveform_and_strip_take_odd_input() -> None:
    for wave in (np.zeros(0), np.zeros(5), np.full(9, np.nan), np.ones(100000)):
        assert "<path" in plots.waveform(wave)
    one = np.zeros((1, 1, 1, 3), np.uint8)
    assert plots.frame_strip(one).startswith("data:image/jpeg;base64,")
    with pytest.raises(ValueError, match="uint8"):
        plots.frame_strip(one.astype(np.float32))
