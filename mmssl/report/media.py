"""Clips as the page shows them: frames, sound, words, labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from mmssl.report import plots
from mmssl.report.html import Markup, tag

MODALITIES = ("video", "audio", "text")


class Sample(TypedDict):
    """One clip, decoded by the caller.

    `frames` uint8 [f, h, w, 3] or None; `audio` float32 [s] at `rate` Hz or None;
    `text` its candidates; `labels` column to class; `swapped` what was exchanged on
    purpose, for example "audio", or "".
    """

    id: str
    frames: np.ndarray | None
    audio: np.ndarray | None
    rate: int
    text: list[str]
    labels: dict[str, str]
    swapped: str


class Answer(TypedDict):
    """One ranked result; `score` is a cosine similarity."""

    sample: Sample
    score: float
    correct: bool


class Query(TypedDict):
    """A retrieval example: `direction` such as "video_to_text"; `results` best first;
    `rank` of the right answer, counted from 1."""

    direction: str
    query: Sample
    results: list[Answer]
    rank: int


def _strip(sample: Sample, *, count: int) -> Markup | None:
    """Frames in rows of at most four images' worth: one line wide, two on a phone."""
    frames = sample["frames"]
    if frames is None or not len(frames):
        return None
    shown = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    halves = [shown] if len(shown) < 6 else np.array_split(shown, 2)
    images = [
        tag(
            "img",
            src=plots.frame_strip(frames[half]),
            alt=f"{len(half)} frames of {sample['id']}",
            style=f"flex:{len(half)} 1 0",
        )
        for half in halves
    ]
    return tag("div", images, class_="strip")


def _wave(sample: Sample, *, playable: bool) -> Markup | None:
    audio = sample["audio"]
    if audio is None or not len(audio):
        return None
    player = None
    if playable:
        source = plots.sound(audio, sample["rate"])
        player = tag("audio", controls="", preload="none", src=source)
    return tag("div", plots.waveform(audio), player, class_="sound")


def _words(sample: Sample) -> Markup | None:
    texts = [text for text in sample["text"] if text.strip()]
    if not texts:
        return None
    return tag("p", [tag("q", text) for text in texts], class_="words")


def _labels(sample: Sample) -> Markup:
    shown = [
        tag("span", tag("i", column), value, class_="label")
        for column, value in sample["labels"].items()
        if str(value)
    ]
    if sample["swapped"]:
        note = f"{sample['swapped']} swapped on purpose"
        shown.append(tag("span", note, class_="label swapped"))
    return tag("p", tag("code", sample["id"]), shown, class_="labels")


def _absent(sample: Sample) -> Markup | None:
    gaps = [
        name
        for name, gone in (
            ("video", sample["frames"] is None or not len(sample["frames"])),
            ("audio", sample["audio"] is None or not len(sample["audio"])),
            ("text", not any(text.strip() for text in sample["text"])),
        )
        if gone
    ]
    return tag("p", f"no {', no '.join(gaps)}", class_="gap") if gaps else None


def sample_block(sample: Sample) -> Markup:
    """Frames, waveform, words and labels of one clip."""
    return tag(
        "article",
        _strip(sample, count=8),
        _wave(sample, playable=True),
        _words(sample),
        _absent(sample),
        _labels(sample),
        class_="sample",
    )


def _ends(direction: str) -> tuple[str, str]:
    """("video", "text") of `video_to_text`, `video->text` or `video→text`."""
    for arrow in ("_to_", "->", "→", " to "):
        if arrow in direction:
            left, right = direction.split(arrow, 1)
            return left.strip(), right.strip()
    return direction, direction


def _view(sample: Sample, modality: str, *, count: int) -> list[Markup | None]:
    if modality == "text":
        return [_words(sample) or tag("p", "no text", class_="gap")]
    if modality == "audio":
        # A waveform says little to a reader; the words and a frame say which it is.
        wave = _wave(sample, playable=False) or tag("p", "no audio", class_="gap")
        return [_strip(sample, count=1), wave, _words(sample)]
    strip = _strip(sample, count=count) or tag("p", "no video", class_="gap")
    return [strip, _words(sample)]


def _answer(place: int, answer: Answer, modality: str) -> Markup:
    score = float(answer["score"])
    return tag(
        "li",
        tag(
            "p",
            tag("b", place),
            tag("span", f"{score:.3f}" if math.isfinite(score) else str(score)),
            tag("em", "right") if answer["correct"] else None,
            class_="place",
        ),
        _view(answer["sample"], modality, count=1),
        class_=f"answer to-{modality} {'correct' if answer['correct'] else ''}".strip(),
    )


def query_block(query: Query) -> Markup:
    """A query, its best five answers, and where the right one came."""
    source, target = _ends(query["direction"])
    asked, rank = query["query"], query["rank"]
    shown = query["results"][:5]
    verdict = "found first" if rank == 1 else f"right one at rank {rank:,}"
    return tag(
        "article",
        tag(
            "header",
            tag("p", f"query: {source} of ", tag("code", asked["id"]), class_="ends"),
            tag("p", verdict, class_="verdict " + ("hit" if rank == 1 else "miss")),
        ),
        tag(
            "div",
            tag("div", _view(asked, source, count=2), class_=f"asked by-{source}"),
            tag("ol", [_answer(i + 1, a, target) for i, a in enumerate(shown)]),
            class_="row",
        ),
        class_="query",
    )


def query_groups(queries: Sequence[Query]) -> list[tuple[str, list[Query]]]:
    """Queries by direction, first seen first."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query["direction"], []).append(query)
    return list(groups.items())


def count_correct(queries: Sequence[Mapping[str, Any]]) -> int:
    """How many queries have the right answer first."""
    return sum(query["rank"] == 1 for query in queries)
