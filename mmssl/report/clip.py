"""One clip of a dataset as a card: what is seen, heard and said on one time axis."""

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from mmssl.report import draw as draws
from mmssl.report import plots
from mmssl.report.draw import Draw
from mmssl.report.html import Markup, tag
from mmssl.report.plots import number

Timed = Sequence[tuple[float, float, str]]
"""(start, end, text) in seconds; NaN times: of the whole clip."""

_ROWS = 5
_WORDS = 200
_CHARACTERS = 400


@dataclasses.dataclass(frozen=True)
class Clip:
    """One row of a dataset, decoded by the caller.

    Attributes:
      index: of the row, over all splits: the card's anchor.
      place: where it is, in words: "train, row 17".
      id: of the row.
      start: seconds; what is shown of the media begins here
      end: and ends here.
      duration: of the whole media.
      frames: evenly spaced over what is shown, each in the middle of its part.
      audio: samples of what is shown, for the waveform.
      spectrum: its log-mel, [t, m].
      mp4: what is shown, to be played.
      segments: texts of the row.
      words: its timed words.
      texts: pieces of its texts by the dataset's tokenizer.
      labels: column to class.
      faults: modality to fault class.
      notes: what else to say, such as "text swapped on purpose".
      facts: name to value: file name, SHA-256, streams, ...
      draw: of a training view, or None.
    """

    index: int
    place: str
    id: str
    start: float = 0.0
    end: float = 0.0
    duration: float = 0.0
    frames: UInt8[np.ndarray, "f h w 3"] | None = None
    audio: Float32[np.ndarray, "s"] | None = None
    spectrum: Float32[np.ndarray, "t m"] | None = None
    mp4: bytes = b""
    segments: Timed = ()
    words: Timed = ()
    texts: Sequence[Sequence[str]] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    faults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    draw: Draw | None = None

    @property
    def anchor(self) -> str:
        return f"row-{self.index}"

    @property
    def fault_names(self) -> list[str]:
        """`audio_corrupt`, ...: as the build names what a used row lacks."""
        return [f"{name}_{fault}" for name, fault in self.faults.items()]

    @property
    def missing(self) -> list[str]:
        """Modalities that it has not."""
        there = {
            "video": self.frames is not None,
            "audio": self.audio is not None,
            "text": bool(self.segments or self.words),
        }
        return [name for name, found in there.items() if not found]


def card(clip: Clip) -> Markup:
    """The clip's article. Its data attributes are what the page filters by."""
    return tag(
        "article",
        _head(clip),
        tag("div", _player(clip), _lanes(clip), class_="view") if clip.mp4 else None,
        _untimed(clip),
        draws.pieces(clip.texts) if clip.draw is None else None,
        draws.block(clip.draw) if clip.draw else None,
        tag("details", tag("summary", "File"), _facts(clip.facts)),
        id=clip.anchor,
        class_="clip",
        tabindex="-1",
        data_faults=json.dumps(clip.fault_names),
        data_missing=json.dumps(clip.missing),
        data_labels=json.dumps(dict(clip.labels)),
        data_text=" ".join([clip.id, *(text for *_, text in clip.segments)])[:4000],
    )


def _head(clip: Clip) -> Markup:
    shown = [
        tag("span", tag("i", column), value, class_="label", dir="auto")
        for column, value in clip.labels.items()
        if value
    ]
    shown += [
        tag("span", name, class_="label bad", title="fault")
        for name in clip.fault_names
    ]
    shown += [tag("span", f"no {name}", class_="label none") for name in clip.missing]
    shown += [tag("span", note, class_="label swapped") for note in clip.notes]
    title = tag("h3", tag("a", clip.id, href=f"#{clip.anchor}", dir="auto"))
    return tag(
        "header",
        title,
        tag("p", clip.place, class_="place"),
        tag("p", shown, class_="labels") if shown else None,
    )


def _player(clip: Clip) -> Markup:
    source = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode()
    if clip.frames is None:
        player = tag("audio", controls="", preload="none", src=source)
    else:
        middle = len(clip.frames) // 2
        player = tag(
            "video",
            controls="",
            preload="none",
            playsinline="",
            src=source,
            poster=plots.frame_strip(clip.frames[middle : middle + 1], height=180),
        )
    length = f"{clip.duration:.2f} s"
    if clip.end - clip.start < clip.duration - 0.01:
        length = f"{draws.time(clip.start)} to {draws.time(clip.end)} of {length}"
    return tag("div", player, tag("p", length, class_="length"), class_="player")


def _share(clip: Clip, time: float) -> float:
    """Percent along the time axis."""
    part = (time - clip.start) / max(clip.end - clip.start, 1e-9)
    return 100 * min(max(part, 0.0), 1.0)


