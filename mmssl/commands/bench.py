"""`mmssl bench data`."""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mmssl import commands
from mmssl.commands.train import add_config


def add(subparsers: Any) -> None:
    """Adds the group."""
    group = commands.command(
        subparsers,
        "bench",
        summary="how fast the loader is on this machine",
        about="Measures parts of a run by themselves.",
        example="mmssl bench data --config C --config.data.path=data/mine",
    )
    parser = commands.command(
        commands.subcommands(group),
        "data",
        data,
        summary="samples/s of the loader, by stage, beside the decode limit",
        about="Runs the loader of a config without a model: samples/s, the time of "
        "each stage, and beside it the decode limit: PyAV alone on the same windows in "
        "as many processes. With a step's time it says how many CPU cores an "
        "accelerator needs.",
        example="""
            mmssl bench data --config configs/demo.py --config.data.path=data/mine
            mmssl bench data --config configs/vatt_ma_medium.py \\
                --config.data.path=data/mine --topology v5e-8 --out bench.json
        """,
    )
    add_config(parser)
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=30.0,
        help="about how long it measures (default: %(default)g)",
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument(
        "--step-seconds",
        metavar="S",
        type=float,
        help="a step's time of one accelerator on the config's batch, as measured",
    )
    step.add_argument(
        "--topology",
        metavar="CHIP-N",
        help="or on paper, for chips like v5e-8 or h100x64 at 40%% of their peak",
    )
    parser.add_argument("--out", metavar="FILE.json", help="write the results there")


def data(arguments: argparse.Namespace) -> None:
    from mmssl import bench as room
    from mmssl import config as config_lib
    from mmssl import files
    from mmssl.errors import UserError
    from mmssl.experiment import Experiment

    for name in ("seconds", "step_seconds"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: expected more than 0, found {value:g}")
    config = config_lib.load(arguments.config, arguments.overrides)
    need = room.need(
        Experiment(config),
        step_seconds=arguments.step_seconds,
        topology=arguments.topology,
    )
    found = room.measure(config, seconds=arguments.seconds)
    if need is not None:
        per_core = found["samples_per_core"]
        need["cores"] = need["samples_per_second"] / per_core
        found["need"] = need
    _print(found, room.STAGES)
    if arguments.out:
        out = pathlib.Path(arguments.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, json.dumps(found, indent=1) + "\n")
        print(f"\nwritten: {out}")


def _print(found: Mapping[str, Any], where: Mapping[str, str]) -> None:
    stages = found["stages"]
    total = sum(stages.values())
    rows = [
        (name, f"{ms:.3f}", f"{ms / total:.0%}", where[name])
        for name, ms in stages.items()
    ]
    head = ("stage", "ms/sample", "share", "runs in")
    print(commands.table(rows, header=head))
    print()
    names = {
        "loader": "loader, samples/s",
        "decode": "decode limit, samples/s",
        "loader_over_decode": "loader over decode limit",
    }
    rows = [
        (title, *(f"{found[name][k]:.3g}" for k in ("median", "min", "max")))
        for name, title in names.items()
    ]
    print(commands.table(rows, header=("", "median", "min", "max")))
    print(
        f"\n{found['workers']} decode processes, {found['threads']} threads, "
        f"{found['cores']} cores, batches of {found['batch']}: "
        f"{found['samples_per_core']:.3g} samples/s per core"
    )
    if need := found.get("need"):
        print(
            f"a step of {need['step_seconds']:.3g} s ({need['source']}) on "
            f"{need['accelerators']} accelerator(s) takes "
            f"{need['samples_per_second']:.3g} samples/s each: "
            f"{need['cores']:.3g} CPU cores per accelerator"
        )
