"""`mmssl train`."""

import argparse
import shlex
from typing import Any

from mmssl import commands


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        subparsers,
        "train",
        train,
        summary="pretrain; the same command again resumes exactly",
        about="Pretrains the model of a config into a workdir: resolved config, "
        "checkpoints, metrics.jsonl, TensorBoard events. Stopped by Ctrl-C or SIGTERM "
        "it saves and exits with 75; run the same command again and it goes on where "
        "it was, with the same next batch. A workdir of another config is refused.",
        example="""
            mmssl train --config configs/demo.py --workdir runs/mine \\
                --config.data.path=data/mine --config.steps=2000 \\
                --config.optim.peak_lr=3e-4

            --config.a.b=value sets any key of the config; a mistyped key is refused.
        """,
    )
    add_config(parser)
    parser.add_argument(
        "--workdir", metavar="W", required=True, help="the run's folder"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config`, and room for the overrides that the command line carried."""
    parser.add_argument(
        "--config",
        metavar="PATH[:ARG]",
        required=True,
        help="a Python file with get_config(arg); --config.a.b=value overrides a key",
    )
    parser.set_defaults(overrides=[])


def train(arguments: argparse.Namespace) -> int:
    from mmssl import config as config_lib
    from mmssl import runs
    from mmssl.train import compilation, preemption

    compilation.keep_compiled()
    config = config_lib.load(arguments.config, arguments.overrides)
    again = ["mmssl", "train", "--config", arguments.config, "--workdir"]
    command = shlex.join([*again, arguments.workdir, *arguments.overrides])
    summary = runs.train(config, arguments.workdir, command=command)
    if summary.interrupted:
        return preemption.REQUEUE_EXIT_CODE
    print(f"next: mmssl eval --workdir {arguments.workdir}")
    return 0
