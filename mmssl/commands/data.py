"""`mmssl data build | manifest | validate | demo | tokenizer`."""

import argparse
import json
import pathlib
from typing import Any

from mmssl import commands, files
from mmssl.commands import build, limits, manifest, view


def add(subparsers: Any) -> None:
    """Adds the group."""
    group = commands.command(
        subparsers,
        "data",
        summary="make, check and describe datasets",
        about="Turns media files and their text into a dataset (TFDS, ArrayRecord "
        "shards of encoded media), finds downloaded public data sets, checks a "
        "dataset, writes a demo world, trains a tokenizer.",
        example="mmssl data build --folder my_videos --out data/mine",
    )
    members = commands.subcommands(group)
    build.add(members)
    manifest.add(members)
    _add_validate(members)
    view.add(members)
    _add_demo(members)
    _add_tokenizer(members)


def _add_validate(members: Any) -> None:
    parser = commands.command(
        members,
        "validate",
        validate,
        summary="check a dataset again, from its shards",
        about="Opens every shard and every record: schema version, hashes, media that "
        "decode, times in order, labels known. Warns of copies, silence, black video, "
        "odd durations, and sound and pictures that part. Exit code 1 if anything is "
        "wrong; warnings are none.",
        example="mmssl data validate data/mine",
    )
    parser.add_argument("dir", metavar="DIR", help="written by `mmssl data build`")
    parser.add_argument(
        "--media",
        type=_sample,
        metavar="N|all",
        default="all",
        help="decode the media of all records, of about N, evenly spaced, or of none: "
        "0 (default: %(default)s)",
    )
    commands.add_workers(parser)
    limits.add(parser)
    parser.add_argument(
        "--json", metavar="FILE", help="write all that was found there, with every id"
    )


def _add_demo(members: Any) -> None:
    parser = commands.command(
        members,
        "demo",
        demo,
        summary="write a small world of real media files",
        about="Writes short H.264 + AAC mp4 clips of a generated world in which video, "
        "audio and text share their content, and a manifest.jsonl. A known share is "
        "misaligned on purpose and says so in the manifest.",
        example="mmssl data demo --out runs/demo/media --clips 400",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--clips",
        type=commands.positive,
        metavar="N",
        default=400,
        help="how many (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="of everything drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--misaligned",
        type=_share,
        metavar="SHARE",
        default=0.25,
        help="share of clips with another clip's sound or text (default: %(default)s)",
    )
    commands.add_overwrite(parser)


def _add_tokenizer(members: Any) -> None:
    parser = commands.command(
        members,
        "tokenizer",
        tokenizer,
        summary="train a tokenizer on a dataset's text",
        about="Trains a SentencePiece model, or collects a word vocabulary, from the "
        "text of the split `train`. Written beside the dataset, where training looks "
        "for it.",
        example="mmssl data tokenizer --data data/mine --vocab-size 2048",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="a dataset; or")
    source.add_argument(
        "--files", metavar="FILE", nargs="+", help="text files, one text a line"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="default: tokenizer.model in the dataset's folder"
    )
    parser.add_argument(
        "--kind",
        choices=("sentencepiece", "word"),
        default="sentencepiece",
        help="pieces of words, or whole words (default: %(default)s)",
    )
    parser.add_argument(
        "--vocab-size",
        type=commands.positive,
        metavar="N",
        default=1024,
        help="at most (default: %(default)s)",
    )


def validate(arguments: argparse.Namespace) -> int:
    from mmssl.data import validate as room

    found = room.validate(
        arguments.dir,
        media=arguments.media,
        workers=arguments.workers,
        limits=arguments.limits,
        progress=commands.counter("records"),
    )
    if arguments.json:
        files.write(pathlib.Path(arguments.json), json.dumps(found, indent=2) + "\n")
    print(
        f"{arguments.dir}: schema version {found['schema_version']}, "
        f"{found['rows']} records ({commands.counts(found['splits'])}), "
        f"media of {found['media_decoded']} decoded"
    )
    for title, counts, ids, meanings in (
        ("fault", found["faults"], found["ids"], room.FAULTS),
        ("to look at", found["warnings"], found["warning_ids"], room.WARNINGS),
    ):
        if counts:
            rows = [
                (name, count, meanings[name], ", ".join(ids[name][:3]))
                for name, count in counts.items()
            ]
            head = (title, "count", "meaning", "such as")
            print("\n" + commands.table(rows, header=head))
    for title, media in (
        ("left out by the build", found["left_out"]),
        ("used in part", found["in_part"]),
    ):
        if media:
            rows = [(k, len(names), ", ".join(names[:3])) for k, names in media.items()]
            print("\n" + commands.table(rows, header=(title, "files", "such as")))
    if found["ok"]:
        print("\nok")
        return 0
    print("\nbroken: build it again from its media, or copy it again")
    return 1


def demo(arguments: argparse.Namespace) -> None:
    from mmssl.data import demo as room

    done = room.write_demo(
        arguments.out,
        clips=arguments.clips,
        seed=arguments.seed,
        misaligned=arguments.misaligned,
        overwrite=arguments.overwrite,
        progress=commands.counter("clips"),
    )
    print(
        f"{done.clips} clips: {done.swapped['text']} with another clip's text, "
        f"{done.swapped['audio']} with another clip's sound, {done.silent} without "
        f"sound, {done.wordless} without text\n"
        f"next: mmssl data build --manifest {done.manifest} --out DIR"
    )


def tokenizer(arguments: argparse.Namespace) -> None:
    from mmssl.data import tokenizer as room
    from mmssl.errors import UserError

    if arguments.data is None and arguments.out is None:
        raise UserError("--out is needed with --files: where to write the tokenizer")
    done = room.train_tokenizer(
        dataset=arguments.data,
        files=arguments.files or (),
        out=arguments.out,
        kind=arguments.kind,
        vocab_size=arguments.vocab_size,
    )
    print(f"{done.path}: {done.kind}, {done.vocab_size} ids, from {done.texts} texts")


def _sample(text: str) -> int | None:
    """None = all."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0, or 'all'; found {text!r}"
        )
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text}")
    return value
