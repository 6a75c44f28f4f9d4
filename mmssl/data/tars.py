"""Media inside tar files: shards in webdataset's layout, read in place.

Files that share a name up to the first dot are one clip: `a1.mp4`, `a1.txt`, `a1.json`.
Nothing is unpacked to disk; a member is read by its place in the shard. Members that
are no plain files, or whose name leaves the shard, are refused; those of other kinds
(`.pickle`, `.pyd`, `.npy`, ...) are never opened.
"""

import collections
import dataclasses
import errno
import functools
import glob
import json
import os
import pathlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from mmssl.data import captions, manifest
from mmssl.data.faults import MediaFault
from mmssl.errors import UserError

INSIDE = ".tar!/"
"""Between the shard's path and the member's name: `shards/0001.tar!/a1.mp4`."""

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_MAX_TEXT_BYTES = 2**22
_CUT = "cut off"
_REST = "(rest)"


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a tar file.

    Attributes:
      name: as written there.
      offset: of its first byte in the tar file.
      size: in bytes.
      refused: why it is not read; "" for a plain file.
    """

    name: str
    offset: int
    size: int
    refused: str = ""


def _refused(info: tarfile.TarInfo) -> str:
    if not info.isreg() or info.issparse():
        return "a link or a special file"
    parts = pathlib.PurePosixPath(info.name).parts
    if info.name.startswith(("/", "\\")) or ".." in parts:
        return "a name that leaves the shard"
    return ""


@dataclasses.dataclass(frozen=True)
class Shard:
    """What a tar file holds.

    Attributes:
      members: by name; the last of a name counts.
      damage: what ended the reading before the end; "" for a whole file.
    """

    members: Mapping[str, Member]
    damage: str = ""


def _shown(name: str) -> str:
    """A name that is not UTF-8 shows its odd bytes as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _scanned(file: IO[bytes], size: int) -> Shard:
    found: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for info in tar:
                if info.size < 0:
                    return Shard(found, f"damaged at byte {info.offset}")
                if info.isdir():
                    continue
                refused = _refused(info)
                if info.offset_data + info.size > size:
                    refused = _CUT
                name = _shown(info.name)
                found[name] = Member(name, info.offset_data, info.size, refused)
            # A damaged header passes for the end.
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):
                return Shard(found, f"damaged at byte {tar.offset}")
    except RecursionError:  # tarfile reads a header of a header by recursion
        return Shard(found, "too many headers of headers")
    except (tarfile.TarError, ValueError, OverflowError) as e:
        return Shard(found, f"{e}; is it cut off, compressed, or no tar file?")
    except OSError as e:
        # A place before the file's beginning; what else fails is not the shard's.
        if e.errno != errno.EINVAL:
            raise
        return Shard(found, "a header that points outside the file")
    return Shard(found)


@functools.lru_cache(maxsize=256)
def _index(path: str, size: int, mtime: float) -> Shard:
    del mtime  # part of the key: another file by that name
    with _path(path).open("rb") as file:
        return _scanned(file, size)


def _path(path: str) -> Any:
    from etils import epath

    return epath.Path(path)


def shard(path: str) -> Shard:
    """The files of a tar file, which is read once and then remembered.

    Raises:
      OSError: it cannot be read.
    """
    found = _path(path).stat()
    return _index(path, found.length, found.mtime)


def read(path: str, *, limit: int, place: tuple[int, int] | None = None) -> bytes:
    """The bytes of `SHARD.tar!/MEMBER`.

    Args:
      path: local, or on a bucket.
      limit: bytes a member may have.
      place: its offset and size, if a scan found them: the shard's other members are
        not looked at.

    Raises:
      MediaFault: missing, unreadable, forbidden or too_large.
    """
    tar, _, name = path.partition(INSIDE)
    tar += ".tar"
    try:
        member = Member(name, *place) if place else _member(tar, name)
        if member.refused:
            cause = "unreadable" if member.refused == _CUT else "forbidden"
            raise MediaFault(cause, f"{name!r} in {tar}: {member.refused}")
        if member.size > limit:
            sizes = f"{member.size / 2**20:.0f} MiB, at most {limit / 2**20:.0f} MiB"
            raise MediaFault("too_large", f"{name!r} in {tar}: {sizes}")
        with _path(tar).open("rb") as file:
            return _bytes(file, member)
    except OSError as e:
        raise MediaFault("missing", f"{e.strerror or e}: {tar}") from e


def _member(path: str, name: str) -> Member:
    found = shard(path)
    if name not in found.members:
        cause = "unreadable" if found.damage else "missing"
        raise MediaFault(cause, f"no {name!r} in {path} {found.damage}".rstrip())
    return found.members[name]


def _bytes(file: IO[bytes], member: Member) -> bytes:
    if member.offset < 0 or member.size < 0:  # `read` would take it for: all
        raise MediaFault("unreadable", f"{member.name!r}: {member.size} bytes")
    file.seek(member.offset)
    return file.read(member.size)


