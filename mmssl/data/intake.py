"""The check of every row's media before a dataset is written: a complete decode.

Knows rows and the decode pool; writes nothing.
"""

import dataclasses
import hashlib
import stat
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from mmssl.data import manifest
from mmssl.data.faults import MediaFault
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError

Progress = Callable[[int, int, str], None]
"""(done, total, message)."""

MAX_MEDIA_BYTES = 2**30
"""A larger file is a fault: one record must stay below protobuf's 2 GiB."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A row after its media was decoded.

    Attributes:
      row: as the manifest gave it.
      fault: (class, detail) of a row that cannot be used.
      partial: (class, detail) of what a used row lacks.
      probe: the fields of media.Probe; None without media.
      sha256: of the media bytes.
      bytes: of the media.
    """

    row: manifest.Row
    fault: tuple[str, str] | None = None
    partial: tuple[tuple[str, str], ...] = ()
    probe: dict[str, Any] | None = None
    sha256: str = ""
    bytes: int = 0

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
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise MediaFault("missing", f"not a regular file: {path}")
        if found.st_size > MAX_MEDIA_BYTES:
            sizes = [size / 2**20 for size in (found.st_size, MAX_MEDIA_BYTES)]
            detail = "{:.0f} MiB in one file, at most {:.0f} MiB; cut it".format(*sizes)
            raise MediaFault("too_large", detail)
        return path.read_bytes()
    except OSError as e:
        raise MediaFault("missing", f"{e.strerror or e}: {path}") from e


def read_again(checked: Checked) -> bytes:
    """The media that was checked; b"" for a text-only row.

    Raises:
      UserError: the file is another one now, or gone.
    """
    try:
        media = read(checked.row)
    except MediaFault:
        media = b""
    if checked.sha256 and hashlib.sha256(media).hexdigest() != checked.sha256:
        raise UserError(
            f"{checked.row.path}: changed while the dataset was being built; build "
            "again when nothing writes to it"
        )
    return media


def _check(row: manifest.Row, pool: DecodePool) -> Checked:
    if row.path is None:
        return Checked(row)
    try:
        media = read(row)
        # Bytes, not the path: training decodes from bytes, without a name to guess by.
        probe = dataclasses.asdict(pool.probe(media, full=True))
    except MediaFault as e:
        return Checked(row, fault=(e.fault_class, e.detail))
    partial = tuple(
        (f"{modality}_{name}", f"the {modality} stream: {name}")
        for modality, name in sorted(probe["faults"].items())
    )
    return Checked(
        row,
        partial=row.faults + partial,
        probe=probe,
        sha256=hashlib.sha256(media).hexdigest(),
        bytes=len(media),
    )


def check_rows(
    rows: Sequence[manifest.Row],
    *,
    pool: DecodePool,
    progress: Progress | None = None,
) -> list[Checked]:
    """Decodes the media of every row completely, in the order of the rows.

    Args:
      rows: checked rows of a manifest or a folder.
      pool: as many files are decoded at once as it has workers.
      progress: called with (done, total, "decoding").
    """
    executor = futures.ThreadPoolExecutor(pool.workers)
    checked = []
    try:
        for result in executor.map(lambda row: _check(row, pool), rows):
            checked.append(result)
            if progress:
                progress(len(checked), len(rows), "decoding")
    finally:
        executor.shutdown(cancel_futures=True)
    return checked
