"""Clips of their own, listed with a class: UCF101, HMDB51, Moments in Time, ESC-50."""

import os
import re
from collections.abc import Iterator

from mmssl.data.recipes import tables
from mmssl.data.recipes.folder import Entry, Folder


def _clip(path: str) -> str:
    """A listed path as a name to look for: without its suffix."""
    return os.path.splitext(path)[0]


def ucf101(folder: Folder, split: str) -> Iterator[Entry]:
    """trainlist0N.txt, testlist0N.txt: Class/v_Class_g01_c01.avi, a number or none.

    The clips of one group (g01) show the same scene.
    """
    for part in ("train", "test"):
        for at, line in tables.lines(folder.one(f"{part}list0{split}.txt")):
            match = re.fullmatch(r"(\w+)/(v_\w+_g\d+)_(c\d+)\.avi( \d+)?", line)
            if match is None:
                raise at.error("Class/v_Class_g01_c01.avi", line)
            name = _clip(line.split()[0])
            yield Entry(
                id=name,
                names=(name, name.partition("/")[2]),
                split=part,
                labels={"class": match[1]},
                group=match[2],
            )


def hmdb51(folder: Folder, split: str) -> Iterator[Entry]:
    """<class>_test_splitN.txt: a file and 1 (train), 2 (test) or 0 (not in split N)."""
    ending = f"_test_split{split}.txt"
    files = folder.all(f"*{ending}")
    if not files:
        raise folder.lacks([f"*{ending}"])
    for file in files:
        label = file.name.removesuffix(ending)
        for at, line in tables.lines(file):
            match = re.fullmatch(r"(\S.*\.avi)\s+([012])", line)
            if match is None:
                raise at.error("a file .avi, and 0, 1 or 2", line)
            if match[2] == "0":
                continue
            name = _clip(match[1])
            yield Entry(
                id=f"{label}/{name}",
                names=(f"{label}/{name}", name),
                split="train" if match[2] == "1" else "test",
                labels={"class": label},
            )


def moments(folder: Folder, split: str) -> Iterator[Entry]:
    """trainingSet.csv, validationSet.csv without a header: file, class, two votes."""
    del split
    files = {"train": ("trainingset.csv",), "validation": ("validationset.csv",)}
    place = {"train": "training", "validation": "validation"}
    columns = ("filename", "label", "positive responses", "negative responses")
    for part, path in folder.split_files(files).items():
        for at, row in tables.rows(path, columns, header=False):
            name = _clip(row["filename"])
            if not name or not row["label"]:
                raise at.error("a file and its class", ",".join(row.values()))
            yield Entry(
                id=f"{place[part]}/{name}",
                names=(f"{place[part]}/{name}",),
                split=part,
                labels={"class": row["label"]},
            )


def esc50(folder: Folder, split: str) -> Iterator[Entry]:
    """meta/esc50.csv: fold `split` is the test split, the others are for training."""
    columns = ("filename", "fold", "category", "src_file")
    for at, row in tables.rows(folder.one("esc50.csv"), columns):
        if row["fold"] not in {"1", "2", "3", "4", "5"}:
            raise at.error("a fold from 1 to 5", row["fold"])
        name = _clip(row["filename"])
        yield Entry(
            id=name,
            names=(name,),
            split="test" if row["fold"] == split else "train",
            labels={"class": row["category"]},
            meta={"fold": int(row["fold"])},
            group=row["src_file"],
        )
