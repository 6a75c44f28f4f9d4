"""`mmssl doctor`."""

import argparse
from typing import Any

from mmssl import commands


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        subparsers,
        "doctor",
        doctor,
        summary="versions, devices, codecs, storage, loader speed",
        about="Looks at this machine: package versions against the tested bounds, the "
        "devices jax sees, an H.264 + AAC round trip, whether a path can be read and "
        "written, and how many clips a second the loader decodes. Exit code 1 if "
        "something that mmssl needs is broken.",
        example="mmssl doctor --path gs://my-bucket/data",
    )
    parser.add_argument(
        "--path",
        metavar="PATH",
        action="append",
        default=[],
        help="a folder or bucket (gs://, s3://) to look at; may be given again",
    )


def doctor(arguments: argparse.Namespace) -> int:
    from mmssl import doctor as room

    findings = []
    for finding in room.examine(arguments.path):
        print(finding.line(), flush=True)
        findings.append(finding)
    broken = [f.name for f in findings if f.state == "broken"]
    warned = [f.name for f in findings if f.state == "warning"]
    if broken:
        print(f"\nbroken: {', '.join(broken)}")
        return 1
    print(f"\nall that mmssl needs works; to look at: {', '.join(warned) or 'nothing'}")
    return 0
