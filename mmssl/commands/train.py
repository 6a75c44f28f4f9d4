"""`mmssl train`."""

import argparse
import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, cast

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
    from mmssl import experiment as experiment_lib
    from mmssl.commands import running
    from mmssl.train import loop, metrics, preemption, progress

    config = config_lib.load(arguments.config, arguments.overrides)
    workdir = pathlib.Path(arguments.workdir)
    stored = workdir / "config.json"
    if stored.is_file():
        old = running.stored_config(stored)
        config_lib.check_same_run(old, config, str(workdir))
    experiment = experiment_lib.Experiment(config)
    log = dict(config["log"])
    tensorboard = log.pop("tensorboard", False)
    with contextlib.ExitStack() as stack:
        # All that a config can get wrong comes before the workdir exists.
        pool = stack.enter_context(running.decode_pool(experiment))
        data = running.training_data(experiment, pool)
        stack.callback(data.close)
        like = experiment.abstract_state()
        facts = running.data_facts(experiment.datasets)

        workdir.mkdir(parents=True, exist_ok=True)
        running.write_json(stored, config)
        writers = metrics.Writers(
            [metrics.JsonlWriter(workdir / "metrics.jsonl")]
            + (
                [metrics.TensorBoardWriter(workdir / "tensorboard")]
                if tensorboard
                else []
            )
        )
        stack.callback(writers.close)
        events = metrics.EventLog(workdir / "events.jsonl")
        stack.callback(events.close)
        view = progress.TrainProgress()
        saved = stack.enter_context(running.checkpointer(experiment, workdir))

        def write_facts() -> None:
            met = {"seen": data.seen, "faults": dict(data.faults)}
            said = {"hardware": hardware(), "datasets": facts, "training": met}
            running.write_json(workdir / "data.json", said)

        write_facts()
        state = loop.resume(
            like,
            data,
            checkpointer=saved,
            writers=writers,
            events=events,
            progress=view,
        )
        if state is None:
            state = experiment.init_state()
        # A training pipeline always has a position.
        batches = cast(Iterator[loop.DeviceBatch], running.on_devices(data, experiment))
        _, summary = loop.train(
            state,
            experiment.step,
            batches,
            steps=config["steps"],
            checkpointer=saved,
            writers=writers,
            events=events,
            progress=view,
            dump_dir=workdir / "nonfinite",
            log_every=log["every"],
            max_nonfinite=log["max_nonfinite"],
        )
        write_facts()
    view.console.print(progress.closing_table(summary, faults=data.faults))
    if summary.interrupted:
        return preemption.REQUEUE_EXIT_CODE
    print(f"next: mmssl eval --workdir {arguments.workdir}")
    return 0


def hardware() -> str:
    """The devices, in words."""
    import jax

    from mmssl import doctor

    kind, count = jax.devices()[0].device_kind, jax.device_count()
    return f"{count} x {kind}, {doctor.cores()} CPU cores"