def scan(patterns: Sequence[str]) -> manifest.Manifest:
    """Rows of all clips in tar files, by shard and name.

    Of a clip's files, one is its media (sound or video, else a picture); its text is
    the first of .vtt, .srt, .json, .txt that has any; a .json object without text is
    its `meta`, and "caption" there is text; .cls is the label `class`. The id is
    `SHARD/KEY`; SHARD is the path without .tar, below the folder that all of them
    share.

    Args:
      patterns: paths or glob patterns of tar files, local or on a bucket.

    Raises:
      UserError: no such tar file, or no media in them. Of a damaged one its whole
        members are rows, and one row that has no bytes stands for the rest.
    """
    names = _names(path for pattern in patterns for path in _shards(pattern))
    paths = sorted(names)
    rows = [row for path in paths for row in _rows(path, names[path])]
    if all(row.media.endswith(INSIDE + _REST) for row in rows):
        found = shard(paths[0]).damage or "other files"
        known = " ".join(sorted(manifest.MEDIA_SUFFIXES))
        raise UserError(
            f"{paths[0]}: expected tar files with members ending in one of {known}, "
            f"found: {found}"
        )
    columns = ("class",) if any(row.labels for row in rows) else ()
    return manifest.Manifest(pathlib.Path(paths[0]), manifest.Rows(rows), columns, {})


def _shards(pattern: str) -> list[str]:
    if "://" in pattern:
        folder, _, name = pattern.rpartition("/")
        found = [str(path) for path in _path(folder).glob(name)]
    else:
        found = glob.glob(pattern, recursive=True)
    if not found:
        raise UserError(f"{pattern}: no such tar file")
    other = [path for path in found if not path.endswith(".tar")]
    if other:
        raise UserError(
            f"{other[0]}: expected a name ending in .tar; a compressed one cannot be "
            "read in place, unpack it with gunzip"
        )
    return found


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Path to what its ids begin with; each file once."""
    whole = {path if "://" in path else os.path.abspath(path): path for path in paths}
    parts = {p: pathlib.PurePosixPath(p).with_suffix("").parts for p in whole}
    shared = len(os.path.commonprefix([found[:-1] for found in parts.values()]))
    return {whole[path]: "/".join(found[shared:]) for path, found in parts.items()}


def _rows(path: str, name: str) -> Iterator[manifest.Row]:
    clips: dict[str, dict[str, Member]] = collections.defaultdict(dict)
    found = shard(path)
    for member in found.members.values():
        folder, _, base = member.name.rpartition("/")
        key, dot, suffix = base.partition(".")
        clips[f"{folder}/{key}".lstrip("/")][(dot + suffix).lower()] = member
    with _path(path).open("rb") as file:
        for key in sorted(clips):
            row = _row(path, f"{name}/{key}", clips[key], file)
            if row is not None:
                yield row
    if found.damage:
        lost = Member(_REST, 0, 0)
        yield _made(path, f"{name}/{_REST}", lost, captions.Captions(), {}, "", ())


def _made(
    path: str,
    id: str,
    media: Member,
    text: captions.Captions,
    meta: Mapping[str, Any],
    label: str,
    faults: tuple[tuple[str, str], ...],
) -> manifest.Row:
    name = f"{path}!/{media.name}"
    return manifest.Row(
        id=_shown(id),
        media=_shown(name),
        path=_path(name),
        segments=text.segments,
        words=text.words,
        labels={"class": label} if label else {},
        meta=meta,
        faults=faults,
        # A refused one is asked for by name, and refused.
        place=(media.offset, media.size) if media.size and not media.refused else None,
    )


def _row(
    path: str, id: str, files: Mapping[str, Member], file: IO[bytes]
) -> manifest.Row | None:
    media = [
        suffix
        for known in (manifest.MEDIA_SUFFIXES, _IMAGES)
        for suffix in sorted(files)
        if "." + suffix.rpartition(".")[2] in known
    ]
    if not media:
        return None
    texts = {
        suffix: _bytes(file, member)
        for suffix, member in files.items()
        if suffix in (*captions.READERS, ".cls")
        and member.size <= _MAX_TEXT_BYTES
        and not member.refused
    }
    text, meta, faults = _text(texts)
    label = texts.get(".cls", b"").decode("utf-8", "replace").strip()
    return _made(path, id, files[media[0]], text, meta, label, faults)


def _text(
    files: Mapping[str, bytes],
) -> tuple[captions.Captions, dict[str, Any], tuple[tuple[str, str], ...]]:
    """(what is said, other facts of the .json, faults) of a clip's small files."""
    meta: dict[str, Any] = {}
    faults: list[tuple[str, str]] = []
    found = captions.Captions()
    for suffix in captions.READERS:
        if suffix not in files:
            continue
        value = _facts(files[suffix]) if suffix == ".json" else None
        try:
            if value is not None:
                meta = {k: v for k, v in value.items() if k != "caption"}
                text = captions.Captions(captions.parse_text(value.get("caption", "")))
            else:
                text = captions.parse(files[suffix], suffix)
        except captions.CaptionError as e:
            faults.append(("caption", f"{suffix}: {e}"))
            continue
        if not found.segments and not found.words:
            found = text
    return found, meta, tuple(faults)


def _facts(data: bytes) -> dict[str, Any] | None:
    """A JSON object that is no caption file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    said = isinstance(value, dict) and value.keys() & {"text", "segments", "words"}
    return value if isinstance(value, dict) and not said else None
