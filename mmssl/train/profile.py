"""A trace of a few steps, for TensorBoard's profile page, XProf or Perfetto."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from mmssl.errors import UserError


class Profile:
    """Traces steps `first` to `last` with JAX's profiler.

    Args:
      directory: where the trace goes.
      steps: (first, last), both included; empty = none.

    Raises:
      UserError: `steps` are not two numbers in order.
    """

    def __init__(
        self, directory: pathlib.Path = pathlib.Path(), steps: Sequence[int] = ()
    ):
        steps = tuple(steps)
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise UserError(
                "log.profile: expected the first and the last step to trace, like "
                f"[20, 25], found {list(steps)}"
            )
        self.directory = directory
        self._first, self._last = steps or (0, -1)
        self._running = False

    def before(self, step: int) -> None:
        """Call before a step is dispatched, and before its batch is read."""
        if not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(self.directory)
            self._running = True

    def after(self, step: int, state: Any) -> str | None:
        """Call when it is; returns what to tell a person when the trace is written."""
        if not self._running or step < self._last:
            return None
        jax.block_until_ready(state)
        self.close()
        return f"profile of steps {self._first} to {step}: {self.directory}"

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
