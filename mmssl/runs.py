"""What the commands do with a workdir: train, evaluate, export, report."""

import collections
import contextlib
import functools
import hashlib
import json
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mmssl import config as config_lib
from mmssl import workdir as workdir_lib
from mmssl.data import device, pipeline, records, sources, views
from mmssl.data.faults import Limits
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from mmssl.evals import embeddings, evaluate, retrieval
from mmssl.experiment import Experiment
from mmssl.export import safetensors_export
from mmssl.parallel import mesh as mesh_lib
from mmssl.report import build as report_build
from mmssl.report import media as report_media
from mmssl.train import checkpoint, loop, metrics, progress
from mmssl.train.recorder import TrainSummary
from mmssl.train.state import TrainState
from mmssl.types import RawBatch


@contextlib.contextmanager
def _pool(experiment: Experiment) -> Iterator[DecodePool]:
    data = experiment.config["data"]
    limits = config_lib.build(Limits, "data.limits", **(data.get("limits") or {}))
    with DecodePool(data.get("workers"), limits) as pool:
        yield pool


def _view(experiment: Experiment, pool: DecodePool, **kwargs: Any) -> views.View:
    for name, part in views.PARTS.items():
        entry = experiment.view_kwargs[name]
        if entry is not None:
            config_lib.build(part, f"data.{name}", **entry)  # names a mistyped key
    return config_lib.build(
        views.View,
        "data",
        pool=pool,
        tokenizer=experiment.tokenizer,
        **experiment.view_kwargs,
        **kwargs,
    )


def train_pipeline(experiment: Experiment, pool: DecodePool) -> pipeline.Pipeline:
    """The endless stream of training batches, this process's rows."""
    data = experiment.config["data"]
    split = data.get("split", "train")
    return pipeline.Pipeline(
        [(sources.open_dataset(p, split), w) for p, w in experiment.datasets],
        _view(experiment, pool, train=True),
        batch=experiment.config["batch"],
        seed=experiment.config["seed"],
        train=True,
        threads=data.get("threads"),
        shard=(jax.process_index(), jax.process_count()),
        max_fault_fraction=data.get("max_fault_fraction", 0.1),
    )


def eval_pipeline(
    experiment: Experiment, pool: DecodePool, *, path: str, split: str
) -> pipeline.Pipeline:
    """One pass over a split, in order, without augmentation."""
    evals = experiment.config["evals"]
    return pipeline.Pipeline(
        [(sources.open_dataset(path, split), 1.0)],
        _view(experiment, pool, train=False, windows=evals.get("windows", 1)),
        batch=mesh_lib.round_up(evals.get("batch", 64), experiment.mesh),
        seed=0,
        train=False,
        threads=experiment.config["data"].get("threads"),
        max_fault_fraction=1.0,
    )


def _described(experiment: Experiment) -> dict[str, Any]:
    """The datasets of a run and what they hold, for data.json."""
    found = []
    for path, weight in experiment.datasets:
        metadata = records.read_metadata(path)
        report = json.loads((pathlib.Path(path) / records.REPORT_FILE).read_text())
        files = json.dumps(metadata["files"], sort_keys=True)
        found.append(
            {
                "path": path,
                "weight": weight,
                "splits": metadata["splits"],
                "fingerprint": hashlib.sha256(files.encode()).hexdigest(),
                **{k: report[k] for k in ("used", "faults", "modalities")},
                "hours": report["duration_seconds"] / 3600,
            }
        )
    return {"datasets": found, "hardware": hardware()}


def hardware() -> str:
    """The accelerators of this run, in words."""
    kinds = [d.device_kind for d in jax.devices()]
    counts = ", ".join(f"{kinds.count(k)} x {k}" for k in sorted(set(kinds)))
    return f"{counts} ({platform.machine()} host, jax {jax.__version__})"


def _claim(folder: pathlib.Path, config: Mapping[str, Any], data: Any) -> None:
    """Makes the workdir this run's, or raises where it is another's."""
    if (folder / workdir_lib.CONFIG).exists():
        remedy = "use a new --workdir, or restore the file from a copy"
        old = workdir_lib.read(folder, workdir_lib.CONFIG, remedy=remedy)
        config_lib.check_same_run(old, config, str(folder))
        before = workdir_lib.read(folder, workdir_lib.DATA, remedy=remedy)["datasets"]
        for then, now in zip(before, data["datasets"], strict=True):
            if then["fingerprint"] != now["fingerprint"]:
                raise UserError(
                    f"the dataset {now['path']} is not the one that {folder} was "
                    "trained on (its files differ); use a new --workdir, or put the "
                    "dataset back"
                )
    elif any(folder.glob("checkpoints/*")):
        raise UserError(
            f"workdir {folder} has checkpoints but no {workdir_lib.CONFIG}; use another"
        )
    else:
        workdir_lib.write(folder, workdir_lib.DATA, data)
    workdir_lib.write(folder, workdir_lib.CONFIG, config)


