"""A row's media, read and decoded completely before it enters a dataset.

Knows rows and the decode pool; writes nothing.
"""

import collections
import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

from mmssl.data import manifest, tars
from mmssl.data import storage as storage_lib
from mmssl.data.faults import MediaFault
from mmssl.data.pool import DecodePool
from mmssl.data.storage import Piece, Storage

Progress = Callable[[int, int, str], None]
"""(done, total, message)."""

MAX_MEDIA_BYTES = 2**30
"""A larger file is a fault: one record must stay below protobuf's 2 GiB."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A row after its media was decoded.

    Attributes:
      row: as the manifest gave it.
      media: the bytes to store; b"" for a text-only row, for a row with a fault, and
        where pieces are stored instead.
      fault: (class, detail) of a row that cannot be used.
      partial: (class, detail) of what a used row lacks.
      probe: the fields of media.Probe; None without media.
      sha256: of the media as read.
      pieces: the media encoded anew, if they are not stored as they were.
    """

    row: manifest.Row
    media: bytes = b""
    fault: tuple[str, str] | None = None
    partial: tuple[tuple[str, str], ...] = ()
    probe: dict[str, Any] | None = None
    sha256: str = ""
    pieces: tuple[Piece, ...] = ()

    def has(self, modality: str) -> bool:
        """Whether the row has usable "video", "audio" or "text"."""
        if modality == "text":
            return bool(self.row.segments or self.row.words)
        return self.probe is not None and self.probe[modality] is not None


def read(row: manifest.Row) -> bytes:
    """The bytes of a row's media; b"" for a text-only row.

    Raises:
      MediaFault: no such file, not a regular file, or larger than `MAX_MEDIA_BYTES`.
    """
    path = row.path
    if path is None:
        return b""
    if tars.INSIDE in str(path):
        return tars.read(str(path), limit=MAX_MEDIA_BYTES, place=row.place)
    try:
        found = path.stat()
        if isinstance(found, os.stat_result):
            # Reading a pipe would wait for ever.
            regular, size = stat.S_ISREG(found.st_mode), found.st_size
        else:
            regular, size = not found.is_directory, found.length
        if not regular:
            raise MediaFault("missing", f"not a regular file: {path}")
        if size > MAX_MEDIA_BYTES:
            sizes = [size / 2**20 for size in (size, MAX_MEDIA_BYTES)]
            detail = "{:.0f} MiB in one file, at most {:.0f} MiB; cut it".format(*sizes)
            raise MediaFault("too_large", detail)
        return path.read_bytes()
    except OSError as e:
        raise MediaFault("missing", f"{e.strerror or e}: {path}") from e


def check(row: manifest.Row, pool: DecodePool, storage: Storage) -> Checked:
    """Reads a row's media, decodes all of it, and encodes it anew if it has to."""
    if row.path is None:
        return Checked(row)
    pieces: list[Piece] = []
    try:
        media = read(row)
        # Bytes, not the path: training decodes from bytes, without a name to guess by.
        if storage.kind == "original":
            found = pool.probe(media, full=True)
        else:
            found, pieces = pool.transcode(media, storage)
    except MediaFault as e:
        return Checked(row, fault=(e.fault_class, e.detail))
    probe = dataclasses.asdict(found)
    partial = tuple(
        (f"{modality}_{name}", f"the {modality} stream: {name}")
        for modality, name in sorted(probe["faults"].items())
    )
    lost = storage_lib.unplaced(row.segments, row.words, pieces)
    if storage.segment and lost:
        detail = f"{lost} after the media's end, or in a rest too short to store"
        partial += (("text", detail),)
    return Checked(
        row,
        media=b"" if pieces else media,
        partial=row.faults + partial,
        probe=probe,
        sha256=hashlib.sha256(media).hexdigest(),
        pieces=tuple(pieces),
    )


def parts(checked: Checked, storage: Storage) -> list[Checked]:
    """What becomes a record each: the row itself, or its pieces with their text.

    A piece is a row of its own: of a file that is cut, `ID#0000`, `ID#0001`, ...; and
    `meta.source` says where in which media it was.
    """
    return [
        _part(checked, piece, number if storage.segment else None)
        for number, piece in enumerate(checked.pieces)
    ] or [checked]


def _part(checked: Checked, piece: Piece, number: int | None) -> Checked:
    row = checked.row
    source = {"sha256": checked.sha256, "start": piece.start, "end": piece.end}
    row = dataclasses.replace(row, meta=dict(row.meta) | {"source": source})
    if number is not None:
        row = dataclasses.replace(
            row,
            id=f"{row.id}#{number:04d}",
            segments=storage_lib.within(row.segments, piece.start, piece.end),
            words=storage_lib.words_within(row.words, piece.start, piece.end),
        )
    return Checked(
        row,
        media=piece.media,
        probe=dataclasses.asdict(piece.probe),
        sha256=hashlib.sha256(piece.media).hexdigest(),
    )


def check_rows(
    rows: Iterable[manifest.Row], *, pool: DecodePool, storage: Storage
) -> Iterator[Checked]:
    """Checks rows in their order; few media are in memory at once.

    Args:
      rows: checked rows of a manifest or a folder.
      pool: as many files are decoded at once as it has workers, while the next ones
        are read.
      storage: how media are to be stored.
    """
    ahead = 2 * pool.workers
    waiting: collections.deque[futures.Future[Checked]] = collections.deque()
    executor = futures.ThreadPoolExecutor(ahead)
    try:
        for row in rows:
            waiting.append(executor.submit(check, row, pool, storage))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
