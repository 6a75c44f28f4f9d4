"""Ends a process that hangs, so that its run can be started again.

The processes of a run wait for each other in every step: where one hangs, all hang, and
none says why. So each has a thread that knows what the main thread does and since when,
and ends the process. It touches no storage, which may hang, too: a second thread leaves
signs of life, and names who is silent.
"""

import contextlib
import faulthandler
import os
import pathlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from mmssl.errors import UserError
from mmssl.parallel import distributed
from mmssl.train import heartbeat as heartbeats
from mmssl.train.goodput import Goodput
from mmssl.train.preemption import REQUEUE_EXIT_CODE

_STDERR = 2
_AGAIN = "started again, the run continues from its last checkpoint"
_SHOWN = 8
"""Processes named in a message."""
_PATIENCE = 5.0
"""Seconds for the storage to take the last words of a process that ends."""


class Watchdog:
    """Watches over a run's parts, by the clock that accounts for them.

    Args:
      folder: the workdir, which exists.
      goodput: that clock.
      process: number of this process.
      processes: of the run.
      start: seconds for start-up, and to compile and take the first two steps.
      data: to wait for a batch.
      step: to take a step.
      checkpoint: to save.
      eval: for an evaluation inside training. Any limit 0: for ever.
      heartbeat: between signs of life.
      settle: waits for a save under way; called when the block ends, still under watch,
        but not where a lost process is to blame.

    Raises:
      ValueError: a limit below 0, or `heartbeat` not above.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        goodput: Goodput,
        *,
        process: int = 0,
        processes: int = 1,
        start: float = 3600.0,
        data: float = 600.0,
        step: float = 600.0,
        checkpoint: float = 1800.0,
        eval: float = 3600.0,
        heartbeat: float = 10.0,
        settle: Callable[[], None] = lambda: None,
    ):
        self._limits = {
            "start": start,
            "data": data,
            "step": step,
            "checkpoint": checkpoint,
            "eval": eval,
        }
        for name, value in self._limits.items():
            if value < 0:
                raise ValueError(f"{name}: expected seconds, or 0 for no limit")
        if heartbeat <= 0:
            raise ValueError("heartbeat: expected seconds above 0")
        self._folder, self._goodput, self._every = folder, goodput, heartbeat
        self._process, self._processes = process, processes
        self._settle = settle
        self._begin = time.time()
        self._told: set[int] = set()
        self._stop = threading.Event()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
            threading.Thread(target=self._live, name="heartbeat", daemon=True),
        ]

    def __enter__(self) -> "Watchdog":
        if not faulthandler.is_enabled():
            # A crash of native code, or the runtime's abort, shows where, too.
            faulthandler.enable(_STDERR)
        heartbeats.path(self._folder, 0).parent.mkdir(exist_ok=True)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: object, _: object) -> None:
        try:
            if isinstance(error, Exception) and _maybe_of_another(error):
                self._blame(error)
            with self._goodput.part("checkpoint"):
                self._settle()
        finally:
            self._ended = kind is None
            self._stop.set()
            for thread in self._threads:
                thread.join(_PATIENCE)
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stop.is_set():
            stage, step, seconds = self._where()
            if 0 < self._limits[stage] < seconds:
                self._end(stage, step)
            if all(self._limits.values()):
                # Native code that keeps the interpreter's lock stops this thread.
                faulthandler.dump_traceback_later(
                    max(self._limits.values()) + 60, exit=True, file=_STDERR
                )
            self._stop.wait(min(1.0, self._every))

    def _live(self) -> None:
        while not self._stop.is_set():
            self._beat()
            stage, step, seconds = self._where()
            # Where somebody is gone the others wait; who goes on misses nobody.
            if self._process == 0 and seconds > self._every:
                self._tell_of_silence(stage, step)
            self._stop.wait(self._every)
        self._beat(ended=self._ended)

    def _where(self) -> tuple[str, int, float]:
        """Stage, step under way, seconds in that stage."""
        part, step, seconds = self._goodput.where
        # The first step is over on the host before it is on the device, and other
        # processes may still compile.
        early = part == "step" and step < self._goodput.first + 2
        return "start" if early or part in ("init", "compile") else part, step, seconds

    def _beat(self, *, ended: bool = False) -> None:
        stage, step, seconds = self._where()
        beat = heartbeats.Beat(
            process=self._process,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=step,
            stage=heartbeats.ENDED if ended else stage,
            seconds=round(seconds, 1),
            time=round(time.time(), 1),
            every=self._every,
        )
        heartbeats.write(self._folder, beat)

    def _others(self) -> list[heartbeats.Beat]:
        """Of this session, those furthest behind first."""
        beats = heartbeats.read_all(self._folder, self._processes)
        return [b for b in beats if b.process != self._process and b.time > self._begin]

    def _tell_of_silence(self, stage: str, step: int) -> None:
        for beat in self._others():
            if beat.silent and beat.process not in self._told:
                self._told.add(beat.process)
                os.write(
                    _STDERR,
                    f"mmssl: {beat}; waiting for it in {stage!r} of step {step}. If it "
                    f"is gone, all processes will end; {_AGAIN}\n".encode(),
                )

    def _blame(self, error: Exception) -> None:
        """Ends this process if another one is gone: then that is the cause."""
        deadline = time.monotonic() + heartbeats.PATIENCE * self._every + 2
        while self._processes > 1 and time.monotonic() < deadline:
            lost = [str(beat) for beat in self._others() if beat.silent]
            if lost:
                traceback.print_exception(error)
                print(
                    f"mmssl: lost {'; '.join(lost[:_SHOWN])}. Exiting with "
                    f"{REQUEUE_EXIT_CODE}: {_AGAIN}",
                    file=sys.stderr,
                )
                # Not by way of what is open: a save would wait for the lost one.
                distributed.leave(REQUEUE_EXIT_CODE)
            time.sleep(min(1.0, self._every))

    def _end(self, stage: str, step: int) -> None:
        message = (
            f"mmssl: process {self._process} on {socket.gethostname()} is stuck in "
            f"{stage!r} of step {step}, longer than watchdog.{stage}="
            f"{self._limits[stage]:g} s; exiting with {REQUEUE_EXIT_CODE}: {_AGAIN}\n"
        )
        os.write(_STDERR, message.encode())
        faulthandler.dump_traceback(_STDERR)
        # From here on it may be the storage that hangs.
        last = threading.Timer(_PATIENCE, os._exit, (REQUEUE_EXIT_CODE,))
        last.daemon = True
        last.start()
        others = self._others()
        if others:
            behind = "".join(f"  {beat}\n" for beat in others[:_SHOWN])
            behind = f"The other processes, furthest behind first:\n{behind}"
            os.write(_STDERR, behind.encode())
            message += behind
        stacks = heartbeats.path(self._folder, self._process).with_suffix(".stacks.txt")
        with contextlib.suppress(OSError), stacks.open("w") as file:
            file.write(message)
            file.flush()
            faulthandler.dump_traceback(file)
        os._exit(REQUEUE_EXIT_CODE)


def _maybe_of_another(error: BaseException) -> bool:
    """Whether the loss of another process may be behind it, as behind a failed save."""
    if not isinstance(error, UserError):
        return True
    cause = error.__cause__
    # An error of the file system has a number; a barrier's TimeoutError has none.
    of_files = isinstance(cause, OSError) and cause.errno is not None
    return not (cause is None or of_files or isinstance(cause, UserError))
