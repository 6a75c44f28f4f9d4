"""The page about a dataset: complete, escaped, self-contained, small."""

import html
import json
import math
import pathlib
import re

import numpy as np
import pytest

from mmssl.report import clip as clip_lib
from mmssl.report import dataset, draw, histograms
from tests.report.test_report import EVIL, Page


def timed(*texts: str) -> list[tuple[float, float, str]]:
    return [(0.4 * i, 0.4 * i + 1.0, text) for i, text in enumerate(texts)]


def clip(**changes: object) -> clip_lib.Clip:
    rng = np.random.default_rng(0)
    values: dict = {
        "index": 7,
        "place": "train, row 7",
        "id": "one",
        "start": 1.0,
        "end": 3.0,
        "duration": 30.0,
        "frames": rng.integers(0, 256, (4, 12, 16, 3), np.uint8),
        "audio": rng.uniform(-1, 1, 2000).astype(np.float32),
        "spectrum": rng.normal(size=(50, 20)).astype(np.float32),
        "mp4": b"not played here",
        "segments": timed("a red ball", "rolls"),
        "words": timed("a", "red"),
        "texts": [["▁a", "▁re", "d", "<unk>"]],
        "labels": {"color": "red"},
        "facts": {"file": "one.mp4", "SHA-256": "ab" * 32},
    }
    return clip_lib.Clip(**(values | changes))


def summary(**changes: object) -> dataset.Summary:
    values: dict = {
        "name": "mine",
        "path": "data/mine",
        "rows": 90,
        "listed": 100,
        "used": 90,
        "hours": 1.5,
        "bytes": 37_000_000,
        "splits": {"train": 80, "test": 10},
        "modalities": {"video": 90, "audio": 45},
        "labels": {"color": {"red": 60, "blue": 30}},
        "coverage": {"train": {"found": 80, "listed": 160}},
        "faults": [
            dataset.Fault("corrupt", "does not decode", 80, ["a.mp4", "b.mp4"], False),
            dataset.Fault("audio_corrupt", "no sound", 3, ["c.mp4"], True),
        ],
        "details": {"a.mp4": ["corrupt: nothing decodes"]},
        "surveyed": 50,
        "numbers": {"Duration": ("s", [1.0, 2.0, 4.0]), "Frame rate": ("fps", [25.0])},
        "tallies": {"Script": {"Latin": 40, "Han": 10}, "Fault": {}},
    }
    return dataset.Summary(**(values | changes))


def written(
    tmp_path: pathlib.Path, *clips: clip_lib.Clip, view: str = "", **changes: object
) -> tuple[str, Page]:
    out = tmp_path / "page.html"
    dataset.write_dataset(out, summary(**changes), clips, view=view)
    text = out.read_text()
    return text, Page(text)


def drawn() -> draw.Draw:
    kept = np.zeros((2, 3, 4), bool)
    kept[0, 1, 2:] = True
    return draw.Draw(
        start=1.5,
        seconds=1.0,
        box=(0.25, 0.0, 0.5, 0.5),
        flipped=True,
        frames=np.zeros((2, 12, 16, 3), np.uint8),
        spectrum=np.zeros((10, 4), np.float32),
        kept={"video": kept, "audio": np.arange(10) % 2 == 0},
        texts=[["▁red"]],
    )


def test_it_holds_everything_and_loads_nothing(tmp_path: pathlib.Path) -> None:
    text, page = written(tmp_path, clip(), clip(index=8, draw=drawn()), view="a draw")
    for part in ("mine", "1 h 30 min", "37 MB", "50%", "80 of 160", "of 100 files"):
        assert part in page.text, part
    for part in ("median 2 s", "all 25 fps", "Latin", "50 of the 90 clips"):
        assert part in page.text, part
    for part in ("corrupt", "a.mp4", "nothing decodes", "and 78 more"):
        assert part in page.text, part
    for part in ("a red ball", "one.mp4", "ab" * 32, "1.00 s to 3.00 s of 30.00 s"):
        assert part in page.text, part
    assert page.count("video") == 2
    assert page.count("article") == 2
    anchors = {given["id"] for _, given in page.found if "id" in given}
    assert len(anchors) == sum("id" in given for _, given in page.found)
    for _, given in page.found:
        for name in ("src", "href", "poster"):
            target = given.get(name) or "data:"
            assert target.startswith("data:") or target[1:] in anchors, target
    policies = [given.get("content", "") for _, given in page.found]
    assert any(policy.startswith("default-src 'none'") for policy in policies)
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_text_is_escaped(tmp_path: pathlib.Path) -> None:
    evil = clip(
        id=EVIL,
        place=EVIL,
        segments=[(math.nan, math.nan, EVIL), (1.0, 2.0, EVIL)],
        words=[(1.0, 2.0, EVIL)],
        texts=[[EVIL]],
        labels={EVIL: EVIL},
        faults={EVIL: EVIL},
        notes=[EVIL],
        facts={EVIL: EVIL},
        draw=draw.Draw(0.0, 1.0, texts=[[EVIL]], faults=[EVIL]),
    )
    text, page = written(
        tmp_path,
        evil,
        name=EVIL,
        path=EVIL,
        splits={EVIL: 3},
        labels={EVIL: {EVIL: 1}},
        coverage={EVIL: {"found": EVIL, "listed": None}},
        faults=[dataset.Fault(EVIL, EVIL, 1, [EVIL], False)],
        details={EVIL: [EVIL]},
        numbers={EVIL: (EVIL, [1.0, 2.0])},
        tallies={EVIL: {EVIL: 1}},
        view=EVIL,
    )
    assert page.count("script") == 1
    assert "onerror" not in {name for _, given in page.found for name in given}
    assert EVIL in page.text
    assert EVIL not in text


