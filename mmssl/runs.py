"""What the commands do with a workdir: train, export, report."""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmssl import check, clips, costs, evaluation, init_from, outputs, streams, trees
from mmssl import config as config_lib
from mmssl import workdir as workdir_lib
from mmssl.data import device, sources
from mmssl.data.pipeline import FaultsMet
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.export import safetensors_export, select
from mmssl.parallel import distributed
from mmssl.parallel import mesh as mesh_lib
from mmssl.report import build as report_build
from mmssl.report import conflict as report_conflict
from mmssl.report import media as report_media
from mmssl.report import run as report_files
from mmssl.report import sections
from mmssl.train import arrays, checkpoint, loop, metrics, progress
from mmssl.train.compilation import CompiledOnce
from mmssl.train.goodput import Goodput, read_past
from mmssl.train.profile import Profile
from mmssl.train.recorder import TrainSummary
from mmssl.train.speed import Work
from mmssl.train.state import TrainState
from mmssl.train.watchdog import Watchdog


def _claim(folder: pathlib.Path, config: Mapping[str, Any], data: Any) -> None:
    """Makes the workdir this run's, or raises where it is another's."""
    if (folder / workdir_lib.CONFIG).exists():
        remedy = "use a new --workdir, or restore the file from a copy"
        old = workdir_lib.read(folder, workdir_lib.CONFIG, remedy=remedy)
        config_lib.check_same_run(old, config, str(folder))
        before = workdir_lib.read(folder, workdir_lib.DATA, remedy=remedy)
        then, now = (
            [(d["fingerprint"], d["weight"]) for d in described["datasets"]]
            for described in (before, data)
        )
        if then != now:
            raise UserError(
                f"the data {[d['path'] for d in data['datasets']]} is not what "
                f"{folder} was trained on, {[d['path'] for d in before['datasets']]} "
                "(other files or weights); use a new --workdir, or put it back"
            )
        _check_tokenizer(before, data.get("tokenizer"), folder)
    elif any(folder.glob("checkpoints/*")):
        raise UserError(
            f"workdir {folder} has checkpoints but no {workdir_lib.CONFIG}; use another"
        )
    else:
        workdir_lib.write(folder, workdir_lib.DATA, data)
    workdir_lib.write(folder, workdir_lib.CONFIG, config)


def _check_tokenizer(
    described: Mapping[str, Any], found: str | None, folder: pathlib.Path
) -> None:
    """Raises UserError where token ids no longer mean what `folder` learned."""
    if described.get("tokenizer") != found:
        raise UserError(
            f"the tokenizer is not the one that {folder} was trained with (the file "
            "differs); put it back, or name it with --config.data.tokenizer"
        )


