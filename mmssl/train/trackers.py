"""Experiment trackers on a network, behind the interface of the other writers.

What they need is loaded only when one is asked for. They are copies for people to look
at: `metrics.jsonl` is the record, and a network that fails does not stop a run.
"""

import contextlib
import importlib
import json
import pathlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mmssl import files
from mmssl.errors import UserError

QUEUED = 1000
"""Rows that wait for the network at most; the oldest go first."""

PATIENCE = 30.0
"""Seconds that a run's end waits for rows that are still to be sent."""


class Tracker(Protocol):
    """A service. Its methods may fail, and may take long."""

    name: str

    def open(self) -> None:
        """Begins a run, or goes on with the one that this workdir began."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Weights & Biases, https://wandb.ai; `WANDB_MODE=offline` needs no network.

    Args:
      directory: the workdir. Its run keeps one identity over restarts.
      config: of the run.
      project, entity, name, group, tags: as `wandb.init` takes them.

    Raises:
      UserError: wandb is not installed.
    """

    name = "wandb"

    def __init__(
        self,
        *,
        directory: pathlib.Path,
        config: Mapping[str, Any],
        project: str,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] = (),
    ):
        self._wandb = _package("wandb")
        self._directory = directory
        self._options = {
            "project": project,
            "entity": entity,
            "name": name or directory.name,
            "group": group,
            "tags": list(tags),
            "config": dict(config),
        }
        self._run: Any = None

    def open(self) -> None:
        identity = self._directory / "wandb" / "run_id"
        identity.parent.mkdir(parents=True, exist_ok=True)
        if not identity.is_file():
            files.write(identity, uuid.uuid4().hex[:12])
        self._run = self._wandb.init(
            id=identity.read_text(),
            resume="allow",
            dir=str(self._directory),
            settings=self._wandb.Settings(silent=True, console="off"),
            **self._options,
        )
        # Their own counter cannot go back to a checkpoint; an axis can.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow, https://mlflow.org; the tracking part alone, as in `mlflow-skinny`.

    Args:
      directory: the workdir. Its run keeps one identity over restarts.
      config: of the run; logged as parameters.
      experiment: its name.
      tracking_uri: None = MLFLOW_TRACKING_URI, or what mlflow takes without one.
      name: of the run; None = the workdir's name.

    Raises:
      UserError: mlflow is not installed.
    """

    name = "mlflow"

    def __init__(
        self,
        *,
        directory: pathlib.Path,
        config: Mapping[str, Any],
        experiment: str,
        tracking_uri: str | None = None,
        name: str | None = None,
    ):
        self._mlflow = _package("mlflow")
        self._directory, self._config = directory, config
        self._experiment, self._uri = experiment, tracking_uri
        self._name = name or directory.name
        self._client: Any = None
        self._run = ""

    def open(self) -> None:
        self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        identity = self._directory / "mlflow_run_id"
        if identity.is_file():
            self._run = identity.read_text()
            self._client.update_run(self._run, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            self._client.create_experiment(self._experiment)
            if found is None
            else found.experiment_id
        )
        run = self._client.create_run(experiment, run_name=self._name)
        self._run = run.info.run_id
        # At once: what fails from here on must not begin another run.
        files.write(identity, self._run)
        for key, value in _flat(self._config).items():
            self._client.log_param(self._run, key, value)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        metric = _package("mlflow.entities").Metric
        now = round(time.time() * 1000)
        rows = [metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class TrackerWriter:
    """A `MetricWriter` that sends in the background, and never fails or waits.

    The first failure is told; later rows are tried again. Rows of steps that a resumed
    run takes again are sent again: a service keeps both.

    Args:
      tracker: opened in the background by the first row.
      tell: called once, from the sending thread, with what went wrong.
      patience: seconds that `close` waits for what is still to be sent.
    """

    def __init__(
        self,
        tracker: Tracker,
        tell: Callable[[str], None],
        *,
        patience: float = PATIENCE,
    ):
        self._tracker, self._tell, self._patience = tracker, tell, patience
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(
            QUEUED
        )
        self._thread: threading.Thread | None = None
        self._told = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._send, name=self._tracker.name, daemon=True
            )
            self._thread.start()
        self._offer((step, {name: float(value) for name, value in metrics.items()}))

    def truncate(self, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None:
        if self._thread is None:
            return
        self._offer(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._fail(f"not all rows were sent within {self._patience:.0f} s")
        self._thread = None

    def _offer(self, item: tuple[int, dict[str, float]] | None) -> None:
        while True:
            with contextlib.suppress(queue.Full):
                self._rows.put_nowait(item)
                return
            with contextlib.suppress(queue.Empty):
                self._rows.get_nowait()

    def _send(self) -> None:
        opened = False
        while (item := self._rows.get()) is not None:
            try:
                if not opened:
                    self._tracker.open()
                    opened = True
                self._tracker.log(*item)
            except Exception as error:
                self._fail(str(error) or repr(error))
        if opened:
            try:
                self._tracker.close()
            except Exception as error:
                self._fail(str(error) or repr(error))

    def _fail(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"{self._tracker.name} is behind: {reason.splitlines()[0][:300]}; "
                "training goes on, and metrics.jsonl has every row"
            )


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow}
"""`log` key of a config to its tracker."""


def _package(name: str) -> Any:
    """An optional package, or a module of it; its extra has the same name."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"log.{name} needs {name}, which is not installed; "
            f"`pip install 'mmssl[{name}]'`, or leave log.{name} empty"
        ) from error


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    items: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            items |= _flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = json.dumps(value)[:500]
    return items
