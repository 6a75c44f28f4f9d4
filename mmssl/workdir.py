"""The folder of a run: its files, written whole or not at all, by one process."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mmssl import files
from mmssl.errors import UserError

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

    Raises:
      UserError: another process trains in it.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {folder}; wait for it or stop it, or "
                "give another --workdir"
            ) from None
        yield
    finally:
        os.close(descriptor)