def train(
    config: Mapping[str, Any], workdir: str, *, command: str = ""
) -> TrainSummary:
    """Pretrains, or continues to pretrain, in `workdir`; prints the closing table.

    Args:
      config: resolved.
      workdir: the run's folder.
      command: how to do it again, for the records.

    Raises:
      UserError: anything wrong with the config, the data or the workdir.
    """
    experiment, folder = Experiment(config), pathlib.Path(workdir)
    log, view = config["log"], progress.TrainProgress(quiet=not distributed.first())
    goodput = Goodput(read_past(folder / "metrics.jsonl", folder / "events.jsonl"))
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(streams.open_pool(experiment))
        data = streams.train_pipeline(experiment, pool)
        stack.callback(data.close)
        step, described = experiment.step, streams.describe(experiment)
        described["processes"] = jax.process_count()
        if command:
            described["command"] = command
        abstract = experiment.abstract_state()
        # What these find must not leave a workdir behind.
        check.trace(experiment)
        checkpointer = stack.enter_context(outputs.checkpointer(experiment, folder))
        start = init_from.planned(config, abstract, checkpointer)
        events = metrics.EventLog(outputs.log(folder, "events.jsonl"))
        stack.callback(events.close)
        # Each process builds them: a mistyped option must end all.
        built = outputs.writers(config, folder, events, view)
        writers = built if distributed.first() else metrics.Writers([])
        stack.callback(writers.close)
        profile = Profile(folder / "profile", log.get("profile") or ())
        judging = evaluation.hook(experiment, pool, events, view)

        def settle() -> None:
            try:
                checkpointer.wait()
            except UserError as error:  # no more than told: the first one is raised
                view.note(f"warning: {error}")

        watchdog = config_lib.build(
            Watchdog,
            "watchdog",
            folder=folder,
            goodput=goodput,
            process=jax.process_index(),
            processes=jax.process_count(),
            settle=settle,
            **config.get("watchdog", {}),
        )

        def claim() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(workdir_lib.locked(folder))
            _claim(folder, config, described)

        distributed.from_first(claim)
        stack.enter_context(watchdog)
        conflicts = metrics.JsonlWriter(outputs.log(folder, "conflict.jsonl"))
        stack.callback(conflicts.close)
        state = loop.resume(
            abstract,
            data,
            checkpointer=checkpointer,
            writers=writers,
            conflicts=conflicts,
            events=events,
            progress=view,
            goodput=goodput,
        )
        if state is None:
            state = experiment.init_state()
            if start is not None:
                state = start.apply(state)
                events.write("init_from", step=0, message="\n".join(start.lines()))
                view.note("\n".join(start.lines()))
        batches = device.to_device(data, mesh_lib.batch_sharding(experiment.mesh))
        stack.callback(batches.close)
        _, summary = loop.train(
            state,
            CompiledOnce(step),
            batches,
            steps=config["steps"],
            checkpointer=checkpointer,
            writers=writers,
            conflicts=conflicts,
            events=events,
            progress=view,
            dump_dir=folder / "nonfinite" / str(jax.process_index() or ""),
            log_every=log.get("every", 50),
            max_nonfinite=log.get("max_nonfinite", 10),
            hooks=[judging] if judging else [],
            goodput=goodput,
            work=Work(
                tokens=costs.step_tokens(experiment),
                flops=costs.step_flops(experiment),
                peak=costs.peak_flops(),
            ),
            profile=profile,
        )
        faults = streams.faults(data)
        if distributed.first():
            _record(folder, described, data.seen * data.batch // data.local, faults)
        met = sum((source.counts for source in faults), collections.Counter())
        view.console.print(progress.closing_table(summary, faults=met))
    return summary


def _record(
    folder: pathlib.Path,
    described: dict[str, Any],
    seen: int,
    faults: Sequence[FaultsMet],
) -> None:
    """Adds what this session saw, and what all of them took, to data.json."""
    before = workdir_lib.read(folder, workdir_lib.DATA, remedy="use a new --workdir")
    described["datasets"] = [
        now | {"faults_met": _met(then.get("faults_met", {}), met)}
        for now, then, met in zip(
            described["datasets"], before["datasets"], faults, strict=True
        )
    ]
    totals = {
        "samples_read": before.get("samples_read", 0) + seen,
        # From the log, which a killed session has written too.
        "train_seconds": sections.spent(report_files.read_run(folder)) or 0.0,
    }
    workdir_lib.write(folder, workdir_lib.DATA, described | totals)


def _met(before: Mapping[str, Any], now: FaultsMet) -> dict[str, Any]:
    """Fault class to {samples, files}: of earlier sessions and this one."""
    found = {}
    for name in sorted({*before, *now.counts}):
        then = before.get(name, {"samples": 0, "files": []})
        files = dict.fromkeys([*then["files"], *now.files.get(name, [])])
        found[name] = {
            "samples": then["samples"] + now.counts[name],
            "files": list(files)[: FaultsMet.NAMED],
        }
    return found


def open_run(workdir: str) -> Experiment:
    """The experiment of a workdir.

    Raises:
      UserError: no run there.
    """
    remedy = f"train a run with `mmssl train --config C --workdir {workdir}`"
    config = workdir_lib.read(pathlib.Path(workdir), workdir_lib.CONFIG, remedy=remedy)
    # A pod's run is evaluated and exported on whatever is at hand.
    if not mesh_lib.fits(config["mesh"], jax.device_count()):
        config["mesh"] = {"data": -1}
    return Experiment(config)


def restore(
    experiment: Experiment,
    workdir: str,
    *,
    step: int | None = None,
) -> TrainState:
    """The newest undamaged checkpoint's state, on the experiment's mesh.

    Args:
      experiment: of the run.
      workdir: its folder.
      step: this checkpoint only.

    Raises:
      UserError: there is none, or the tokenizer is not the run's.
    """
    folder = pathlib.Path(workdir)
    described = workdir_lib.read(
        folder, workdir_lib.DATA, remedy="restore the file from a copy"
    )
    _check_tokenizer(described, streams.tokenizer_hash(experiment), folder)
    with checkpoint.Checkpointer(folder / "checkpoints") as checkpointer:
        restored = checkpointer.restore(experiment.abstract_state(), step=step)
    for warning in restored.warnings:
        print(f"warning: {warning}; using step {restored.step}", file=sys.stderr)
    return restored.state


def content_hash(state: TrainState) -> str:
    """What `mmssl checkpoint inspect --hash` prints of the checkpoint."""
    leaves = {n: np.asarray(x) for n, x in trees.named_leaves(state).items()}
    return arrays.content_hash(sorted(leaves.items()))


def export_run(
    workdir: str,
    out: str,
    *,
    overwrite: bool = False,
    ema: bool = False,
    modalities: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Exports the newest checkpoint, or its average; returns the manifest.

    Of these modalities only, if they are named; `options` are keyword arguments of
    `safetensors_export.export`. The card has the last evaluation's results where it
    judged these weights; otherwise a line says why not.
    """
    experiment, folder = open_run(workdir), pathlib.Path(workdir)
    whole = restore(experiment, workdir)
    state = whole.averaged() if ema else whole
    config = experiment.config
    info: dict[str, Any] = {
        "name": folder.name,
        "config": config,
        "step": int(state.step),
        "ema": ema,
        **{key: config[key] for key in ("steps", "batch", "seed")},
    }
    for key, name in (("data", workdir_lib.DATA), ("eval", workdir_lib.EVAL)):
        if (folder / name).is_file():
            info[key] = workdir_lib.read(folder, name, remedy="run `mmssl eval` again")
    if judged := info.get("eval"):
        mine = {"step": info["step"], "ema": ema}
        mine["checkpoint_sha256"] = content_hash(whole)
        if other := [key for key in mine if judged.get(key) != mine[key]]:
            key = other[0]
            del info["eval"]
            print(
                f"the card has no results: {workdir_lib.EVAL} is of other weights "
                f"({key} {judged.get(key)}, here {mine[key]}); run `mmssl eval "
                f"--workdir {workdir}{' --ema' * ema}` and export again",
                file=sys.stderr,
            )
        elif modalities is not None:
            only = ", ".join(modalities)
            info["limits"] = [f"Results are of the whole model; here is {only} only."]
    for key in ("command", "train_seconds"):
        if key in info.get("data", {}):
            info[key.removeprefix("train_")] = info["data"][key]
    info["hardware"] = info.get("data", {}).get("hardware", streams.hardware())
    parts: dict[str, Any] = {
        "params": state.params,
        "heads": {
            name: (objective.projections(state.heads[name]), state.extras[name])
            for name, objective in experiment.projecting.items()
        },
        "model_kwargs": experiment.model_kwargs(),
        "heads_kwargs": {n: experiment.heads_kwargs(n) for n in experiment.projecting},
        "data_kwargs": experiment.view_kwargs,
    }
    if modalities is not None:
        parts = select.only(modalities, **parts)
    return safetensors_export.export(
        **parts,
        tokenizer_path=experiment.tokenizer_path,
        run_info=info,  # pyright: ignore[reportArgumentType]
        out=out,
        overwrite=overwrite,
        **options,
    )


def report_run(workdir: str, *, samples: int = 6) -> pathlib.Path:
    """Writes W/report.html.

    With clips of the evaluated split if it was evaluated, and of the training split if
    gradients were compared.
    """
    experiment, folder = open_run(workdir), pathlib.Path(workdir)
    wanted = report_conflict.ids(report_files.read_run(folder))
    evaluated = (folder / workdir_lib.EVAL).is_file()
    if not (evaluated or wanted):
        return report_build.write_report(workdir)
    with streams.open_pool(experiment) as pool:
        view = streams.make_view(experiment, pool, train=False)
        trained = {
            r.id: clips.sample(r, view) for r in clips.training_rows(experiment, wanted)
        }
        if not evaluated:
            return report_build.write_report(workdir, clips=trained)
        remedy = f"run `mmssl eval --workdir {workdir}` again"
        result = workdir_lib.read(folder, workdir_lib.EVAL, remedy=remedy)
        examples = result["examples"]
        source = sources.open_dataset(result["data"], result["split"])
        first = [
            clips.sample(source[i], view) for i in range(min(samples, len(source)))
        ]
        shown = {clip["id"]: clip for clip in first}
        for id, row in result["rows"].items():
            shown.setdefault(id, clips.sample(source[row], view))
    queries: list[report_media.Query] = [
        {
            "direction": e["direction"],
            "query": shown[e["query"]],
            "rank": e["rank"],
            "results": [
                {"sample": shown[r["id"]], "score": r["score"], "correct": r["correct"]}
                for r in e["results"]
            ],
        }
        for e in examples
    ]
    return report_build.write_report(
        workdir, samples=first, retrieval=queries, clips=trained
    )