def _lanes(clip: Clip) -> Markup:
    """Everything that has a time, above one axis; the script moves a head over it."""
    wave = mel = None
    if clip.audio is not None:
        wave = plots.waveform(clip.audio, columns=480)
    if clip.spectrum is not None:
        mel = draws.image(plots.spectrogram(clip.spectrum), "log-mel spectrogram")
    lanes = {
        "frames": _strip(clip),
        "text": _timeline(clip, clip.segments, "segment"),
        "words": _timeline(clip, clip.words[:_WORDS], "word"),
        "sound": wave,
        "log-mel": mel,
        "seconds": _axis(clip),
    }
    rows = [
        tag("div", tag("span", name, class_="name"), body, class_=f"lane {name}")
        for name, body in lanes.items()
        if body is not None
    ]
    over = []
    if clip.draw is not None:
        left = _share(clip, clip.draw.start)
        right = _share(clip, clip.draw.start + clip.draw.seconds)
        over.append(
            tag(
                "i",
                class_="window",
                title="the window that training draws",
                style=f"left:{left:.2f}%;width:{right - left:.2f}%",
            )
        )
    over.append(tag("i", class_="head", hidden=""))
    return tag(
        "div",
        tag(
            "div",
            rows,
            tag("div", over, class_="over"),
            class_="lanes",
            data_seconds=round(clip.end - clip.start, 3),
        ),
        class_="scroll",
    )


def _strip(clip: Clip) -> Markup | None:
    """Frames in a row, the training crop drawn on those inside the window."""
    if clip.frames is None:
        return None
    count = len(clip.frames)
    image = draws.image(plots.frame_strip(clip.frames, height=96), f"{count} frames")
    draw = clip.draw
    if draw is None or draw.box is None:
        return tag("div", image, class_="strip")
    top, left, tall, wide = draw.box
    step = (clip.end - clip.start) / count
    shade, edge = [], []
    for i in range(count):
        time = clip.start + (i + 0.5) * step
        cell = f"M{i} 0h1v1h-1z"
        if not draw.start <= time <= draw.start + draw.seconds:
            shade.append(cell)
            continue
        crop = f"M{i + left:.4f} {top:.4f}h{wide:.4f}v{tall:.4f}h{-wide:.4f}z"
        shade.append(cell + crop)
        edge.append(crop)
    drawn = tag(
        "svg",
        tag("path", d="".join(shade), class_="shade", fill_rule="evenodd"),
        tag("path", d="".join(edge), class_="edge"),
        viewBox=f"0 0 {count} 1",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return tag("div", image, drawn, class_="strip")


def _timeline(clip: Clip, items: Timed, kind: str) -> Markup | None:
    """Texts at their times, in as few rows as their overlaps allow."""
    rows: list[list[Markup]] = []
    ends: list[float] = []
    hidden = 0
    for start, end, text in items:
        if math.isnan(start):
            continue
        if end < clip.start or start > clip.end:
            hidden += 1
            continue
        row = next((i for i, free in enumerate(ends) if free <= start + 1e-3), None)
        if row is None:
            if len(rows) == _ROWS:
                hidden += 1
                continue
            row = len(rows)
            rows.append([])
            ends.append(0.0)
        ends[row] = end
        left, right = _share(clip, start), _share(clip, end)
        short = text[:_CHARACTERS]
        rows[row].append(
            tag(
                "span",
                short,
                class_=kind,
                dir="auto",
                title=f"{draws.time(start)} to {draws.time(end)}: {short}",
                style=f"left:{left:.2f}%;width:{max(right - left, 0.4):.2f}%",
            )
        )
    if not rows:
        return None
    more = tag("small", f"and {hidden:,} more not drawn") if hidden else None
    return tag("div", [tag("div", row, class_="row") for row in rows], more)


def _axis(clip: Clip) -> Markup:
    marks = [(_share(clip, t), t) for t in plots.ticks(clip.start, clip.end, 6)]
    return tag(
        "div",
        [
            tag(
                "span",
                number(mark),
                style=f"left:{at:.2f}%",
                class_="first" if at < 1 else "last" if at > 98 else None,
            )
            for at, mark in marks
        ],
    )


def _untimed(clip: Clip) -> Markup | None:
    texts = [
        text for start, _, text in clip.segments if math.isnan(start) or not clip.mp4
    ]
    if not texts:
        return None
    shown = [tag("q", text[:_CHARACTERS], dir="auto") for text in texts[:8]]
    if len(texts) > 8:
        shown.append(tag("small", f"and {len(texts) - 8:,} more"))
    return tag("p", shown, class_="words")


def _facts(facts: Mapping[str, str]) -> Markup:
    rows = [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items() if v]
    return tag("dl", rows, class_="file")
