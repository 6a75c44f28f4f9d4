"""What a run writes: its checkpoints and its metrics, as its config wants them."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mmssl import config as config_lib
from mmssl.experiment import Experiment
from mmssl.parallel import distributed
from mmssl.train import checkpoint, metrics, progress, retention, trackers


def checkpointer(
    experiment: Experiment, folder: pathlib.Path
) -> checkpoint.Checkpointer:
    """Of a run, by the config's `checkpoint`; nothing is written yet.

    Raises:
      UserError: an option that there is not, or a value out of range.
    """
    options = dict(experiment.config["checkpoint"])
    best = options.pop("best", None)
    if best:
        best = config_lib.build(retention.Best, "checkpoint.best", **best)
    return config_lib.build(
        checkpoint.Checkpointer,
        "checkpoint",
        directory=folder / "checkpoints",
        fingerprint=experiment.fingerprint(),
        best=best or None,
        **options,
    )


def log(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A log of the run: one file, which the first of its processes writes."""
    return folder / name if distributed.first() else pathlib.Path(os.devnull)


def writers(
    config: Mapping[str, Any],
    folder: pathlib.Path,
    events: metrics.EventLog,
    view: progress.TrainProgress,
) -> metrics.Writers:
    """Where rows of metrics go, by the config's `log`; nothing is written yet.

    Args:
      config: resolved.
      folder: the workdir.
      events: told once of a tracker that fails.
      view: likewise.

    Raises:
      UserError: an option that there is not, or a package that is not installed.
    """
    log = config["log"]
    built: list[metrics.MetricWriter] = [metrics.JsonlWriter(folder / "metrics.jsonl")]
    if log.get("tensorboard", True):
        built.append(metrics.TensorBoardWriter(folder / "tensorboard"))

    def tell(message: str) -> None:
        events.write("warning", message=message)
        view.note(f"warning: {message}")

    for key, tracker in trackers.TRACKERS.items():
        if log.get(key):
            service = config_lib.build(
                tracker, f"log.{key}", directory=folder, config=config, **log[key]
            )
            built.append(trackers.TrackerWriter(service, tell))
    return metrics.Writers(built)