def train(config: Mapping[str, Any], workdir: str) -> TrainSummary:
    """Pretrains, or continues to pretrain, in `workdir`; prints the closing table.

    Raises:
      UserError: anything wrong with the config, the data or the workdir.
    """
    experiment, folder = Experiment(config), pathlib.Path(workdir)
    log, saves = config["log"], config["checkpoint"]
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_pool(experiment))
        data = train_pipeline(experiment, pool)
        stack.callback(data.close)
        step, described = experiment.step, _described(experiment)
        abstract = experiment.abstract_state()
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(workdir_lib.locked(folder))
        _claim(folder, config, described)

        checkpointer = config_lib.build(
            checkpoint.Checkpointer,
            "checkpoint",
            directory=folder / "checkpoints",
            fingerprint=experiment.fingerprint(),
            **saves,
        )
        stack.enter_context(checkpointer)
        writers: list[Any] = [metrics.JsonlWriter(folder / "metrics.jsonl")]
        if log.get("tensorboard", True):
            writers.append(metrics.TensorBoardWriter(folder / "tensorboard"))
        writer = metrics.Writers(writers)
        stack.callback(writer.close)
        events = metrics.EventLog(folder / "events.jsonl")
        stack.callback(events.close)
        view = progress.TrainProgress()

        state = loop.resume(
            abstract,
            data,
            checkpointer=checkpointer,
            writers=writer,
            events=events,
            progress=view,
        )
        if state is None:
            state = experiment.init_state()
        batches = device.to_device(data, mesh_lib.batch_sharding(experiment.mesh))
        stack.callback(batches.close)
        _, summary = loop.train(
            state,
            step,
            batches,
            steps=config["steps"],
            checkpointer=checkpointer,
            writers=writer,
            events=events,
            progress=view,
            dump_dir=folder / "nonfinite",
            log_every=log.get("every", 50),
            max_nonfinite=log.get("max_nonfinite", 10),
        )
        _record(folder, described, data, summary)
        view.console.print(progress.closing_table(summary, faults=data.faults))
    return summary


def _record(
    folder: pathlib.Path,
    described: dict[str, Any],
    data: pipeline.Pipeline,
    summary: TrainSummary,
) -> None:
    """Adds what this session saw and took to data.json, over all sessions of a run."""
    before = workdir_lib.read(folder, workdir_lib.DATA, remedy="use a new --workdir")
    faults = collections.Counter(before.get("media_faults_met", {})) + data.faults
    totals = {
        "samples_read": before.get("samples_read", 0) + data.seen,
        "media_faults_met": dict(faults),
        "train_seconds": before.get("train_seconds", 0.0) + summary.seconds,
    }
    workdir_lib.write(folder, workdir_lib.DATA, described | totals)


def open_run(workdir: str) -> Experiment:
    """The experiment of a workdir.

    Raises:
      UserError: no run there.
    """
    remedy = f"train a run with `mmssl train --config C --workdir {workdir}`"
    return Experiment(
        workdir_lib.read(pathlib.Path(workdir), workdir_lib.CONFIG, remedy=remedy)
    )


def restore(experiment: Experiment, workdir: str) -> TrainState:
    """The newest undamaged checkpoint's state."""
    folder = pathlib.Path(workdir) / "checkpoints"
    with checkpoint.Checkpointer(folder) as checkpointer:
        restored = checkpointer.restore(experiment.abstract_state())
    for warning in restored.warnings:
        print(f"warning: {warning}; using step {restored.step}", file=sys.stderr)
    return restored.state


def make_embed(experiment: Experiment) -> Any:
    """Jitted (state, raw) -> (pooled features, embeddings by space and modality)."""

    @jax.jit
    def embed(state: TrainState, raw: RawBatch) -> tuple[Any, Any]:
        batch = experiment.model.prepare(raw)
        pooled = experiment.model.encode(state.params, batch).pooled
        spaces = {}
        for name, objective in experiment.objectives.items():
            found = objective.project(state.heads[name], state.extras[name], pooled)
            alone = len(experiment.objectives) == 1
            spaces |= {s if alone else f"{name}/{s}": m for s, m in found.items()}
        return pooled, spaces

    sharding = mesh_lib.batch_sharding(experiment.mesh)
    return lambda state, raw: jax.device_get(embed(state, device.put(raw, sharding)))


