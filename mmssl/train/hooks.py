"""What else runs between steps: evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Hook:
    """Runs after every `every`th step and after the last one.

    Attributes:
      every: steps between runs, at least 1.
      run: (steps taken, state) -> metrics for the row of that step. The state must
        not be kept: the next step donates it.
    """

    every: int
    run: Callable[[int, Any], Mapping[str, float]]

    def due(self, step: int, *, total: int) -> bool:
        return step % self.every == 0 or step == total
