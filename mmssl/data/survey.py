"""What a dataset holds: its own report, and an even sample of its rows.

The work does not grow with the dataset: at most so many rows and bytes are read, and
no media is decoded; the build has done that and left its findings in every row.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from mmssl.data import records
from mmssl.data.records import Record
from mmssl.data.sources import RecordSource, open_dataset
from mmssl.data.text import split_words
from mmssl.errors import UserError

UNREADABLE = "row_read"
"""The fault of a row that storage does not give, or that is no record."""

MODALITIES = ("video", "audio", "text")

_GOLDEN = (5**0.5 - 1) / 2
_WIDTHS = {"FULLWIDTH", "HALFWIDTH"}


class Rows:
    """All rows of some splits, one after the other.

    Args:
      path: a dataset's folder.
      split: one split, or a TFDS slice of one; None: all that have rows.

    Raises:
      UserError: see `sources.open_dataset`.
    """

    def __init__(self, path: str, split: str | None = None) -> None:
        found = records.read_metadata(path)["splits"]
        names = [name for name, rows in found.items() if rows]
        self.splits: dict[str, RecordSource] = {
            name: open_dataset(path, name)
            for name in ([split] if split else names or ["train"])
        }

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def place(self, index: int) -> tuple[str, int]:
        """Split and row in it."""
        for name, source in self.splits.items():
            if index < len(source):
                return name, index
            index -= len(source)
        raise IndexError(index)

    def __getitem__(self, index: int) -> Record:
        split, row = self.place(index)
        return self.splits[split][row]


@dataclasses.dataclass
class Survey:
    """Facts of the rows that were read.

    Attributes:
      rows: rows read.
      of: rows that there are.
      numbers: fact to one number per row that has it: duration (s), size (the shorter
        side of the upright frame, px), fps, rate (Hz), words (of text), bytes.
      counts: fact to {value: rows}: resolution, audio (rate and channels), container,
        script (that most letters of one of the row's texts are of), missing
        (modality, or how it is empty), fault (`modality_class`, as `build` names them).
      faulty: indices of the rows with a fault.
    """

    of: int
    rows: int = 0
    numbers: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    counts: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    faulty: list[int] = dataclasses.field(default_factory=list)

    def add(self, index: int, record: Record) -> None:
        """Takes one row in."""
        self.rows += 1
        probe = known_probe(record)
        video, audio = probe.get("video"), probe.get("audio")
        numbers, counts = self.numbers, self.counts
        if record.media:
            numbers["bytes"].append(len(record.media))
            numbers["duration"].append(float(probe.get("duration") or 0.0))
            # FFmpeg names a family: "mov,mp4,m4a,3gp,3g2,mj2".
            names = str(probe.get("format") or "unknown").split(",")
            counts["container"]["mp4" if "mp4" in names else names[0]] += 1
        if video:
            width, height = video["width"], video["height"]
            counts["resolution"][f"{width} × {height}"] += 1
            numbers["size"].append(min(width, height))
            if video.get("fps"):
                numbers["fps"].append(float(video["fps"]))
        if audio:
            channels = audio.get("channels", 0)
            kind = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
            counts["audio"][f"{audio['rate'] / 1000:g} kHz {kind}"] += 1
            numbers["rate"].append(float(audio["rate"]))
        texts = texts_of(record)
        if texts:
            numbers["words"].append(sum(len(split_words(text)) for text in texts))
            counts["script"].update(set(map(main_script, texts)))
        there = dict(zip(MODALITIES, (video, audio, texts), strict=True))
        counts["missing"].update(name for name, found in there.items() if not found)
        if video and video.get("black"):
            counts["missing"]["video is black"] += 1
        if audio and audio.get("silent"):
            counts["missing"]["audio is silent"] += 1
        faults = [f"{name}_{fault}" for name, fault in faults_of(record).items()]
        counts["fault"].update(faults)
        if faults:
            self.faulty.append(index)


def survey(
    rows: Rows, *, most: int = 500, megabytes: int = 1024, seconds: float = 30.0
) -> Survey:
    """Reads rows that are spread evenly, until one of the bounds is reached.

    Args:
      rows: of a dataset.
      most: rows.
      megabytes: encoded media among what is read.
      seconds: of reading.
    """
    found, size, until = Survey(of=len(rows)), 0, time.monotonic() + seconds
    for index in itertools.islice(spread(len(rows)), most):
        try:
            record = rows[index]
        except UserError:
            found.rows += 1
            found.counts["fault"][UNREADABLE] += 1
            found.faulty.append(index)
            continue
        found.add(index, record)
        size += len(record.media)
        if size > megabytes * 2**20 or time.monotonic() > until:
            break
    found.faulty.sort()
    return found


def spread(count: int) -> Iterator[int]:
    """All of range(count) in an order whose every beginning is spread evenly.

    Multiples of the golden ratio modulo 1 (the additive recurrence of discrepancy
    theory), in steps that are prime to the count, so that no index comes twice.
    """
    step = max(1, round(count * _GOLDEN))
    while math.gcd(step, count) > 1:
        step += 1
    return (i * step % count for i in range(count))


def known_probe(record: Record) -> dict[str, Any]:
    """What the build found by decoding the media; {} without media."""
    # Of a text-only row, `meta` is all the user's.
    return (record.meta.get("probe") or {}) if record.media else {}


def faults_of(record: Record) -> dict[str, str]:
    """Modality to fault class, as the build met it."""
    return dict(known_probe(record).get("faults") or {})


def texts_of(record: Record) -> list[str]:
    """A row's segments, or else its words as one text."""
    words = " ".join(word.word for word in record.words)
    return [s.text for s in record.segments] or ([words] if words else [])


@functools.lru_cache(maxsize=2**16)
def script(character: str) -> str | None:
    """The script of a letter, by its Unicode name: "Latin", "Han"; None: no letter."""
    if not unicodedata.category(character).startswith("L"):
        return None
    words = unicodedata.name(character, "").split()
    first = next((word for word in words if word not in _WIDTHS), "other")
    return {"CJK": "Han"}.get(first, first.capitalize())


def main_script(text: str) -> str:
    """The script of most letters of a text; "no letters" where it has none."""
    letters = collections.Counter(filter(None, map(script, text)))
    return letters.most_common(1)[0][0] if letters else "no letters"


def read_report(path: str) -> dict[str, Any]:
    """What the build used and left out; {} where the file is absent or damaged."""
    try:
        found = json.loads((records.folder(path) / records.REPORT_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def evenly(count: int, most: int, *, seed: int = 0) -> list[int]:
    """About `most` evenly spaced indices of range(count); another seed, other ones."""
    most = min(count, most)
    # Seed 0 takes the middle of each part, others another place in it.
    place = (0.5 + seed * _GOLDEN) % 1
    return [min(count - 1, int((i + place) * count / most)) for i in range(most)]


def chosen(faulty: Sequence[int], even: Sequence[int], most: int) -> list[int]:
    """Rows to show: faulty ones first, at most a quarter; then evenly spaced ones."""
    first = list(faulty)[: -(-most // 4)]
    rest = [index for index in even if index not in set(first)]
    return first + rest[: most - len(first)]
