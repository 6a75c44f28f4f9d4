"""`mmssl data manifest`: a downloaded data set to a manifest, with its coverage."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from mmssl.data.manifest import MEDIA_SUFFIXES
from mmssl.data.recipes import cuts, described, lists, narrated
from mmssl.data.recipes.folder import IMAGE_SUFFIXES, Entry, Folder
from mmssl.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one data set lies on disk.

    Attributes:
      entries: (folder, split) to the clips that its annotations list.
      splits: the published ways to split it, the default first; () for one way only.
      media: suffixes of its media files.
    """

    entries: Callable[[Folder, str], Iterator[Entry]]
    splits: tuple[str, ...] = ()
    media: frozenset[str] = MEDIA_SUFFIXES


_THREE = ("1", "2", "3")

RECIPES: dict[str, Recipe] = {
    "audiocaps": Recipe(cuts.audiocaps),
    "audioset": Recipe(cuts.audioset, ("full", "balanced")),
    "coco": Recipe(described.coco, media=IMAGE_SUFFIXES),
    "didemo": Recipe(described.didemo),
    "esc50": Recipe(lists.esc50, (*_THREE, "4", "5")),
    "hmdb51": Recipe(lists.hmdb51, _THREE),
    "howto100m": Recipe(narrated.howto100m),
    "imagenet": Recipe(described.imagenet, media=IMAGE_SUFFIXES),
    "kinetics400": Recipe(functools.partial(cuts.kinetics, classes=400)),
    "kinetics600": Recipe(functools.partial(cuts.kinetics, classes=600)),
    "kinetics700": Recipe(functools.partial(cuts.kinetics, classes=700)),
    "moments": Recipe(lists.moments),
    "msrvtt": Recipe(described.msrvtt, ("1k-a", "full")),
    "ucf101": Recipe(lists.ucf101, _THREE),
    "vggsound": Recipe(cuts.vggsound),
    "youcook2": Recipe(narrated.youcook2),
    "youtube": Recipe(narrated.youtube),
}
"""Name to recipe; what each expects is in docs/datasets.md."""

UNSPLIT = "all"
"""The coverage's name for clips whose split is drawn when a dataset is built."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What a manifest holds.

    Attributes:
      path: of the manifest.
      coverage: split to {"listed", "found"}; `listed` is None where nothing says how
        many clips there should be.
      missing: a file with the clips that were not found, one id a line; None if all
        were.
      examples: the names one missing clip was looked for under.
      repeated: entries left out because of their id, listed before.
      dropped: texts left out, by kind; see folder.Folder.
    """

    path: pathlib.Path
    coverage: dict[str, dict[str, int | None]]
    missing: pathlib.Path | None
    examples: tuple[str, ...]
    repeated: int
    dropped: dict[str, int]


