"""What else runs between steps: evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Told = Callable[[], str | None]
"""Which signal asked the run to stop, if one did. All processes call it together."""


class StoppedError(Exception):
    """A hook was told to stop, and found nothing."""


@dataclasses.dataclass(frozen=True)
class Hook:
    """Runs after every `every`th step and after the last one.

    Attributes:
      every: steps between runs, at least 1.
      run: (steps taken, state, told) -> metrics for the row of that step. The state
        must not be kept: the next step donates it. Where it takes long it asks `told`
        now and then, and raises StoppedError. UserError and OSError mean that it found
        nothing this time; where it raises anything, it does so in all processes.
    """

    every: int
    run: Callable[[int, Any, Told], Mapping[str, float]]

    def due(self, step: int, *, total: int) -> bool:
        return step % self.every == 0 or step == total