def test_what_the_filters_read_is_there(tmp_path: pathlib.Path) -> None:
    clips = [
        clip(index=0, faults={"audio": "corrupt"}, audio=None),
        clip(index=1, labels={"color": "blue", "shape": "<b>"}),
    ]
    text, page = written(tmp_path, *clips)
    cards = [given for tag, given in page.found if tag == "article"]
    assert [json.loads(c["data-faults"]) for c in cards] == [["audio_corrupt"], []]
    assert [json.loads(c["data-missing"]) for c in cards] == [["audio"], []]
    assert json.loads(cards[1]["data-labels"]) == {"color": "blue", "shape": "<b>"}
    options = {
        (given["data-kind"], given["data-value"])
        for tag, given in page.found
        if tag == "option"
    }
    assert ("fault", "audio_corrupt") in options
    assert ("missing", "audio") in options
    assert {("label", "red"), ("label", "blue"), ("label", "<b>")} <= options
    assert page.count("select", **{"data-column": "shape"}) == 1
    # Hidden until the script that they need has run.
    assert page.count("form", hidden="") == 1
    assert html.escape("<b>") in text


def test_the_crop_is_drawn_inside_the_window_only() -> None:
    """Frames at 1.25, 1.75, 2.25, 2.75 s; the window is 1.5 to 2.5 s."""
    card = clip_lib.card(clip(draw=drawn()))
    edges = re.search(r'd="([^"]*)" class="edge"', card)
    assert edges
    assert edges[1] == (
        "M1.0000 0.2500h0.5000v0.5000h-0.5000zM2.0000 0.2500h0.5000v0.5000h-0.5000z"
    )
    assert 'style="left:25.00%;width:50.00%"' in card
    assert "crop 25% of the frame · mirrored" in card


def test_what_is_dropped_is_covered() -> None:
    """Two frames side by side of 3 x 4 tokens; the sound's even tokens stay."""
    card = clip_lib.card(clip(draw=drawn()))
    video, audio = re.findall(r'<path d="([^"]*)" class="cover"', card)
    assert video == "M0 0h8v1H0zM0 1h2v1H0zM4 1h4v1H4zM0 2h8v1H0z"
    assert audio == "".join(f"M{i} 0h1v1H{i}z" for i in range(1, 10, 2))
    assert "2 of 24 video tokens" in card
    assert "5 of 10 audio tokens" in card


def test_texts_that_overlap_lie_below_each_other() -> None:
    many = [(1.0 + 0.01 * i, 3.0, f"t{i}") for i in range(9)]
    card = clip_lib.card(clip(segments=[*many, (5.0, 6.0, "later")], words=()))
    assert card.count('class="row"') == 5
    assert "and 5 more not drawn" in card
    apart = [(1.0, 1.5, "a"), (1.5, 2.0, "b")]
    card = clip_lib.card(clip(segments=apart, words=()))
    assert card.count('class="row"') == 1
    assert 'style="left:25.00%;width:25.00%"' in card


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": None},
        {"audio": None, "spectrum": None},
        {"segments": (), "words": (), "texts": ()},
        {"frames": None, "audio": None, "spectrum": None, "mp4": b"", "end": 1.0},
    ],
)
def test_what_is_missing_is_said(changes: dict) -> None:
    one = clip(**changes)
    card = clip_lib.card(one)
    assert one.missing
    for name in one.missing:
        assert f"no {name}" in card
    assert card.count("<audio") == ("frames" in changes and "mp4" not in changes)
    assert card.count("<video") == ("frames" not in changes)
    Page(card)


def test_histograms_count_every_value_once() -> None:
    values = [1.0, 1.1, 1.2, 5.0, 9.0]
    figure = histograms.histogram(values, title="x", unit="s")
    counts = re.findall(r"<rect[^>]*><title>[^<]*: (\d+)</title>", figure)
    assert sum(map(int, counts)) == len(values)
    assert "median 1.2 s" in figure
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" width', figure)]
    assert min(heights) == histograms.TOP


def test_a_long_tail_gets_bins_of_equal_ratio() -> None:
    values = [1.0] * 50 + [2.0] * 50 + [10000.0]
    figure = histograms.histogram(values, title="x")
    places = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', figure)]
    # On a linear axis 1 and 2 would share the first bin.
    assert len(places) == 3
    assert places[1] > 0.04 * histograms.WIDTH


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [0.0, 1e9], [-3.0, 4.5], [1, 2]])
def test_odd_numbers_are_drawn(values: list[float]) -> None:
    figure = histograms.histogram(values, title="x", unit="px")
    Page(figure)
    assert "nan" not in figure


def test_a_tally_keeps_its_rest_in_one_row() -> None:
    counts = {f"class {i}": 10 - i for i in range(10)}
    figure = histograms.tally(counts, title="x", of=100, most=3)
    page = Page(figure)
    assert page.count("li") == 4
    assert "7 more" in page.text
    assert "10" in page.text.split()
    assert "28" in page.text.split()
    assert "28%" in figure


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (37_136_702, "37.1 MB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_sizes_are_short(count: float, text: str) -> None:
    assert dataset.size(count) == text
