"""What to build from: a JSONL manifest, or a folder of media, as checked rows.

Does not open media. Errors name the file, the line, the field, what was expected and
found, and what to do.
"""

import collections
import dataclasses
import difflib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmssl.data import captions, splits, stores
from mmssl.data.rows import Row, Rows
from mmssl.errors import UserError

_PLACE = ("id", "group", "split")
KEYS = (*_PLACE, "media", "text", "segments", "words", "labels", "meta")

# Names other tools use, which must not slip into `meta` unread.
_ALIASES = {
    "audio": "media",
    "caption": "text",
    "captions": "text",
    "class": "labels",
    "file": "media",
    "filename": "media",
    "path": "media",
    "sentence": "text",
    "transcript": "text",
    "video": "media",
}

_CONTAINERS = """
3g2 3gp aac ac3 aif aiff amr asf avi caf dv f4v flac flv gif m2ts m4a m4b m4v mka mkv
mov mp2 mp3 mp4 mpeg mpg mts mxf oga ogg ogv opus rm rmvb ts vob wav webm wma wmv y4m
"""
MEDIA_SUFFIXES = frozenset("." + name for name in _CONTAINERS.split())
"""Files of a folder that count as media."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Checked rows in the order of the source.

    Attributes:
      source: the manifest file or the folder.
      label_columns: sorted names of all label columns.
      extra_keys: unknown keys of rows, kept in each row's `meta`, with their counts.
      dataset: facts of the data set as a whole, such as its coverage.
    """

    source: stores.Path
    rows: Rows
    label_columns: tuple[str, ...]
    extra_keys: Mapping[str, int]
    dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which has no UTF-8."""
    return text == text.encode("utf-8", "replace").decode()


class _Fields:
    """Reads the fields of one row; every error names file, line and field."""

    def __init__(self, source: stores.Path, line: int, value: dict[str, Any]) -> None:
        self.at = f"{source}, line {line}"
        self.value = value

    def error(self, field: str, expected: str, found: object, remedy: str) -> UserError:
        shown = found if isinstance(found, str) else json.dumps(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return UserError(
            f"{self.at}, field {field!r}: expected {expected}, found {shown}; {remedy}"
        )

    def string(self, field: str, expected: str) -> str:
        found = self.value.get(field)
        if found is None:
            return ""
        if not isinstance(found, str) or not found.strip():
            remedy = "correct the value or leave the field out"
            raise self.error(field, expected, found, remedy)
        if not _is_unicode(found):
            remedy = "correct the escape"
            raise self.error(field, "text in Unicode", ascii(found), remedy)
        return found

    def mapping(self, field: str, expected: str) -> dict[str, Any]:
        found = self.value.get(field)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.error(field, expected, found, "write a JSON object")
        return found

    def texts(self, field: str, parse: Callable[[object], Any]) -> tuple[Any, ...]:
        found = self.value.get(field)
        if found is None:
            return ()
        try:
            return parse(found)
        except captions.CaptionError as e:
            raise self.error(e.field, e.expected, e.found, "correct the entry") from e

    def extras(self) -> dict[str, Any]:
        """Unknown keys; one that looks like a known key is an error."""
        extras = {k: v for k, v in self.value.items() if k not in KEYS}
        for key in extras:
            near = difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=0.6)
            meant = _ALIASES.get(key.lower()) or (near[0] if near else None)
            if meant:
                raise UserError(
                    f"{self.at}: unknown key {key!r}; did you mean {meant!r}? Keys are "
                    f'{", ".join(KEYS)}; put other facts under "meta"'
                )
        return extras


def _label(fields: _Fields, column: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", column):
        expected = "a column name of letters, digits, '_', '-' and '.'"
        raise fields.error(f"labels.{column}", expected, column, "rename the column")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        remedy = 'write the class as a string, for example "red"'
        raise fields.error(f"labels.{column}", "a string or a number", value, remedy)
    if isinstance(value, str) and not _is_unicode(value):
        remedy = "correct the escape"
        raise fields.error(f"labels.{column}", "text in Unicode", ascii(value), remedy)
    return str(value)


class _Checks:
    """What must hold between rows: unique ids, one type per label column, one split
    per group."""

    def __init__(self, source: stores.Path) -> None:
        self.source = source
        self.ids: dict[str, str] = {}
        self.types: dict[str, tuple[str, str, object]] = {}
        self.splits: dict[str, tuple[str, str]] = {}

    def id(self, id: str, where: str) -> None:
        first = self.ids.setdefault(id, where)
        if first != where:
            raise UserError(
                f"{self.source}: id {id!r} twice: {first} and {where}; ids must be "
                "unique, so rename or remove one of them"
            )

    def label(self, column: str, value: object, where: str) -> None:
        kind = "string" if isinstance(value, str) else "number"
        first = self.types.setdefault(column, (kind, where, value))
        if first[0] != kind:
            raise UserError(
                f"{self.source}: label column {column!r} has two types: {first[0]} "
                f"{first[2]!r} on {first[1]}, {kind} {value!r} on {where}; write all "
                "of its values as strings"
            )

    def group(self, group: str, split: str, where: str) -> None:
        first = self.splits.setdefault(group, (split, where))
        if group and first[0] != split:
            raise UserError(
                f"{self.source}: group {group!r} has two splits: "
                f"{first[0] or 'none stated'} on {first[1]}, {split or 'none stated'} "
                f"on {where}; state the same one on all of its rows, or none"
            )


def _row(fields: _Fields, source: stores.Path, where: str, checks: _Checks) -> Row:
    extras = fields.extras()
    media = fields.string("media", "the path of a media file, relative to the manifest")
    id = fields.string("id", "a non-empty string") or media
    group = fields.string("group", "a non-empty string")
    split = fields.string("split", "the name of a split")
    if split and not splits.is_name(split):
        expected = "a name of small letters, digits and '_', other than 'all'"
        raise fields.error("split", expected, split, "rename the split")
    checks.group(group, split, where)
    segments = fields.texts("text", captions.parse_text) + fields.texts(
        "segments", captions.parse_segments
    )
    words = fields.texts("words", captions.parse_words)
    if not media and not segments and not words:
        remedy = 'give the row "media", or "text" with something in it'
        found = "neither media nor text"
        raise fields.error("media", "media or text", found, remedy)
    if not id:
        remedy = "name the row: only a row with media has a default id"
        raise fields.error("id", "an id", "none", remedy)
    checks.id(id, where)
    try:
        path = stores.beside(source, media) if media else None
    except UserError as e:
        raise UserError(f"{fields.at}, field 'media': {e}") from e
    labels = {}
    for column, value in fields.mapping("labels", "{column: class}").items():
        if (name := _label(fields, column, value)) is not None:
            checks.label(column, value, where)
            labels[column] = name
    return Row(
        id=id,
        media=media,
        path=path,
        segments=segments,
        words=words,
        labels=labels,
        meta=extras
        | fields.mapping("meta", "an object of extra facts")
        | ({"group": group} if group else {}),
        group=group,
        split=split,
    )


def _lines(source: stores.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with source.open("rb") as f:
        for line, raw in enumerate(f, start=1):
            if not raw.strip():
                continue
            at = f"{source}, line {line}"
            try:
                value = json.loads(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError) as e:
                raise UserError(
                    f"{at}: expected one JSON object a line, found text that is not "
                    f"JSON ({e}); example: "
                    '{"id": "a", "media": "a.mp4", "text": "a dog barks"}'
                ) from e
            if not isinstance(value, dict):
                raise UserError(
                    f"{at}: expected a JSON object, found {type(value).__name__}; "
                    'example: {"id": "a", "media": "a.mp4", "text": "a dog barks"}'
                )
            yield line, value


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads and checks a JSONL manifest: one JSON object a line.

    Keys of a row: `id` (default: `media` as written), `group` (what the clips of one
    source share: they go into one split; kept in `meta` too), `split` (where it is
    published; default: drawn), `media` (path relative to the manifest; absent for
    text-only rows), `text` (string or list of strings, for the whole clip), `segments`
    and `words` (timed, see captions.py), `labels` {column: string or number}, `meta`
    {any: JSON}. Other keys are kept in `meta`, unless they look like a mistyped key.

    A line `{"dataset": {...}}`, with that key alone, is about the whole: recipes write
    the coverage there.

    Raises:
      UserError: names the line and the field; also for a missing or empty manifest,
        an id twice, a label column of two types, and a group of two splits.
    """
    source = stores.place(path)
    if not source.is_file():
        found = "a folder" if source.is_dir() else "nothing"
        raise UserError(
            f"{source}: expected a manifest file, found {found}; write one JSON object "
            "a line, or build from a folder of media with --folder"
        )
    checks = _Checks(source)
    extra_keys: collections.Counter[str] = collections.Counter()
    rows = Rows()
    dataset: dict[str, Any] = {}
    for line, value in _lines(source):
        if value.keys() == {"dataset"} and isinstance(value["dataset"], dict):
            dataset |= value["dataset"]
            continue
        fields = _Fields(source, line, value)
        rows.append(_row(fields, source, f"line {line}", checks))
        extra_keys.update(value.keys() - set(KEYS))
    if not rows:
        raise UserError(
            f"{source}: the manifest is empty; write one JSON object a line, for "
            'example {"id": "a", "media": "a.mp4", "text": "a dog barks"}'
        )
    columns = tuple(sorted(checks.types))
    return Manifest(source, rows, columns, dict(extra_keys), dataset)


