"""Rows of a manifest, and many of them in little memory."""

import array
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmssl.data import stores
from mmssl.data.records import Segment, Word


@dataclasses.dataclass(frozen=True)
class Row:
    """One checked row.

    Attributes:
      id: unique in the manifest.
      media: the path as written; "" for a text-only row.
      path: where the media file should be, or None for a text-only row.
      labels: stated labels only, values as strings.
      faults: (class, detail) of what could not be read beside the media (a caption
        file of a folder); the row is used without it.
      group: rows of one group are in one split; "" for a row on its own.
      split: as stated; "" for a row whose split is drawn.
      place: offset and size in bytes of media in a tar file, where they are known.
    """

    id: str
    media: str
    path: stores.Path | None
    segments: tuple[Segment, ...]
    words: tuple[Word, ...]
    labels: Mapping[str, str]
    meta: Mapping[str, Any]
    faults: tuple[tuple[str, str], ...] = ()
    group: str = ""
    split: str = ""
    place: tuple[int, int] | None = None


def encode(row: Row) -> bytes:
    """A row as a line of JSON; equal for rows that become equal records."""
    fields = vars(row) | {
        "path": None if row.path is None else stores.absolute(row.path),
        "segments": [(s.start, s.end, s.text) for s in row.segments],
        "words": [(w.start, w.end, w.word) for w in row.words],
    }
    return json.dumps(fields, sort_keys=True).encode()


def decode(line: bytes) -> Row:
    """The inverse of `encode`; the path is absolute."""
    fields = json.loads(line)
    if fields["path"] is not None:
        fields["path"] = stores.path(fields["path"])
    fields["segments"] = tuple(Segment(*s) for s in fields["segments"])
    fields["words"] = tuple(Word(*w) for w in fields["words"])
    fields["faults"] = tuple(map(tuple, fields["faults"]))
    fields["place"] = fields["place"] and tuple(fields["place"])
    return Row(**fields)


def mark(line: bytes) -> str:
    """By which a row of one build is found again in another."""
    return hashlib.sha256(line).hexdigest()[:32]


class Rows:
    """Rows, kept as lines: a quarter of the memory that objects take.

    Attributes:
      lines: of `encode`.
      ranks: a uniform 64-bit number for each, by the hash of its id.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.lines: list[bytes] = []
        self.ranks = array.array("Q")
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        self.lines.append(encode(row))
        # Other bytes than `split_of` and `example_id` take.
        rank = hashlib.sha256(row.id.encode()).digest()[16:24]
        self.ranks.append(int.from_bytes(rank, "big"))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, number: int) -> Row:
        return decode(self.lines[number])

    def __iter__(self) -> Iterator[Row]:
        return map(decode, self.lines)
