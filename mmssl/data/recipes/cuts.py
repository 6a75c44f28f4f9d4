"""Clips cut from YouTube videos: AudioSet, AudioCaps, VGGSound, Kinetics."""

import collections
from collections.abc import Iterator
from typing import Any

from mmssl.data import captions
from mmssl.data.recipes import tables
from mmssl.data.recipes.folder import Entry, Folder
from mmssl.data.recipes.tables import At

_SECONDS = 10.0


def cut_names(video: str, start: float, end: float) -> tuple[str, ...]:
    """Names that downloaders give to the seconds [start, end) of a video.

    Its id with the times (six digits, milliseconds, seconds with and without decimals),
    or the bare id; each also with the "Y" that AudioSet's own tools put before ids.
    """
    first, last = int(start), int(end)
    times = (
        f"_{first:06d}_{last:06d}",
        f"_{first:06d}",
        f"_{start * 1000:.0f}_{end * 1000:.0f}",
        f"_{start:.3f}_{end:.3f}",
        f"_{start:.1f}_{end:.1f}",
        f"_{first}_{last}",
        f"_{start * 1000:.0f}",
        f"_{first}",
        "",
    )
    names = [video + time for time in times]
    return (*names, *(f"Y{name}" for name in names))


def _entry(at: At, video: str, start: float, end: float, **fields: Any) -> Entry:
    if not video or "/" in video:
        raise at.error("a YouTube id", video)
    if not end > start:
        raise at.error(f"an end after the start ({start:g} s)", f"{end:g} s")
    source = {"youtube_id": video, "start": start, "end": end}
    return Entry(
        id=f"{video}_{start:g}_{end:g}",
        names=cut_names(video, start, end),
        meta=source | fields.pop("meta", {}),
        **fields,
    )


_AUDIOSET = {
    "balanced": ("balanced_train_segments.csv",),
    "unbalanced": ("unbalanced_train_segments.csv",),
    "test": ("eval_segments.csv",),
}


def audioset(folder: Folder, split: str) -> Iterator[Entry]:
    """The three csv files, or those that are there, and class_labels_indices.csv.

    A clip has several classes, so they are in `meta`, not a label column.
    """
    names = {}
    if file := folder.optional("class_labels_indices.csv"):
        table = tables.rows(file, ("mid", "display_name"))
        names = {row["mid"]: row["display_name"] for _, row in table}
    unwanted = {"full": "", "balanced": "unbalanced"}[split]
    wanted = {name: files for name, files in _AUDIOSET.items() if name != unwanted}
    columns = ("YTID", "start_seconds", "end_seconds", "positive_labels")
    for part, path in folder.split_files(wanted).items():
        for at, row in tables.rows(path, columns, header=False):
            classes = [mid.strip() for mid in row["positive_labels"].split(",")]
            yield _entry(
                at,
                row["YTID"],
                at.seconds(row["start_seconds"]),
                at.seconds(row["end_seconds"]),
                split="test" if part == "test" else "train",
                meta={"classes": [names.get(mid, mid) for mid in classes]},
            )


_PARTS = {
    "train": ("train.csv", "*train.csv"),
    "validation": ("val.csv", "validate.csv", "validation.csv", "*val*.csv"),
    "test": ("test.csv", "*test.csv"),
}


def audiocaps(folder: Folder, split: str) -> Iterator[Entry]:
    """train.csv, val.csv, test.csv; the captions of one clip come into one row."""
    del split
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    for part, path in folder.split_files(_PARTS).items():
        texts: dict[tuple[str, float], list[str]] = collections.defaultdict(list)
        places: dict[tuple[str, float], At] = {}
        for at, row in tables.rows(path, columns):
            key = row["youtube_id"], at.seconds(row["start_time"])
            texts[key].append(row["caption"])
            places.setdefault(key, at)
        for (video, start), found in texts.items():
            yield _entry(
                places[video, start],
                video,
                start,
                start + _SECONDS,
                split=part,
                segments=captions.parse_text(found),
            )


def vggsound(folder: Folder, split: str) -> Iterator[Entry]:
    """vggsound.csv without a header: id, start, class, split; clips of ten seconds."""
    del split
    columns = ("id", "start", "class", "split")
    for at, row in tables.rows(folder.one("vggsound.csv"), columns, header=False):
        if row["split"] not in ("train", "test"):
            raise at.error("the split train or test", row["split"])
        start = at.seconds(row["start"])
        yield _entry(
            at,
            row["id"],
            start,
            start + _SECONDS,
            split=row["split"],
            labels={"class": row["class"]},
        )


def kinetics(folder: Folder, split: str, *, classes: int) -> Iterator[Entry]:
    """train, val (or validate) and test csv files; the test file may have no labels.

    Raises:
      UserError: also for more classes than the set has.
    """
    del split
    columns = ("youtube_id", "time_start", "time_end")
    seen: set[str] = set()
    for part, path in folder.split_files(_PARTS).items():
        lacking = () if part == "test" else ("label",)
        for at, row in tables.rows(path, (*columns, *lacking)):
            label = row.get("label", "")
            if lacking and not label:
                raise at.error("a label", label)
            seen |= {label} - {""}
            if len(seen) > classes:
                raise at.error(f"at most {classes} classes", f"one more, {label!r}")
            yield _entry(
                at,
                row["youtube_id"],
                at.seconds(row["time_start"]),
                at.seconds(row["time_end"]),
                split=part,
                labels={"class": label} if label else {},
            )
