"""Signs of life: `W/heartbeat/process_N.json`, one of each process, always whole."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence

from mmssl import files

FOLDER = "heartbeat"
PATIENCE = 4
"""Beats that may be missing before a process counts as silent."""
ENDED = "ended"
"""The stage of a process that let go of its run in order."""


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a process was doing.

    Attributes:
      process: its number in the run.
      host: its machine.
      pid: its number on that machine.
      step: the step under way.
      stage: the part of it; see `goodput.PARTS`.
      seconds: for how long it had been in that stage.
      time: when it wrote this, in seconds since 1970 by its own clock.
      every: seconds between beats.
    """

    process: int
    host: str
    pid: int
    step: int
    stage: str
    seconds: float
    time: float
    every: float

    @property
    def silence(self) -> float:
        """Seconds since, by our clock."""
        return max(0.0, time.time() - self.time)

    @property
    def silent(self) -> bool:
        """Whether it missed several beats in a row."""
        return self.stage != ENDED and self.silence > PATIENCE * self.every

    def __str__(self) -> str:
        return (
            f"process {self.process} on {self.host}: step {self.step}, {self.stage} "
            f"for {self.seconds:.0f} s, last sign of life {self.silence:.0f} s ago"
        )


def path(folder: pathlib.Path, process: int) -> pathlib.Path:
    """Where a process leaves its signs of life."""
    return folder / FOLDER / f"process_{process}.json"


def write(folder: pathlib.Path, beat: Beat) -> None:
    """Writes one; a disk that refuses is met, and told, by more important files."""
    with contextlib.suppress(OSError):
        files.write(path(folder, beat.process), json.dumps(dataclasses.asdict(beat)))


def read(folder: pathlib.Path, process: int) -> Beat | None:
    """The last one of a process; None where there is none that can be read."""
    try:
        return Beat(**json.loads(path(folder, process).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_all(folder: pathlib.Path, processes: int) -> Sequence[Beat]:
    """The last ones of processes 0 to `processes`, those furthest behind first."""
    found = [read(folder, process) for process in range(processes)]
    beats = [beat for beat in found if beat is not None]
    # Where one waits for data, or is silent, the others wait for it in a later stage.
    return sorted(beats, key=lambda b: (b.step, not b.silent, b.stage != "data"))
