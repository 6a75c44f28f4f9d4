"""Saves checkpoints that fail at one of their writes; run as a script by `test_crash`.

Python announces every file it opens, makes, renames or removes (PEP 578). At the n-th
that is below the checkpoint's folder the process is killed ("kill"), or from there on
nothing reaches the disk any more ("full"): what a disk that is full leaves behind, and
also what a kill does. Orbax writes array data in C++, out of Python's sight; a limit on
the size of files ("limit") makes those writes fail.
"""

import contextlib
import errno
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

from mmssl.errors import UserError
from mmssl.train.checkpoint import Checkpointer
from tests.train import toy_run

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class Fault:
    """Counts writes below a folder and strikes from the n-th on."""

    folder: str | None = None
    mode, number, seen = "full", 0, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or event not in EVENTS or not args:
            return
        if not str(args[0]).startswith(self.folder):
            return
        if event == "open" and (args[1] is None or set(args[1]) <= set("rb")):
            return
        self.seen += 1
        if self.seen < self.number:
            return
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    @contextlib.contextmanager
    def below(self, folder: pathlib.Path, mode: str, number: int) -> Iterator[None]:
        self.folder, self.mode, self.number, self.seen = str(folder), mode, number, 0
        try:
            yield
        finally:
            self.folder = None


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Every file that would grow beyond `limit` bytes fails to be written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def state_at(step: int) -> Any:
    return toy_run.jax.tree.map(
        lambda x: (x + step).astype(x.dtype), toy_run.fresh_state()
    )


def save(folder: pathlib.Path, mode: str, number: int, fault: Fault) -> bool:
    """Steps 1, 2 (with the fault) and 3; True if there was nothing left to fail."""
    with Checkpointer(folder, keep=1) as checkpointer:
        checkpointer.save(state_at(1), {"next": 1}, step=1)
        checkpointer.wait()
        told = ""
        faulty = (
            small_files(number)
            if mode == "limit"
            else fault.below(folder, mode, number)
        )
        try:
            with faulty:
                checkpointer.save(state_at(2), {"next": 2}, step=2)
                checkpointer.wait()
        except UserError as error:
            told = str(error)
        (folder / "told").write_text(told)
    return not told


if __name__ == "__main__":
    # argv: root, mode, numbers or none for all there are
    root, mode, *given = sys.argv[1:]
    fault = Fault()
    sys.addaudithook(fault)
    for n in map(int, given or range(1, 200)):
        if save(pathlib.Path(root) / str(n), mode, n, fault) and not given:
            break
