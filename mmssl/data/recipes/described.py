"""Clips and stills that people described: MSR-VTT, DiDeMo, COCO captions, ImageNet."""

import collections
import os
from collections.abc import Iterator
from typing import Any

from mmssl.data import captions
from mmssl.data.recipes import tables
from mmssl.data.recipes.folder import Entry, Folder
from mmssl.data.recipes.tables import At


def msrvtt(folder: Folder, split: str) -> Iterator[Entry]:
    """videodatainfo files, or MSRVTT_data.json with all of it.

    "full" is the published split. "1k-a" tests on the 1000 pairs of
    MSRVTT_JSFUSION_test.csv (with its one sentence each) and trains on
    MSRVTT_train.9k.csv, or without that file on all other videos.
    """
    whole = folder.optional("msrvtt_data.json")
    files = [whole] if whole else folder.all("*videodatainfo*.json")
    if not files:
        raise folder.lacks(["MSRVTT_data.json", "*videodatainfo*.json"])
    videos: dict[str, tuple[At, dict[str, Any]]] = {}
    sentences: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        top, content = At(file, "file"), tables.load(file)
        for i, video in enumerate(top.get(content, "videos", list)):
            at = At(file, f"videos[{i}]")
            videos[at.get(video, "video_id", str)] = at, video
        for i, sentence in enumerate(top.get(content, "sentences", list)):
            at = At(file, f"sentences[{i}]")
            caption = at.get(sentence, "caption", str)
            sentences[at.get(sentence, "video_id", str)].append(caption)
    parts = _pairs(folder, sentences) if split == "1k-a" else {}
    for name, (at, video) in videos.items():
        if parts:
            part = parts.get(name, "")
        else:
            part = at.get(video, "split", str)
            part = {"validate": "validation"}.get(part, part)
            if part not in ("train", "validation", "test"):
                raise at.error("the split train, validate or test", part)
        if part:
            yield Entry(
                id=name,
                names=(name,),
                split=part,
                segments=captions.parse_text(sentences[name]),
                labels={"category": str(at.get(video, "category", int))},
            )


def _pairs(folder: Folder, sentences: dict[str, list[str]]) -> dict[str, str]:
    """Video to its split in 1k-A; a test video keeps one sentence."""
    test = folder.one("msrvtt_jsfusion_test.csv")
    chosen: dict[str, str] = {}
    for at, row in tables.rows(test, ("video_id", "sentence")):
        if row["video_id"] in chosen or row["video_id"] not in sentences:
            raise at.error("a video of the json file, once", row["video_id"])
        chosen[row["video_id"]] = row["sentence"]
    train = folder.optional("msrvtt_train.9k.csv")
    if train is None:
        parts = dict.fromkeys(sentences, "train")
    else:
        listed = [row["video_id"] for _, row in tables.rows(train, ("video_id",))]
        parts = dict.fromkeys(listed, "train")
    for video, sentence in chosen.items():
        parts[video] = "test"
        sentences[video] = [sentence]
    return parts


_CHUNK = 5.0
"""Seconds: DiDeMo's moments are runs of such chunks."""


def didemo(folder: Folder, split: str) -> Iterator[Entry]:
    """train_data.json, val_data.json, test_data.json; one row a video.

    Annotators chose first and last chunk of five seconds; what most of them chose is
    the time of the description, of ties the earliest and shortest.
    """
    del split
    files = {
        "train": ("train_data.json",),
        "validation": ("val_data.json",),
        "test": ("test_data.json",),
    }
    for part, file in folder.split_files(files).items():
        moments: dict[str, list[list[Any]]] = collections.defaultdict(list)
        content = tables.load(file)
        if not isinstance(content, list):
            raise At(file, "file").error("a list of descriptions", content)
        for i, item in enumerate(content):
            at = At(file, f"entry {i}")
            first, last = _chosen(at, at.get(item, "times", list))
            text = at.get(item, "description", str)
            span = [first * _CHUNK, (last + 1) * _CHUNK, text]
            moments[at.get(item, "video", str)].append(span)
        for video, spans in moments.items():
            name = os.path.splitext(video)[0]
            yield Entry(
                id=name,
                # Some downloads keep the old suffix before the new one.
                names=(name, video),
                split=part,
                segments=captions.parse_segments(spans),
            )


def _chosen(at: At, times: list[Any]) -> tuple[int, int]:
    pairs = []
    for pair in times:
        whole = isinstance(pair, list) and [type(chunk) for chunk in pair]
        if whole != [int, int] or not 0 <= pair[0] <= pair[1]:
            raise at.error("times of [first, last] chunk", pair)
        pairs.append(tuple(pair))
    if not pairs:
        raise at.error("times of [first, last] chunk", times)
    counts = collections.Counter(pairs)
    return min(counts, key=lambda pair: (-counts[pair], pair))


def coco(folder: Folder, split: str) -> Iterator[Entry]:
    """captions_train<year>.json and captions_val<year>.json, of one year."""
    del split
    files = {
        "train": ("captions_train*.json",),
        "validation": ("captions_val*.json",),
    }
    for part, file in folder.split_files(files).items():
        top, content = At(file, "file"), tables.load(file)
        texts: dict[int, list[str]] = collections.defaultdict(list)
        for i, note in enumerate(top.get(content, "annotations", list)):
            at = At(file, f"annotations[{i}]")
            texts[at.get(note, "image_id", int)].append(at.get(note, "caption", str))
        for i, image in enumerate(top.get(content, "images", list)):
            at = At(file, f"images[{i}]")
            name = os.path.splitext(at.get(image, "file_name", str))[0]
            segments = captions.parse_text(texts[at.get(image, "id", int)])
            yield Entry(name, (name,), split=part, segments=segments)


def imagenet(folder: Folder, split: str) -> Iterator[Entry]:
    """train/<class>/<image> and val/<class>/<image>.

    Where they are there, train_cls.txt lists the training images,
    LOC_val_solution.csv the images of val, with or without folders of classes, and
    LOC_synset_mapping.txt names the classes.
    """
    del split
    names: dict[str, str] = {}
    if file := folder.optional("loc_synset_mapping.txt"):
        for _, line in tables.lines(file):
            wnid, _, name = line.partition(" ")
            names[wnid] = name

    def entry(part: str, label: str, *paths: str, listed: bool) -> Entry:
        return Entry(
            id=paths[0],
            names=paths,
            split=part,
            labels={"class": label},
            meta={"name": names[label]} if label in names else {},
            listed=listed,
        )

    train = folder.optional("train_cls.txt")
    for at, line in tables.lines(train) if train else ():
        label, slash, image = line.partition(" ")[0].partition("/")
        if not slash or not image or "/" in image:
            raise at.error("class/image and a number", line)
        yield entry("train", label, f"train/{label}/{image}", listed=True)
    solution = folder.optional("loc_val_solution.csv")
    columns = ("ImageId", "PredictionString")
    for at, row in tables.rows(solution, columns) if solution else ():
        label = row["PredictionString"].partition(" ")[0]
        if not label:
            raise at.error("the class first in PredictionString", "")
        image = row["ImageId"]
        places = f"val/{image}", f"val/{label}/{image}"
        yield entry("validation", label, *places, listed=True)
    found = {"train": train is not None, "val": solution is not None}
    for path in folder.paths():
        *above, part, label, _ = ["", "", *path.split("/")]
        del above
        if part in found and not found[part]:
            place = os.path.splitext(path)[0].split("/")[-3:]
            part = {"val": "validation"}.get(part, part)
            yield entry(part, label, "/".join(place), listed=False)
