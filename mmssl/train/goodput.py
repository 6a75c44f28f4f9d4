"""What the wall time of a run goes to, over all its sessions.

Goodput is the share of it in which training steps ran that count: not start-up, not
compilation, not waiting, and not steps that a restart had to take again.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

PARTS = ("init", "compile", "data", "step", "checkpoint", "eval", "lost")
"""init: from the start of a session to its first batch, restoring included. compile:
the first step's dispatch. data: waiting for batches. checkpoint: what saving holds up;
the rest of it runs beside the steps. eval: evaluation inside training, and other hooks.
step: everything else. lost: of former sessions, what came after the checkpoint that was
gone back to."""

_ENDINGS = ("end", "interrupted")


class Goodput:
    """A clock that always runs for one of `PARTS`; "init" to begin with.

    Args:
      past: rows of `metrics.jsonl` and `events.jsonl` that former sessions wrote; see
        `read_past`.
      clock: seconds, from anywhere.

    Attributes:
      first: the first step of this session, once it has begun; 0 before.
      step: the step under way; whoever takes it sets it.
      lost_now: seconds of the last session that this one takes again.
    """

    def __init__(
        self,
        past: Sequence[Mapping[str, Any]] = (),
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._past, self._clock = past, clock
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._now = ("init", clock())
        self.lost_now = 0.0
        self.first = self.step = 0

    @property
    def where(self) -> tuple[str, int, float]:
        """The part, the step under way (0: none yet), seconds in that part."""
        part, since = self._now
        return part, self.step, self._clock() - since

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each part so far."""
        self._turn(self._now[0])
        return dict(self._seconds)

    @property
    def shares(self) -> dict[str, float]:
        """Each part of the whole; they sum to 1."""
        seconds = self.seconds
        whole = max(sum(seconds.values()), 1e-9)
        return {part: value / whole for part, value in seconds.items()}

    def begin(self, step: int = 1) -> None:
        """The batch of this step is next: from here on the default part is "step"."""
        self.first = step
        self._turn("step")

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block counts as this part."""
        former = self._now[0]
        self._turn(name)
        try:
            yield
        finally:
            self._turn(former)

    def resumed(self, seconds: Mapping[str, float], *, since: float) -> None:
        """Goes on from a checkpoint; what came after it is lost.

        Args:
          seconds: as they were saved with it; empty where there is no checkpoint.
          since: when it was saved, in seconds since 1970; 0 where there is none.
        """
        for part in PARTS:
            self._seconds[part] += seconds.get(part, 0.0)
        self.lost_now = _lost(self._past, since)
        earlier = sum(
            row.get("lost", 0.0)
            for row in self._past
            if row.get("event") == "start" and row["time"] > since
        )
        self._seconds["lost"] += earlier + self.lost_now

    def _turn(self, part: str) -> None:
        now = self._clock()
        former, since = self._now
        self._seconds[former] += now - since
        self._now = (part, now)


def read_past(*paths: pathlib.Path) -> list[dict[str, Any]]:
    """Rows with a time stamp, in its order; lines cut short by a kill are left out."""
    rows = []
    for path in paths:
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
    stamped = [r for r in rows if isinstance(r, dict) and "time" in r]
    return sorted(stamped, key=lambda row: row["time"])


def _lost(past: Sequence[Mapping[str, Any]], since: float) -> float:
    """Seconds that the last session logged after its last checkpoint.

    The log is as fine as its rows: what ran after the last one is not known of.
    """
    starts = [row["time"] for row in past if row.get("event") == "start"]
    if not starts or past[-1].get("event") in _ENDINGS:
        return 0.0
    return max(past[-1]["time"] - max(starts[-1], since), 0.0)
