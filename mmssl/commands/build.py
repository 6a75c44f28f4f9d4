"""`mmssl data build`."""

import argparse
import os
from typing import Any

from mmssl import commands
from mmssl.commands import limits, manifest
from mmssl.data import storage


def add(members: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        members,
        "build",
        run,
        summary="media files (+ text) to a dataset",
        about="Reads every file once, in worker processes with limits on time, memory "
        "and pixels; writes the good ones, encoded as they are, to ArrayRecord shards "
        "that plain TFDS can read. OUT/build_report.json says what was used and the "
        "class of fault of everything that was not. The dataset appears whole or not "
        "at all; a build that ended too early goes on where it was. Runs on Apache "
        "Beam: on the cores of this machine, or on a cluster.",
        example="""
            mmssl data build --folder my_videos --out data/mine
            mmssl data build --manifest clips.jsonl --out data/mine \\
                --splits train=0.8,validation=0.1,test=0.1
            mmssl data build --manifest gs://bucket/m.jsonl --out gs://bucket/mine \\
                --runner DataflowRunner --beam-options project=P region=R ...

            mmssl data build --tar 'shards/*.tar' --out data/mine \\
                --store h264 --short-side 256 --fps 10 --segment 30

            A line of the manifest (only "media" is needed; relative to the manifest):
            {"id": "a1", "media": "a1.mp4", "text": "pouring tea",
             "labels": {"verb": "pour"}}
            A folder: the .txt, .srt, .vtt or .json beside each file is its text.
        """,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--manifest", metavar="M.jsonl", help="one JSON object a line; a path or a URL"
    )
    source.add_argument("--folder", metavar="MEDIA", help="media files, searched deep")
    source.add_argument(
        "--tar",
        metavar="SHARD.tar",
        nargs="+",
        help="tar files of media in webdataset's layout; paths or 'patterns*.tar'",
    )
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="a new folder; a path or a URL"
    )
    parser.add_argument(
        "--splits",
        metavar="NAME=SHARE,...",
        type=_splits,
        default="train=0.9,test=0.1",
        help="shares by hash of the group, or of the id, so a clip never changes "
        "sides (default: %(default)s)",
    )
    commands.add_workers(parser)
    parser.add_argument(
        "--runner",
        metavar="NAME",
        help="of Apache Beam, as DataflowRunner, FlinkRunner, SparkRunner; or none: "
        "without Beam (default: DirectRunner, which is this machine; none where Beam "
        "is not installed)",
    )
    parser.add_argument(
        "--beam-options",
        nargs="+",
        metavar="KEY=VALUE",
        default=(),
        help="for the runner, as it calls them: project=P region=R temp_location=URL",
    )
    parser.add_argument(
        "--shard-rows",
        type=commands.positive,
        metavar="N",
        default=256,
        help="clips in a file, on average between half of it and all; what a build "
        "that was killed has to do again (default: %(default)s)",
    )
    _add_storage(parser)
    limits.add(parser)
    replace = parser.add_mutually_exclusive_group()
    replace.add_argument(
        "--update",
        action="store_true",
        help="make the dataset that is there what the manifest says now: clips that "
        "are in both stay as they are, new ones are added, and clips that are not in "
        "the manifest any more are dropped",
    )
    commands.add_overwrite(replace)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("storage", "what is kept of the media")
    group.add_argument(
        "--store",
        choices=storage.KINDS,
        default="original",
        help="the file's own bytes; or encoded anew, to H.264 + AAC or to JPEG frames "
        "+ FLAC, upright and mono (default: %(default)s)",
    )
    group.add_argument(
        "--short-side", type=commands.positive, metavar="PX", help="at most"
    )
    group.add_argument("--fps", type=float, metavar="N", help="frames a second")
    group.add_argument("--audio-rate", type=commands.positive, metavar="HZ")
    group.add_argument(
        "--segment",
        type=float,
        metavar="SECONDS",
        help="cut files into clips of this length, each with its part of the text",
    )


def run(arguments: argparse.Namespace) -> None:
    from mmssl.data import build as room
    from mmssl.data import runners

    runner = arguments.runner or runners.default()
    done = room.build(
        manifest=arguments.manifest,
        folder=arguments.folder,
        tars=arguments.tar,
        out=arguments.out,
        splits=arguments.splits,
        workers=arguments.workers,
        limits=arguments.limits,
        storage=storage.Storage(
            arguments.store,
            short_side=arguments.short_side,
            fps=arguments.fps,
            audio_rate=arguments.audio_rate,
            segment=arguments.segment,
        ),
        shard_rows=arguments.shard_rows,
        runner=None if runner == "none" else runner,
        beam_options=arguments.beam_options,
        overwrite=arguments.overwrite,
        update=arguments.update,
        progress=commands.counter("files"),
    )
    hours, size = done.duration_seconds / 3600, done.bytes / 2**20
    print(
        f"{arguments.out}: {done.used} of {done.rows} clips, "
        f"{hours:.2f} hours, {size:.1f} MiB, in {done.seconds:.0f} s"
    )
    if arguments.update:
        print(f"files:      {done.shards}, {done.kept} of them as they were")
        if done.dropped:
            print(f"{done.dropped} clips dropped: not in the manifest any more")
    print("splits:     " + commands.counts(done.splits))
    if coverage := done.dataset.get("coverage"):
        found = {split: manifest.coverage(counts) for split, counts in coverage.items()}
        print("found:      " + commands.counts(found))
    print("modalities: " + commands.counts(done.modalities))
    for column, classes in done.labels.items():
        print(f"label {column}: " + commands.counts(classes))
    for title, counts, files in (
        ("left out", done.faults, done.files),
        ("used in part", done.partial, done.partial_files),
    ):
        if counts:
            rows = [(k, n, ", ".join(files[k][:3])) for k, n in counts.items()]
            print("\n" + commands.table(rows, header=(title, "files", "such as")))
    if done.leaks:
        pairs = (
            " = ".join(f"{ids[0]} ({split})" for split, ids in places.items())
            for places in done.leaks[:3]
        )
        print(
            f"\nwarning: {len(done.leaks)} media with the same bytes in more than one "
            f"split, such as {', '.join(pairs)}; remove the copies, or give their "
            'rows one "group" in the manifest: it is hashed in place of the id'
        )
    if done.faults or done.partial or done.leaks:
        print(f"\nall of them: {os.path.join(arguments.out, 'build_report.json')}")
    print(f"\nlook at it: mmssl data view {arguments.out} --out page.html")
    if done.modalities["text"]:
        print(f"next: mmssl data tokenizer --data {arguments.out}")


def _splits(text: str) -> dict[str, float]:
    from mmssl.data import splits
    from mmssl.errors import UserError

    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.partition("=")
        try:
            if not name or not equals or name in shares:
                raise ValueError
            shares[name] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected NAME=SHARE,..., each name once, like train=0.9,test=0.1; "
                f"found {text!r}"
            ) from None
    try:
        splits.check_splits(shares)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return shares