def _beside(media: pathlib.Path) -> tuple[captions.Captions, list[tuple[str, str]]]:
    """The first readable caption file beside a media file, and faults of others."""
    faults = []
    for suffix in captions.READERS:
        file = media.with_suffix(suffix)
        if file.is_file():
            try:
                return captions.read_captions(file), faults
            except (captions.CaptionError, OSError) as e:
                faults.append(("caption", f"{file.name}: {e}"))
    return captions.Captions(), faults


def scan_folder(path: str | os.PathLike[str]) -> Manifest:
    """Rows of all media files under a folder, by suffix, sorted by path.

    The id is the path relative to the folder, with its suffix: a folder may hold
    `talk.mp4` and `talk.wav`. Files whose name starts with a dot are left out. Text
    comes from the first of .vtt, .srt, .json, .txt beside the file with the same stem;
    one that cannot be read is a fault of class `caption`, and the next is tried.

    Raises:
      UserError: no such folder, or no media files in it.
    """
    if stores.is_url(path):
        raise UserError(
            f"{path}: --folder searches this machine only; list what is in a bucket in "
            "a manifest"
        )
    source = pathlib.Path(path)
    if not source.is_dir():
        found = "a file" if source.is_file() else "nothing"
        raise UserError(
            f"{source}: expected a folder of media files, found {found}; for a "
            "manifest file use --manifest"
        )
    rows = Rows()
    for file in sorted(source.rglob("*")):
        hidden = file.name.startswith(".")
        if hidden or file.suffix.lower() not in MEDIA_SUFFIXES or not file.is_file():
            continue
        # A name that is not UTF-8 shows its odd bytes as \\xNN.
        name = os.fsencode(file.relative_to(source)).decode("utf-8", "backslashreplace")
        text, faults = _beside(file)
        rows.append(
            Row(
                id=name,
                media=name,
                path=file,
                segments=text.segments,
                words=text.words,
                labels={},
                meta={},
                faults=tuple(faults),
            )
        )
    if not rows:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise UserError(
            f"{source}: no media files in the folder or below it; expected files "
            f"ending in one of {known}"
        )
    return Manifest(source, rows, (), {})
