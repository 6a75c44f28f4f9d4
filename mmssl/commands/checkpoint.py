"""`mmssl checkpoint verify | inspect | convert`."""

import argparse
import json
import re
import time
from typing import Any

from mmssl import commands
from mmssl.errors import UserError


def add(subparsers: Any) -> None:
    """Adds the three commands."""
    group = commands.command(
        subparsers,
        "checkpoint",
        summary="verify, inspect or convert the checkpoints of a run",
        about="Checkpoints are restored onto any mesh, any number of processes or one "
        "CPU by the commands that use them; nothing has to be converted for that.",
        example="mmssl checkpoint verify runs/mine",
    )
    inner = commands.subcommands(group)
    _add_verify(inner)
    _add_inspect(inner)
    _add_convert(inner)


def _add_verify(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "verify",
        verify,
        summary="is every file what was saved? names the one that is not",
        about="Hashes every file of every checkpoint and compares it with what was "
        "written. Exit code 1 if one is damaged: training passes over it, to the "
        "newest that is not.",
        example="mmssl checkpoint verify runs/mine",
    )
    _add_workdir(parser, "this one only; default: all")


def _add_inspect(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "inspect",
        inspect,
        summary="names, shapes and sizes; with --hash, the content in one line",
        about="Lists the arrays of a checkpoint. With --hash it reads them instead and "
        "prints the step, a SHA-256 of all parameters and optimizer state that does "
        "not depend on mesh, layout or number of processes, and the position in the "
        "data: two runs are at the same place if these are equal.",
        example="""
            mmssl checkpoint inspect runs/mine --names 'params/.*kernel'
            mmssl checkpoint inspect runs/mine --hash
        """,
    )
    _add_workdir(parser, "default: the newest undamaged")
    parser.add_argument("--hash", action="store_true", help="of the content")
    _add_names(parser)


def _add_convert(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "convert",
        convert,
        summary="one checkpoint to a new workdir or a safetensors file",
        about="To a folder: a workdir with this checkpoint alone, in the layout of one "
        "device, to train on or evaluate. To a file *.safetensors: arrays by name, for "
        "other tools or for init_from. Arrays are held in this machine's memory.",
        example="""
            mmssl checkpoint convert runs/mine --out runs/copy
            mmssl checkpoint convert runs/mine --out params.safetensors \\
                --names '(params|heads|extras)/.*'
        """,
    )
    _add_workdir(parser, "default: the newest undamaged")
    parser.add_argument(
        "--out", metavar="DIR|FILE", required=True, help="a new one of either"
    )
    _add_names(parser)


def _add_workdir(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("workdir", metavar="W", help="a trained run")
    parser.add_argument("--step", metavar="N", type=int, help=which)


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--names",
        metavar="PATTERN",
        help="arrays whose whole name matches; default: all",
    )


def verify(arguments: argparse.Namespace) -> int:
    from mmssl import checkpoints
    from mmssl.cli import FAILED, OK

    found = checkpoints.verify(arguments.workdir, step=arguments.step)
    rows = [
        (one.step, one.files, f"{one.bytes / 2**20:.1f}", one.damage or "ok")
        for one in found
    ]
    print(commands.table(rows, header=("step", "files", "MiB", "")))
    return FAILED if any(one.damage for one in found) else OK


def inspect(arguments: argparse.Namespace) -> None:
    from mmssl import checkpoints

    opened = checkpoints.open_one(arguments.workdir, step=arguments.step)
    manifest = opened.manifest
    print(f"step {manifest['step']}")
    if arguments.hash:
        print(f"sha256 {opened.content_hash(arguments.names)}")
        print(f"data {json.dumps(manifest['data_state'], sort_keys=True)}")
        return
    if manifest.get("time"):
        stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest["time"]))
        print(f"saved {stamp}")
    print(f"data {json.dumps(manifest['data_state'], sort_keys=True)}")
    specs = opened.specs(arguments.names)
    rows = [(n, list(x.shape), str(x.dtype), f"{x.size:,}") for n, x in specs.items()]
    print(commands.table(rows, header=("array", "shape", "dtype", "values")))
    totals: dict[str, list[int]] = {}
    for name, x in specs.items():
        total = totals.setdefault(re.split("/", name)[0], [0, 0, 0])
        total[0] += 1
        total[1] += x.size
        total[2] += x.size * x.dtype.itemsize
    rows = [
        (root, arrays, f"{values:,}", f"{size / 2**20:.1f}")
        for root, (arrays, values, size) in totals.items()
    ]
    print("\n" + commands.table(rows, header=("part", "arrays", "values", "MiB")))


def convert(arguments: argparse.Namespace) -> None:
    from mmssl import checkpoints

    opened = checkpoints.open_one(arguments.workdir, step=arguments.step)
    step = opened.manifest["step"]
    if arguments.out.endswith(".safetensors"):
        count = opened.to_safetensors(arguments.out, arguments.names)
        print(f"{arguments.out}: {count} arrays of step {step}")
        return
    if arguments.names:
        raise UserError("--names is for a file *.safetensors; a workdir needs all")
    opened.to_workdir(arguments.out)
    print(f"{arguments.out}: step {step}\nnext: mmssl eval --workdir {arguments.out}")
