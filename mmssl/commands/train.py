"""`mmssl train`."""

import argparse
import shlex
import traceback
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
    several = parser.add_argument_group(
        "several processes",
        "Each is started with the same command, by a launcher that --cluster names or "
        "with its own --process. See launch/ and docs/clusters.md.",
    )
    several.add_argument(
        "--cluster",
        metavar="NAME",
        default="none",
        help="tpu, slurm, ompi, mpi4py, kubernetes, or auto: whichever it is",
    )
    several.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of process 0, a free port; default $JAX_COORDINATOR_ADDRESS",
    )
    several.add_argument(
        "--processes", metavar="N", type=int, help="default $JAX_NUM_PROCESSES"
    )
    several.add_argument(
        "--process", metavar="I", type=int, help="from 0; default $JAX_PROCESS_ID"
    )
    several.add_argument(
        "--start-timeout",
        metavar="S",
        type=int,
        default=300,
        help="seconds to wait for all processes; default 300",
    )
    several.add_argument(
        "--heartbeat-timeout",
        metavar="S",
        type=int,
        default=60,
        help="seconds after which a silent process counts as dead; default 60",
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
    from mmssl.parallel import distributed
    from mmssl.train import compilation

    distributed.initialize(
        arguments.cluster,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
        start_timeout=arguments.start_timeout,
        heartbeat_timeout=arguments.heartbeat_timeout,
    )
    compilation.keep_compiled()
    if not distributed.several():
        return pretrain(arguments)
    try:
        return pretrain(arguments)
    except BaseException as error:
        from mmssl import cli

        code = cli.report(error)
        if code is None:
            traceback.print_exception(error)
            code = cli.FAILED
        distributed.leave(code)


def pretrain(arguments: argparse.Namespace) -> int:
    """What every process of a run does once it has found the others."""
    from mmssl import config as config_lib
    from mmssl import runs
    from mmssl.parallel import distributed
    from mmssl.train import preemption

    config = config_lib.load(arguments.config, arguments.overrides)
    again = ["mmssl", "train", "--config", arguments.config, "--workdir"]
    command = shlex.join([*again, arguments.workdir, *arguments.overrides])
    summary = runs.train(config, arguments.workdir, command=command)
    if summary.interrupted:
        return preemption.REQUEUE_EXIT_CODE
    if distributed.first():
        print(f"next: mmssl eval --workdir {arguments.workdir}")
    return 0
