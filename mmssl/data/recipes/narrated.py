"""Long videos and what is said in them: HowTo100M, YouTube videos, YouCook2."""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmssl.data import captions
from mmssl.data.captions import READERS, CaptionError, Captions
from mmssl.data.recipes import tables
from mmssl.data.recipes.folder import Entry, Folder
from mmssl.data.recipes.tables import At
from mmssl.data.records import Segment


def _spoken(folder: Folder, items: Sequence[Sequence[Any]]) -> tuple[Segment, ...]:
    """Recognized speech of [start, end, text]; what has no time or text is counted."""
    good = [list(item) for item in items if _is_timed(*item)]
    folder.dropped["segments"] += len(items) - len(good)
    return captions.without_repeats(captions.parse_segments(good))


def _is_timed(start: Any, end: Any, text: Any) -> bool:
    numbers = all(
        isinstance(t, (int, float)) and not isinstance(t, bool) for t in (start, end)
    )
    return (
        numbers
        and 0 <= start <= end < 1e9
        and isinstance(text, str)
        and bool(text.strip())
    )


_HOWTO_CAPTIONS = ("caption.json", "raw_caption_superclean.json", "raw_caption.json")


def howto100m(folder: Folder, split: str) -> Iterator[Entry]:
    """The caption file of all videos, read one video at a time, or one file per video.

    HowTo100M_v1.csv, where it is there, lists the videos; without a caption file of all
    videos it has to.
    """
    del split
    listing = folder.optional("howto100m_v1.csv")
    listed: dict[str, dict[str, str]] = {}
    if listing is not None:
        for at, row in tables.rows(listing, ("video_id", "category_1", "category_2")):
            if not row["video_id"] or "/" in row["video_id"]:
                raise at.error("a video id", row["video_id"])
            facts = {key: row[key] for key in ("category_1", "category_2") if row[key]}
            listed[row["video_id"]] = facts
    spoken = folder.optional(*_HOWTO_CAPTIONS)
    if spoken is None and listing is None:
        raise folder.lacks([*_HOWTO_CAPTIONS, "HowTo100M_v1.csv"])
    for at, video, value in tables.items(spoken) if spoken else ():
        columns = [at.get(value, key, list) for key in ("start", "end", "text")]
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(str(len(column)) for column in columns)
            raise at.error("start, end and text of one length", lengths)
        segments = _spoken(folder, list(zip(*columns, strict=True)))
        yield Entry(video, (video,), segments=segments, meta=listed.pop(video, {}))
    for video, facts in listed.items():
        said = _one_video(folder, video)
        yield Entry(
            video, (video,), segments=said.segments, words=said.words, meta=facts
        )


def _one_video(folder: Folder, video: str) -> Captions:
    """Text from a video's own file: csv with start,end,text, or one of READERS."""
    if file := folder.beside(f"{video}.csv"):
        table = tables.rows(file, ("start", "end", "text"))
        times = [(_number(r["start"]), _number(r["end"]), r["text"]) for _, r in table]
        return Captions(_spoken(folder, times))
    for suffix in READERS:
        if file := folder.beside(video + suffix):
            return _captions(folder, file)
    return Captions()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _captions(folder: Folder, file: pathlib.Path | None) -> Captions:
    try:
        said = captions.read_captions(file) if file else Captions()
    except (CaptionError, OSError):
        folder.dropped["captions"] += 1
        return Captions()
    return Captions(captions.without_repeats(said.segments), said.words)


_INFO = ".info.json"
_KEPT = ("id", "title", "language", "upload_date", "channel_id", "categories", "tags")


def youtube(folder: Folder, split: str) -> Iterator[Entry]:
    """Videos, NAME.info.json with title and description, and NAME.LANGUAGE.vtt.

    NAME is the name of the video file. An .info.json without its video is a video that
    is missing. Speech in the video's own language is taken before a translation.
    """
    del split
    names = {n.removesuffix(_INFO) for n in folder.files() if n.endswith(_INFO)}
    listed = frozenset(names)
    names.update(folder.stems())
    spoken: dict[str, dict[str, str]] = {}
    for file in folder.files():
        stem, dot, suffix = file.rpartition(".")
        if file.endswith(_INFO) or dot + suffix not in READERS:
            continue
        name, _, language = stem.rpartition(".")
        if language == "live_chat":
            continue
        if stem in names:
            spoken.setdefault(stem, {}).setdefault("", file)
        elif name in names:
            spoken.setdefault(name, {}).setdefault(language, file)
    for name in sorted(names):
        info, texts = {}, ()
        if name in listed:
            info, texts = _info(folder, name)
        said = Captions()
        if name in spoken:
            language = _language(spoken[name], info.get("language"))
            said = _captions(folder, folder.beside(spoken[name][language]))
            info |= {"captions": language} if language else {}
        yield Entry(
            id=name,
            names=(name,),
            segments=texts + said.segments,
            words=said.words,
            meta=info,
            listed=bool(listed),
        )


def _info(folder: Folder, name: str) -> tuple[dict[str, Any], tuple[Segment, ...]]:
    file = folder.beside(name + _INFO)
    if file is None:
        return {}, ()
    at = At(file, "file")
    value = tables.load(file)
    at.get(value, "id", str)
    texts = [value[key] for key in ("title", "description") if value.get(key)]
    try:
        segments = captions.parse_text(texts)
    except CaptionError as e:
        raise at.error("title and description to be text", e.found) from e
    return {key: value[key] for key in _KEPT if value.get(key)}, segments


def _language(files: dict[str, str], own: object) -> str:
    """Of the languages at hand: the original, the video's own, unnamed, the first.

    `en` is also `en-US`, and the other way round.
    """
    original = sorted(name for name in files if name.endswith("-orig"))
    primary = str(own).split("-")[0]
    kin = sorted(name for name in files if name.split("-")[0] == primary)
    wanted = [*original, str(own), *kin, ""]
    return next((name for name in wanted if name in files), min(files))


def youcook2(folder: Folder, split: str) -> Iterator[Entry]:
    """youcookii_annotations_trainval.json: timed steps of a recipe, one row a video."""
    del split
    file = folder.one("youcookii_annotations_trainval.json")
    top = At(file, "file")
    parts = {"training": "train", "validation": "validation", "testing": "test"}
    for video, value in top.get(tables.load(file), "database", dict).items():
        at = At(file, f"entry {video!r}")
        part = at.get(value, "subset", str)
        if part not in parts:
            raise at.error(f"a subset of {', '.join(parts)}", part)
        steps = []
        for step in at.get(value, "annotations", list):
            times = at.get(step, "segment", list)
            if len(times) != 2:
                raise at.error("a segment [start, end]", times)
            steps.append([*map(at.seconds, times), at.get(step, "sentence", str)])
        try:
            segments = captions.parse_segments(steps)
        except CaptionError as e:
            raise at.error(e.expected, e.found) from e
        yield Entry(
            id=video,
            names=(video,),
            split=parts[part],
            segments=segments,
            labels={"recipe": str(at.get(value, "recipe_type", (str, int)))},
        )