def evaluate_run(
    workdir: str, *, data: str | None = None, split: str | None = None
) -> dict[str, Any]:
    """Evaluates the newest checkpoint beside its random initialisation and chance.

    Args:
      workdir: a trained run.
      data: another dataset than the run's (first) own.
      split: that judges; None = the config's evals.split.

    Returns:
      What W/eval.json then holds: see `evals.evaluate`, with `step`, `data`, `split`,
      ranked `examples` and the `rows` of the split they stand in.
    """
    experiment = open_run(workdir)
    evals = experiment.config["evals"]
    path = data or experiment.datasets[0][0]
    judge: str = split or evals.get("split", "test")
    learn: str = evals.get("train_split", "train")
    trained = restore(experiment, workdir)
    states = {"trained": trained, "random": experiment.init_state()}
    embed = make_embed(experiment)
    fns = {name: functools.partial(embed, state) for name, state in states.items()}
    with _pool(experiment) as pool:
        found = {
            part: embeddings.embed(
                eval_pipeline(experiment, pool, path=path, split=part), fns
            )
            for part in dict.fromkeys((learn, judge))
        }
    arms = {n: evaluate.Arm(found[learn][n], found[judge][n]) for n in states}
    result = evaluate.evaluate(
        arms["trained"], arms["random"], knn_k=evals.get("knn_k", 20)
    )
    examples = retrieval.examples(arms["trained"].test)
    shown = {
        i for e in examples for i in (e["query"], *(r["id"] for r in e["results"]))
    }
    ids = arms["trained"].test.ids  # in the order of the split's rows
    result |= {
        "step": int(trained.step),
        "data": path,
        "split": judge,
        "examples": examples,
        "rows": {id: row for row, id in enumerate(ids) if id in shown},
    }
    workdir_lib.write(pathlib.Path(workdir), workdir_lib.EVAL, result)
    return result


def export_run(workdir: str, out: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Exports the newest checkpoint; returns the manifest."""
    experiment, folder = open_run(workdir), pathlib.Path(workdir)
    state = restore(experiment, workdir)
    config = experiment.config
    info: dict[str, Any] = {
        "name": folder.name,
        "command": f"mmssl train --workdir {workdir}",
        "config": config,
        "step": int(state.step),
        **{key: config[key] for key in ("steps", "batch", "seed")},
    }
    for key, name in (("data", workdir_lib.DATA), ("eval", workdir_lib.EVAL)):
        if (folder / name).is_file():
            info[key] = workdir_lib.read(folder, name, remedy="run `mmssl eval` again")
    info["seconds"] = info.get("data", {}).get("train_seconds", 0.0)
    info["hardware"] = info.get("data", {}).get("hardware", hardware())
    return safetensors_export.export(
        params=state.params,
        heads={n: (state.heads[n], state.extras[n]) for n in experiment.objectives},
        model_kwargs=experiment.model_kwargs(),
        heads_kwargs={n: experiment.heads_kwargs(n) for n in experiment.objectives},
        data_kwargs=experiment.view_kwargs,
        tokenizer_path=experiment.tokenizer_path,
        run_info=info,  # pyright: ignore[reportArgumentType]
        out=out,
        overwrite=overwrite,
    )


def report_run(workdir: str, *, samples: int = 6) -> pathlib.Path:
    """Writes W/report.html, with clips of the evaluated split if it was evaluated."""
    experiment, folder = open_run(workdir), pathlib.Path(workdir)
    if not (folder / workdir_lib.EVAL).is_file():
        return report_build.write_report(workdir)
    remedy = f"run `mmssl eval --workdir {workdir}` again"
    result = workdir_lib.read(folder, workdir_lib.EVAL, remedy=remedy)
    examples = result["examples"]
    source = sources.open_dataset(result["data"], result["split"])
    first = range(min(samples, len(source)))
    with _pool(experiment) as pool:
        view = _view(experiment, pool, train=False)
        clips = [_sample(source[i], view) for i in first]
        shown = {clip["id"]: clip for clip in clips}
        for id, row in result["rows"].items():
            shown.setdefault(id, _sample(source[row], view))
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
    return report_build.write_report(workdir, samples=clips, retrieval=queries)


def _sample(record: records.Record, view: views.View) -> report_media.Sample:
    """A clip as the model sees it in evaluation."""
    example = view(record)
    present = example["present"]
    return {
        "id": record.id,
        "frames": example["video"] if present.get("video") else None,
        "audio": example["audio"] if present.get("audio") else None,
        "rate": view.audio.rate if view.audio else 0,
        "text": [str(t) for t in example["info"]["texts"]],
        "labels": {k: v for k, v in record.labels.items() if v},
        "swapped": str(record.meta.get("swapped", "")),
    }
