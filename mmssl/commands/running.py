"""A workdir's experiment with its data and checkpoints, as the commands need them."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from mmssl import config as config_lib
from mmssl import experiment as experiment_lib
from mmssl.data import device, faults, pipeline, pool, records, sources, views
from mmssl.errors import UserError
from mmssl.parallel import mesh as mesh_lib
from mmssl.train import checkpoint

VIEWS = {"video": views.VideoView, "audio": views.AudioView, "text": views.TextView}


def opened(workdir: str) -> tuple[pathlib.Path, experiment_lib.Experiment]:
    """The experiment of a workdir, from its resolved config.

    Raises:
      UserError: no such workdir, or none of `mmssl train`.
    """
    folder = pathlib.Path(workdir)
    path = folder / "config.json"
    if not path.is_file():
        found = "no config.json in it" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{workdir}: expected the workdir of a run, found {found}; "
            f"`mmssl train --config C --workdir {workdir}` makes one"
        )
    return folder, experiment_lib.Experiment(stored_config(path))


def stored_config(path: pathlib.Path) -> dict[str, Any]:
    """The resolved config in a workdir."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path}: expected the JSON of a resolved config ({error}); the file is "
            "damaged: take it from a copy, or train in a new workdir"
        ) from error


def decode_pool(experiment: experiment_lib.Experiment) -> pool.DecodePool:
    """Worker processes within the config's limits; to be closed."""
    data = experiment.config["data"]
    limits = config_lib.build(faults.Limits, "data.limits", **data.get("limits", {}))
    try:
        return pool.DecodePool(data.get("workers"), limits)
    except ValueError as error:
        raise UserError(f"config data.workers: {error}") from error


def view(
    experiment: experiment_lib.Experiment, decoders: pool.DecodePool, *, train: bool
) -> views.View:
    """What cuts examples from records, by the config."""
    kwargs = experiment.view_kwargs
    for name, kind in VIEWS.items():
        if kwargs[name] is not None:
            config_lib.build(kind, f"data.{name}", **kwargs[name])
    windows = 1 if train else experiment.config["evals"].get("windows", 1)
    return config_lib.build(
        views.View,
        "data",
        pool=decoders,
        tokenizer=experiment.tokenizer,
        train=train,
        windows=windows,
        **kwargs,
    )


def training_data(
    experiment: experiment_lib.Experiment, decoders: pool.DecodePool
) -> pipeline.Pipeline:
    """The endless, seeded stream of the config."""
    config = experiment.config
    data = config["data"]
    opened = [
        (sources.open_dataset(path, data["split"]), weight)
        for path, weight in experiment.datasets
    ]
    return config_lib.build(
        pipeline.Pipeline,
        "data",
        sources=opened,
        view=view(experiment, decoders, train=True),
        batch=config["batch"],
        seed=config["seed"],
        train=True,
        threads=data.get("threads"),
        shard=(jax.process_index(), jax.process_count()),
        max_fault_fraction=data["max_fault_fraction"],
    )


def evaluation_data(
    experiment: experiment_lib.Experiment,
    decoders: pool.DecodePool,
    records: Iterable[sources.RecordSource],
) -> pipeline.Pipeline:
    """One pass over `records`, in order."""
    config = experiment.config
    return config_lib.build(
        pipeline.Pipeline,
        "evals",
        sources=[(source, 1.0) for source in records],
        view=view(experiment, decoders, train=False),
        batch=config["evals"]["batch"],
        seed=config["seed"],
        train=False,
        max_fault_fraction=1.0,
    )


def checkpointer(
    experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> checkpoint.Checkpointer:
    """The workdir's checkpoints."""
    return config_lib.build(
        checkpoint.Checkpointer,
        "checkpoint",
        directory=workdir / "checkpoints",
        fingerprint=experiment.fingerprint(),
        **experiment.config["checkpoint"],
    )


def trained(
    experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> checkpoint.Restored:
    """The newest undamaged checkpoint."""
    with checkpointer(experiment, workdir) as saved:
        return saved.restore(experiment.abstract_state())


def on_devices(
    batches: Iterable[pipeline.HostBatch], experiment: experiment_lib.Experiment
) -> Iterator[device.DeviceBatch]:
    """Batches split over the data axis of the experiment's mesh."""
    return device.to_device(batches, mesh_lib.batch_sharding(experiment.mesh))


def embedder(
    experiment: experiment_lib.Experiment,
) -> Callable[[Any, Any], tuple[dict[str, Any], dict[str, Any]]]:
    """(state, raw) -> pooled features and embeddings by space, jitted once."""
    model, objectives = experiment.model, experiment.objectives

    def embed(params: Any, heads: Any, extras: Any, raw: Any) -> tuple[Any, Any]:
        pooled = model.encode(params, model.prepare(raw)).pooled
        spaces: dict[str, Any] = {}
        for name, objective in objectives.items():
            found = objective.project(heads[name], extras[name], pooled)
            for space, members in found.items():
                spaces[space if space not in spaces else f"{name}/{space}"] = members
        return pooled, spaces

    jitted = jax.jit(embed)

    def call(state: Any, raw: Any) -> tuple[Any, Any]:
        return jitted(state.params, state.heads, state.extras, raw)

    return call


def data_facts(datasets: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """What data.json says of each dataset: identity, rows, coverage at build."""
    facts = []
    for path, weight in datasets:
        folder = pathlib.Path(path)
        metadata = records.read_metadata(folder)
        fact = {
            "path": path,
            "weight": weight,
            "sha256": hashlib.sha256(
                (folder / records.METADATA_FILE).read_bytes()
            ).hexdigest(),
            "schema_version": metadata["schema_version"],
            "splits": metadata["splits"],
        }
        report = folder / records.REPORT_FILE
        if report.is_file():
            built: Mapping[str, Any] = json.loads(report.read_text())
            for key in ("rows", "used", "faults", "partial", "modalities"):
                fact[key] = built.get(key)
        facts.append(fact)
    return facts


def write_json(path: pathlib.Path, value: Any) -> None:
    """The whole file or the old one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)