def write_manifest(
    recipe: str,
    *,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Writes the manifest `out` of the clips that are both listed and found.

    Its last line, `{"dataset": ...}`, has the recipe, the split, the annotation files
    and the coverage; a build carries it into the dataset's metadata. Clips that are
    listed and not found are named in OUT.missing.txt.

    Args:
      recipe: a key of RECIPES.
      root: the folder below which annotations and media lie.
      out: the manifest; paths in it are relative to its folder.
      split: one of the recipe's `splits`; default the first.
      overwrite: replace `out`.

    Raises:
      UserError: an unknown recipe or split, `out` exists, annotations that are not
        there or not the data set's, no clip found, or one file for two clips.
    """
    out = pathlib.Path(out)
    chosen = RECIPES.get(recipe)
    if chosen is None:
        known = f"known: {', '.join(RECIPES)}"
        raise UserError(
            f"recipe {recipe!r}: unknown{nearest(recipe, RECIPES)}; {known}"
        )
    split = _split(recipe, chosen.splits, split)
    if os.path.lexists(out) and not overwrite:
        raise UserError(
            f"{out}: already there; choose another file, or pass --overwrite"
        )
    folder = Folder(root, media=chosen.media)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Without links: the way up from a linked folder is not the way back.
    base = os.path.relpath(folder.root.resolve(), out.parent.resolve())
    missing = out.with_name(f"{out.name}.missing.txt")
    with _whole(out) as manifest, _whole(missing) as lacking:
        tally = _Tally(folder, base, manifest, lacking)
        for entry in chosen.entries(folder, split):
            tally.take(entry)
        tally.check(folder.root)
        about = {"recipe": recipe, "annotations": folder.annotations} | (
            {"split": split} if split else {}
        )
        counts = {
            "coverage": tally.coverage,
            "repeated": tally.repeated,
            "dropped": folder.dropped,
        }
        _put(manifest, {"dataset": about | counts})
    if not tally.examples:
        missing.unlink()
    return Written(
        path=out,
        missing=missing if tally.examples else None,
        examples=tally.examples,
        **counts,
    )


def _split(recipe: str, known: tuple[str, ...], asked: str | None) -> str:
    if asked is None:
        return known[0] if known else ""
    if asked not in known:
        names = ", ".join(known) or "none: it is published with one way to split it"
        raise UserError(
            f"{recipe}: unknown split {asked!r}{nearest(asked, known)}; known: {names}"
        )
    return asked


class _Tally:
    """Writes rows and counts them."""

    def __init__(
        self, folder: Folder, base: str, manifest: TextIO, lacking: TextIO
    ) -> None:
        self.coverage: dict[str, dict[str, int | None]] = {}
        self.repeated = 0
        self.examples: tuple[str, ...] = ()
        self._folder, self._base = folder, base
        self._manifest, self._lacking = manifest, lacking
        self._ids: set[str] = set()
        self._owners: dict[str, str] = {}

    def take(self, entry: Entry) -> None:
        if entry.id in self._ids:
            self.repeated += 1
            return
        self._ids.add(entry.id)
        name = entry.split or UNSPLIT
        counts = self.coverage.setdefault(name, {"listed": None, "found": 0})
        if entry.listed:
            counts["listed"] = (counts["listed"] or 0) + 1
        path = self._folder.find(*entry.names)
        if path is None:
            self.examples = self.examples or entry.names
            self._lacking.write(f"{entry.id}\n")
            return
        if (owner := self._owners.setdefault(path, entry.id)) != entry.id:
            raise UserError(
                f"{self._folder.root / path}: the only file for two clips, {owner!r} "
                f"and {entry.id!r}; name them by their times, such as "
                f"{entry.names[0]}{os.path.splitext(path)[1]}"
            )
        counts["found"] = (counts["found"] or 0) + 1
        _put(self._manifest, _row(entry, os.path.join(self._base, path)))

    def check(self, root: pathlib.Path) -> None:
        if any(counts["found"] for counts in self.coverage.values()):
            return
        looked = ", ".join(self.examples[:3]) or "any media file"
        raise UserError(
            f"{root}: none of the {len(self._ids)} clips of the data set is there; "
            f"looked at every depth, for names such as {looked} with a suffix of media "
            "(links are not followed); put the media below --root"
        )


def _row(entry: Entry, media: str) -> dict[str, Any]:
    timed = [[s.start, s.end, s.text] for s in entry.segments if s.timed]
    row = {
        "id": entry.id,
        "media": os.path.normpath(media),
        "split": entry.split,
        "group": entry.group,
        "text": [s.text for s in entry.segments if not s.timed],
        "segments": timed,
        "words": [[w.start, w.end, w.word] for w in entry.words],
        "labels": dict(entry.labels),
        "meta": dict(entry.meta),
    }
    return {key: value for key, value in row.items() if value}


def _put(file: TextIO, value: Mapping[str, Any]) -> None:
    # Other scripts as they are: a manifest is for reading, and an escape is six bytes.
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[TextIO]:
    """A text file that appears when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="replace") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
