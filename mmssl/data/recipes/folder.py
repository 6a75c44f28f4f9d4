"""What lies below a root folder: media and annotation files, found by name.

Names in annotations are looked up among the files that were found, never joined to a
path: nothing outside the root can be reached. Links are not followed.
"""

import dataclasses
import fnmatch
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmssl.data.manifest import MEDIA_SUFFIXES
from mmssl.data.records import Segment, Word
from mmssl.errors import UserError

IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))

_SOUNDS = "aac ac3 aif aiff amr flac m4a mka mp2 mp3 oga ogg opus wav wma"
_SOUND = frozenset("." + name for name in _SOUNDS.split())


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip that an annotation file lists.

    Attributes:
      id: unique in the data set; a second entry of the same id is left out.
      names: under which the media may lie, best first: a file name without its suffix,
        with folders before it ("run/clip_3") where the name alone is not unique.
      split: as published; "" where none is.
      segments: its text.
      words: what is said, with times.
      labels: column to class.
      meta: other facts.
      group: rows of one group belong into one split.
      listed: False where no annotation says that this clip should be there.
    """

    id: str
    names: tuple[str, ...]
    split: str = ""
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""
    listed: bool = True


class Folder:
    """The files below `root`.

    Args:
      root: a folder.
      media: suffixes of files that count as media.

    Attributes:
      root: the folder.
      annotations: relative paths of the annotation files that were asked for.
      dropped: what to count: texts that could not be read, segments without a time.

    Raises:
      UserError: no such folder.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        media: frozenset[str] = MEDIA_SUFFIXES,
    ) -> None:
        self.root = pathlib.Path(root)
        self.annotations: list[str] = []
        self.dropped = {"captions": 0, "segments": 0}
        self._media: dict[str, list[str]] = {}
        self._files: dict[str, list[str]] = {}
        if not self.root.is_dir():
            found = "a file" if self.root.is_file() else "nothing"
            raise UserError(
                f"{root}: expected the folder in which the data set lies, found "
                f"{found}; pass another --root"
            )
        for path in _walk(self.root):
            name = path.rpartition("/")[2]
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in media:
                self._media.setdefault(stem, []).append(path)
            else:
                self._files.setdefault(name, []).append(path)
        for paths in self._media.values():
            paths.sort(key=lambda p: (os.path.splitext(p)[1].lower() in _SOUND, p))

    def find(self, *names: str) -> str | None:
        """The path relative to the root of the first of `names` that is there.

        Of several files of one name, those with pictures come before those of sound.
        """
        for name in names:
            hits = self._media.get(name.rpartition("/")[2], ())
            for path in hits:
                if f"/{os.path.splitext(path)[0]}".endswith(f"/{name}"):
                    return path
        return None

    def stems(self) -> Iterator[str]:
        """Names of all media files, without suffix."""
        return iter(self._media)

    def paths(self) -> Iterator[str]:
        """Paths of all media files, relative to the root, sorted."""
        return iter(sorted(path for paths in self._media.values() for path in paths))

    def files(self) -> Iterator[str]:
        """Names of all files that are not media."""
        return iter(self._files)

    def beside(self, name: str) -> pathlib.Path | None:
        """A file that is not media, by its exact name."""
        hits = self._files.get(name)
        return self.root / min(hits) if hits else None

    def all(self, pattern: str) -> list[pathlib.Path]:
        """Annotation files whose name matches, whatever its case; sorted.

        Raises:
          UserError: two files of the same name.
        """
        hits = {
            name: paths
            for name, paths in self._files.items()
            if fnmatch.fnmatchcase(name.lower(), pattern)
        }
        for name, paths in hits.items():
            if len(paths) > 1:
                raise UserError(
                    f"{self.root}: expected one {name}, found {len(paths)}: "
                    f"{', '.join(sorted(paths)[:3])}; point --root at one data set"
                )
        found = sorted(paths[0] for paths in hits.values())
        self.annotations += [path for path in found if path not in self.annotations]
        return [self.root / path for path in found]

    def optional(self, *patterns: str) -> pathlib.Path | None:
        """The annotation file that matches the first pattern that any file matches.

        Raises:
          UserError: several files match it.
        """
        for pattern in patterns:
            hits = self.all(pattern)
            if len(hits) > 1:
                names = ", ".join(str(path.relative_to(self.root)) for path in hits[:3])
                raise UserError(
                    f"{self.root}: expected one file like {pattern}, found "
                    f"{len(hits)}: {names}; point --root at one data set"
                )
            if hits:
                return hits[0]
        return None

    def one(self, *patterns: str) -> pathlib.Path:
        """As `optional`, for a file that must be there.

        Raises:
          UserError: no file matches, or several do.
        """
        found = self.optional(*patterns)
        if found is None:
            raise self.lacks(patterns)
        return found

    def split_files(
        self, patterns: Mapping[str, Sequence[str]]
    ) -> dict[str, pathlib.Path]:
        """Split to its annotation file, for the splits that have one.

        Raises:
          UserError: no split has.
        """
        found = {split: self.optional(*names) for split, names in patterns.items()}
        files = {split: path for split, path in found.items() if path is not None}
        if not files:
            raise self.lacks([name for names in patterns.values() for name in names])
        return files

    def lacks(self, patterns: Sequence[str]) -> UserError:
        """The error for annotation files that are not there."""
        seen = ", ".join(sorted(self._files)[:5]) or "no files besides media"
        return UserError(
            f"{self.root}: expected an annotation file {' or '.join(patterns)} there "
            f"or below, found {seen}; put the data set's own file below --root"
        )


def _walk(root: pathlib.Path) -> Iterator[str]:
    """Relative paths of plain files; hidden ones and links are left out."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        for name in names:
            if name.startswith(".") or os.path.islink(os.path.join(folder, name)):
                continue
            path = name if inside == "." else f"{inside}/{name}".replace(os.sep, "/")
            if path == path.encode("utf-8", "replace").decode():  # a manifest is UTF-8
                yield path
