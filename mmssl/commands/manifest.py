"""`mmssl data manifest`."""

import argparse
from collections.abc import Mapping
from typing import Any

from mmssl import commands


def add(members: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        members,
        "manifest",
        run,
        summary="a downloaded public data set to a manifest",
        about="Reads a data set's own annotation files, finds its media below ROOT by "
        "their names, and writes a manifest for `mmssl data build`, with the published "
        "splits. Says how many of the listed clips were found; the dataset keeps it.",
        example="""
            mmssl data manifest ucf101 --root ~/ucf101 --split 1 --out ucf101.jsonl
            mmssl data build --manifest ucf101.jsonl --out data/ucf101

            Recipes: audiocaps audioset coco didemo esc50 hmdb51 howto100m imagenet
            kinetics400 kinetics600 kinetics700 moments msrvtt ucf101 vggsound youcook2
            youtube. What each expects to find: docs/datasets.md.
        """,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="the data set's name")
    parser.add_argument(
        "--root",
        metavar="DIR",
        required=True,
        help="annotations and media, searched deep",
    )
    parser.add_argument("--out", metavar="M.jsonl", required=True, help="a new file")
    parser.add_argument(
        "--split",
        metavar="S",
        help="which of its published splits: the number of ucf101 and hmdb51, the test "
        "fold of esc50, 1k-a or full of msrvtt, full or balanced of audioset (default: "
        "the first)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a manifest that is there"
    )


def run(arguments: argparse.Namespace) -> None:
    from mmssl.data.recipes import write as room

    done = room.write_manifest(
        arguments.recipe,
        root=arguments.root,
        out=arguments.out,
        split=arguments.split,
        overwrite=arguments.overwrite,
    )
    rows = [(split, coverage(counts)) for split, counts in done.coverage.items()]
    print(commands.table(rows, header=("split", "clips found")))
    if done.missing:
        print(
            f"\nnot found: {done.missing}; the first was looked for as "
            f"{', '.join(done.examples[:3])}, with a suffix of media"
        )
    dropped = {"listed twice": done.repeated} | {
        f"{kind} not readable": count for kind, count in done.dropped.items()
    }
    for what, count in dropped.items():
        if count:
            print(f"left out: {count} {what}")
    print(f"\nnext: mmssl data build --manifest {done.path} --out DIR")


def coverage(counts: Mapping[str, Any]) -> str:
    """Found of listed, where a list says how many there should be."""
    found, listed = counts["found"], counts["listed"]
    return (
        f"{found}" if listed is None else f"{found} of {listed} ({found / listed:.0%})"
    )
