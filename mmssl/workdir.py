"""The folder of a run: its files, written whole or not at all, by one process."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mmssl import files
from mmssl.errors import AgainError, UserError
from mmssl.train import heartbeat

_LATELY = 600.0
"""Seconds; clocks of machines differ by less."""

CONFIG, DATA, EVAL = "config.json", "data.json", "eval.json"
"""The resolved config; the datasets and what was read of them; the last evaluation."""


def write(folder: pathlib.Path, name: str, value: Mapping[str, Any]) -> None:
    """Writes a JSON file; a kill in between leaves the old one."""
    files.write(folder / name, json.dumps(value, indent=1) + "\n")


def read(folder: pathlib.Path, name: str, *, remedy: str) -> dict[str, Any]:
    """Reads a JSON file.

    Args:
      folder: the workdir.
      name: of the file.
      remedy: what to do where it is missing or damaged.

    Raises:
      UserError: it is.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder}: no {name} there; {remedy}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; {remedy}")
    return value


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the workdir for this process; the system lets go when it ends, however.

    On some shared file systems other machines do not see a lock. So where the run
    showed signs of life on another one of late, it is waited for more of them.

    Raises:
      AgainError: another process trains in it, perhaps one that is about to end.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgainError(
                f"another process is training in {folder}; wait for it or stop it, or "
                "give another --workdir"
            ) from None
        _check_elsewhere(folder)
        yield
    finally:
        os.close(descriptor)


def _check_elsewhere(folder: pathlib.Path) -> None:
    """Raises AgainError where the run's first process lives on another machine."""
    last = heartbeat.read(folder, 0)
    if (
        last is None
        or last.stage == heartbeat.ENDED
        or last.host == socket.gethostname()
        or last.silence > _LATELY
    ):
        return
    patience = heartbeat.PATIENCE * last.every
    print(
        f"mmssl: {last.host} trained in {folder} {last.silence:.0f} s ago; waiting "
        f"{patience:.0f} s to see whether it still does",
        file=sys.stderr,
    )
    time.sleep(patience)
    now = heartbeat.read(folder, 0)
    if now is not None and (now.host, now.time) != (last.host, last.time):
        raise AgainError(
            f"{now.host} is training in {folder} (process {now.pid}, step {now.step}); "
            "wait for it or stop it, or give another --workdir"
        )
