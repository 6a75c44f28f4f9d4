"""Where the numbers of a run go: rows of metrics by step, and a log of events."""

import errno
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mmssl import files
from mmssl.errors import UserError


class MetricWriter(Protocol):
    """Takes rows of metrics; what was written is safe from a kill after `flush`."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row: the metrics after `step` steps."""
        ...

    def truncate(self, step: int) -> None:
        """Forgets rows after `step`: a resumed run writes them again.

        Raises:
          UserError: the disk is full, or closed to us.
        """
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _JsonLines:
    """A file of one JSON object a line, each handed to the system when written."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._file: io.FileIO | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(finite(row), allow_nan=False).encode() + b"\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.keep(lambda row: True)  # drops a line that a kill cut short
                self._file = io.FileIO(self.path, "a")
            # No buffer: a row is with the system at once, and a full disk shows here.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(self.path, error) from error

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops whole rows that are not wanted and lines that are not JSON objects."""
        self.close()
        try:
            if not self.path.is_file():
                return
            text = self.path.read_text(encoding="utf-8", errors="replace")
            rows = ((line, _parsed(line)) for line in text.split("\n"))
            kept = "".join(f"{line}\n" for line, row in rows if row and wanted(row))
            if kept != text:
                files.write(self.path, kept)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonlWriter:
    """`metrics.jsonl`: {"step": 10, "time": ..., "loss": ...}; not finite is null.

    A `MetricWriter` that takes whatever JSON holds, as `conflict.jsonl` needs it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._lines = _JsonLines(path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        row = {"step": step, "time": round(time.time(), 3)}
        self._lines.append(row | {name: metrics[name] for name in sorted(metrics)})

    def truncate(self, step: int) -> None:
        self._lines.keep(lambda row: row["step"] <= step)

    def flush(self) -> None: ...

    def close(self) -> None:
        self._lines.close()


class EventLog:
    """`events.jsonl`: what happened to a run, over all its restarts.

    {"time": ..., "event": "nonfinite", "step": 7, ...}
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._lines = _JsonLines(path)

    def write(self, event: str, **fields: Any) -> None:
        self._lines.append({"time": round(time.time(), 3), "event": event, **fields})

    def close(self) -> None:
        self._lines.close()


class TensorBoardWriter:
    """TensorBoard scalars through tensorboardX, loaded when first needed.

    Raises:
      UserError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            import tensorboardX  # noqa: F401  (optional: fail at construction)
        except ImportError as error:
            raise UserError(
                "log.tensorboard needs tensorboardX, which is not installed; "
                "`pip install tensorboardX` or set log.tensorboard=False"
            ) from error
        self._directory = str(directory)
        self._purge: int | None = None
        self._writer: Any = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(
                self._directory, purge_step=self._purge
            )
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)

    def truncate(self, step: int) -> None:
        # An event file cannot be cut; a purge mark hides what follows.
        self.close()
        self._purge = step + 1

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = tuple(writers)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def truncate(self, step: int) -> None:
        for writer in self._writers:
            writer.truncate(step)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def disk_error(path: pathlib.Path, error: OSError) -> UserError:
    """What to tell a user whose disk is full or closed to us."""
    return UserError(
        f"cannot write {path}: {error.strerror}; free disk space or check access, then "
        "run the same command again"
    )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def finite(value: Any) -> Any:
    """NaN and infinity have no JSON: null. NumPy scalars become Python's."""
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
