"""Annotation files: csv, lines and JSON, read strictly; errors name file and place."""

import csv
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmssl.errors import UserError

_CHUNK = 2**20
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclasses.dataclass(frozen=True)
class At:
    """A place in an annotation file.

    Attributes:
      file: the file.
      place: such as "line 3".
    """

    file: pathlib.Path
    place: str

    def error(self, expected: str, found: object) -> UserError:
        """What is wrong at this place."""
        shown = found if isinstance(found, str) else repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return UserError(
            f"{self.file}, {self.place}: expected {expected}, found "
            f"{shown or 'nothing'}; is this the data set's own file? "
            "docs/datasets.md says what is read"
        )

    def seconds(self, value: object) -> float:
        """A time of at least 0, of a number or its text.

        Raises:
          UserError: it is none.
        """
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < 1e9 or isinstance(value, bool):
            raise self.error("a time in seconds", value)
        return number

    def get(self, value: object, key: str, kind: type | tuple[type, ...]) -> Any:
        """`value[key]`, of this type.

        Raises:
          UserError: `value` is no object, has no such key, or another type there.
        """
        if not isinstance(value, dict) or not isinstance(value.get(key), kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join(_KINDS[k] for k in kinds)
            found = value.get(key) if isinstance(value, dict) else value
            raise self.error(f"{key!r} to be {names}", found)
        return value[key]


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
}


def lines(file: pathlib.Path) -> Iterator[tuple[At, str]]:
    """The lines that are not blank, stripped.

    Raises:
      UserError: not UTF-8.
    """
    with file.open(encoding="utf-8-sig") as f:
        try:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    yield At(file, f"line {number}"), line.strip()
        except UnicodeDecodeError as e:
            raise At(file, "file").error("UTF-8 text", str(e)) from e


def rows(
    file: pathlib.Path, columns: Sequence[str], *, header: bool = True
) -> Iterator[tuple[At, dict[str, str]]]:
    """The rows of a csv file, as {column: value}; spaces around values are dropped.

    Args:
      file: comma-separated, values with commas in double quotes. Blank lines, and
        those that start with #, are passed over.
      columns: those that must be there; others are kept too. Without a header, exactly
        these.
      header: whether the first row names the columns.

    Raises:
      UserError: a column lacks, a row has another length, or it is no csv file.
    """
    with file.open(encoding="utf-8-sig", newline="") as f:
        reader = csv.reader(f, skipinitialspace=True, strict=True)
        names = None if header else list(columns)
        try:
            for row in reader:
                at = At(file, f"line {reader.line_num}")
                if not row or row[0].startswith("#"):
                    continue
                values = [value.strip() for value in row]
                if names is None:
                    names = values
                    if lacking := set(columns) - set(names):
                        expected = f"the columns {', '.join(columns)}"
                        lacks = f"{','.join(names)} (no {', '.join(sorted(lacking))})"
                        raise at.error(expected, lacks)
                elif len(values) != len(names):
                    expected = f"{len(names)} values ({', '.join(names)})"
                    raise at.error(expected, f"{len(values)}: {','.join(values)}")
                else:
                    yield at, dict(zip(names, values, strict=True))
        except (csv.Error, UnicodeDecodeError) as e:
            place = At(file, f"line {reader.line_num + 1}")
            raise place.error("comma-separated UTF-8 text", str(e)) from e
    if names is None:
        raise At(file, "file").error(f"the columns {', '.join(columns)}", "")


def load(file: pathlib.Path) -> Any:
    """A JSON file.

    Raises:
      UserError: it is none.
    """
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise At(file, "file").error("JSON", str(e)) from e


class _Members:
    """Walks over the members of the object in a JSON file, holding one at a time."""

    def __init__(self, file: pathlib.Path, read: Callable[[int], str]) -> None:
        self._file, self._read = file, read
        self._text, self._at, self._count = "", 0, 0

    def __iter__(self) -> Iterator[tuple[At, str, Any]]:
        self._sign("{")
        if self._sign('"', "}", take=False) == "}":
            return
        while True:
            self._sign('"', take=False)
            key = self._value()
            self._sign(":")
            yield At(self._file, f"entry {key!r}"), key, self._value()
            self._count += 1
            if self._sign(",", "}") == "}":
                return

    def fault(self, found: str) -> UserError:
        place = At(self._file, f"after {self._count} entries")
        return place.error("a JSON object of entries by id", found)

    def _fill(self) -> bool:
        """Reads on: as much again as is held, so that retries stay few."""
        more = self._read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _skip(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]

    def _sign(self, *signs: str, take: bool = True) -> str:
        self._skip()
        while self._at == len(self._text):
            if not self._fill():
                raise self.fault("the end of the file")
            self._skip()
        found = self._text[self._at]
        if found not in signs:
            raise self.fault(self._text[self._at : self._at + 40])
        self._at += take
        return found

    def _value(self) -> Any:
        while True:
            self._skip()
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text):  # a number may go on in the next chunk
                    self._at = end
                    return found
                cause = "the end of the file"
            except (ValueError, RecursionError) as e:
                cause = str(e)
            if not self._fill():
                raise self.fault(cause)


def items(file: pathlib.Path) -> Iterator[tuple[At, str, Any]]:
    """The members of the object that a JSON file is, one at a time: for large files.

    Raises:
      UserError: it is no JSON object; members before the fault have been yielded.
    """
    with file.open(encoding="utf-8-sig") as f:
        members = _Members(file, f.read)
        try:
            yield from members
        except UnicodeDecodeError as e:
            raise members.fault(str(e)) from e
