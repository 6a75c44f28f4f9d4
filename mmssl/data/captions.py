"""Text with times, from .txt, .srt, .vtt and .json files and from manifest fields.

Knows nothing of media or datasets. Texts come out with white space collapsed and
without markup; order is by start time, untimed texts first.
"""

import dataclasses
import html
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmssl.data.records import Segment, Word


class CaptionError(ValueError):
    """A text field or file that cannot be read: field, expected, found."""

    def __init__(self, *, field: str, expected: str, found: object) -> None:
        self.field, self.expected = field, expected
        self.found = found if isinstance(found, str) else repr(found)
        if len(self.found) > 80:
            self.found = self.found[:77] + "..."
        super().__init__(f"{field}: expected {expected}, found {self.found}")


@dataclasses.dataclass(frozen=True)
class Captions:
    """What one caption file says."""

    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] = ()


_TOUCH = 0.05
"""Seconds between captions that follow each other without a pause."""

_MAX_SECONDS = 1e9
"""Three decades; what is beyond it is no time in a media file."""


def _clean(text: str) -> str:
    # Half a surrogate pair, as cut transcripts have it, has no UTF-8: it becomes "?".
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _order(rows: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    return sorted(rows, key=lambda r: -math.inf if math.isnan(r[0]) else r[0])


def _seconds(value: object, field: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared before it is converted: a whole number may be beyond any float. Times
    # are stored as float32, in which larger ones would be infinite.
    if not number or not abs(value) < _MAX_SECONDS:  # type: ignore[arg-type]
        raise CaptionError(field=field, expected="finite seconds", found=value)
    return float(value)  # type: ignore[arg-type]


def _timed(value: object, field: str, key: str) -> list[tuple[float, float, str]]:
    shapes = f'a list of [start, end, {key}] or of {{"start", "end", "{key}"}}'
    if not isinstance(value, list):
        raise CaptionError(field=field, expected=shapes, found=value)
    rows: list[tuple[float, float, str]] = []
    for i, item in enumerate(value):
        name = f"{field}[{i}]"
        if isinstance(item, Mapping) and {"start", "end", key} <= item.keys():
            item = [item["start"], item["end"], item[key]]
        if not isinstance(item, list) or len(item) != 3:
            raise CaptionError(field=name, expected=shapes, found=item)
        start = _seconds(item[0], f"{name} start")
        end = _seconds(item[1], f"{name} end")
        if end < start:
            expected = f"an end not before its start ({start:g})"
            raise CaptionError(field=f"{name} end", expected=expected, found=end)
        if not isinstance(item[2], str):
            raise CaptionError(field=f"{name} {key}", expected="text", found=item[2])
        rows.append((start, end, item[2]))
    return [(s, e, text) for s, e, raw in _order(rows) if (text := _clean(raw))]


def parse_text(value: object) -> tuple[Segment, ...]:
    """Untimed texts: a string, or a list of strings. Empty ones are dropped.

    Raises:
      CaptionError: anything else.
    """
    cleaned = []
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            expected = "a string or a list of strings"
            raise CaptionError(field="text", expected=expected, found=text)
        cleaned.append(_clean(text))
    return tuple(Segment(math.nan, math.nan, text) for text in cleaned if text)


def parse_segments(value: object) -> tuple[Segment, ...]:
    """`[[start, end, text], ...]` or `[{"start", "end", "text"}, ...]`, seconds.

    Raises:
      CaptionError: names the entry, what was expected and what was found.
    """
    return tuple(Segment(*row) for row in _timed(value, "segments", "text"))


def parse_words(value: object) -> tuple[Word, ...]:
    """`[[start, end, word], ...]` or `[{"start", "end", "word"}, ...]`, seconds.

    Raises:
      CaptionError: names the entry, what was expected and what was found.
    """
    return tuple(Word(*row) for row in _timed(value, "words", "word"))


def _repeated(before: list[str], words: list[str]) -> int:
    """How many of the first words repeat the last ones before; 0 for a chance match."""
    shorter = min(len(before), len(words))
    for n in range(shorter, 0, -1):
        if before[-n:] == words[:n]:
            return n if n >= 3 or n == shorter else 0
    return 0


def without_repeats(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Live captions without what they show twice.

    Captions of recognized speech roll: a line stays on screen while the next is spoken,
    and is shown again above it. Of a segment that touches the one before it, the words
    are dropped that repeat the end of the one before: all words of either, or at least
    three. What is left of the one before ends where the next starts.

    Args:
      segments: ordered by start, as `parse_segments` gives them.
    """
    kept: list[Segment] = []
    shown: list[str] = []
    for segment in segments:
        last = kept[-1] if kept else None
        before, shown = shown, segment.text.split()
        if last is None or not last.timed or segment.start > last.end + _TOUCH:
            kept.append(segment)
            continue
        words = shown
        # Of what was on screen, or of what of it was new.
        repeated = max(_repeated(b, words) for b in (before, last.text.split()))
        if repeated == len(words):
            end = max(last.end, segment.end)
            kept[-1] = dataclasses.replace(last, end=end)
            continue
        if segment.start > last.start:
            end = min(last.end, segment.start)
            kept[-1] = dataclasses.replace(last, end=end)
        text = " ".join(words[repeated:])
        kept.append(dataclasses.replace(segment, text=text))
    return tuple(kept)


_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def _cue_seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int(fraction.ljust(3, "0")) / 1000


def _unmarked(text: str) -> str:
    """Without tags. They part no words: scripts without spaces have them within."""
    return _MARKUP.sub("", _BREAK.sub(" ", text))


def _cues(text: str, *, sort: str) -> Captions:
    """Cues of a SubRip or WebVTT text: a timing line, then text up to an empty line."""
    rows: list[tuple[float, float, str]] = []
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if "-->" not in line:
            continue
        field = f"line {i + 1}"
        match = _TIMING.fullmatch(line)
        if match is None:
            expected = f"a {sort} timing, 00:00:01.000 --> 00:00:02.500"
            raise CaptionError(field=field, expected=expected, found=line)
        start = _cue_seconds(*match.groups()[:4])
        end = _cue_seconds(*match.groups()[4:])
        if end < start:
            expected = f"an end not before its start ({start:g})"
            raise CaptionError(field=field, expected=expected, found=end)
        body = []
        for following in lines[i + 1 :]:
            # In WebVTT a line of spaces is text: rolling captions start with one.
            blank = not (following if sort == "WebVTT" else following.strip())
            if blank or "-->" in following:
                break
            body.append(following)
        cleaned = _clean(html.unescape(_unmarked(" ".join(body))))
        if cleaned:
            rows.append((start, end, cleaned))
    if not rows and text.strip() not in ("", "WEBVTT"):
        expected = f"at least one {sort} cue with text"
        raise CaptionError(field="file", expected=expected, found=lines[0])
    return Captions(segments=tuple(Segment(*row) for row in _order(rows)))


def _srt(text: str) -> Captions:
    return _cues(text, sort="SubRip")


def _vtt(text: str) -> Captions:
    return _cues(text, sort="WebVTT")


def _txt(text: str) -> Captions:
    return Captions(segments=parse_text(text.splitlines()))


def _json(text: str) -> Captions:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:  # the latter: nested without end
        raise CaptionError(field="file", expected="JSON", found=str(e)) from e
    if isinstance(value, str):
        return Captions(segments=parse_text(value))
    if isinstance(value, list):
        plain = all(isinstance(item, str) for item in value)
        return Captions(parse_text(value) if plain else parse_segments(value))
    if not isinstance(value, dict) or not value.keys() & {"text", "segments", "words"}:
        expected = 'an object with "text", "segments" or "words", or a list of segments'
        raise CaptionError(field="file", expected=expected, found=value)
    if {"start", "end"} <= value.keys():  # parallel lists, as HowTo100M has them
        value = {"segments": _transposed(value)}
    segments = parse_segments(value.get("segments", []))
    # Speech recognizers repeat the whole transcript as "text" beside their segments.
    whole = parse_text(value["text"]) if "text" in value and not segments else ()
    words = value["words"] if "words" in value else _within(value.get("segments"))
    return Captions(segments=whole + segments, words=parse_words(words))


def _within(segments: Any) -> list[Any]:
    """Words inside segments, as Whisper writes them; some have no time (WhisperX)."""
    found: list[Any] = []
    for segment in segments or ():
        words = segment.get("words") if isinstance(segment, Mapping) else None
        for word in words if isinstance(words, list) else ():
            timed = isinstance(word, Mapping) and {"start", "end"} <= word.keys()
            found += [word] if timed else []
    return found


def _transposed(value: Mapping[str, Any]) -> list[list[Any]]:
    columns = [value[name] for name in ("start", "end", "text") if name in value]
    lists = len(columns) == 3 and all(isinstance(c, list) for c in columns)
    if not lists or len({len(c) for c in columns}) > 1:
        expected = '"start", "end" and "text" as lists of one length'
        raise CaptionError(field="file", expected=expected, found=dict(value))
    return [list(row) for row in zip(*columns, strict=True)]


READERS: dict[str, Callable[[str], Captions]] = {
    ".vtt": _vtt,
    ".srt": _srt,
    ".json": _json,
    ".txt": _txt,
}
"""By suffix; where a clip has several, the first of this order is read."""


def parse(data: bytes, suffix: str) -> Captions:
    """The text of a caption file's bytes; `suffix` is a key of `READERS`.

    Raises:
      CaptionError: not UTF-8 (or UTF-16 with a byte-order mark), or not that format.
    """
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as e:
        expected = "UTF-8 text; convert it, for example with iconv"
        raise CaptionError(field="file", expected=expected, found=str(e)) from e
    return READERS[suffix](text)


def read_captions(path: str | os.PathLike[str]) -> Captions:
    """Reads one caption file by its suffix.

    - .txt: every non-empty line is a text of the whole clip.
    - .srt, .vtt: timed cues, without tags, styles and notes.
    - .json: an object with `text`, `segments` or `words` as in a manifest row, a list
      of segments or of strings, or parallel lists `{"start", "end", "text"}`.

    Raises:
      CaptionError: as `parse`.
      OSError: the file cannot be read.
    """
    path = pathlib.Path(path)
    return parse(path.read_bytes(), path.suffix.lower())
