"""Asking a run to stop: a notice to one process stops all, at the same place."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

REQUEUE_EXIT_CODE = 75
"""EX_TEMPFAIL: the run stopped by request and continues when started again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preemption:
    """Turns the first SIGTERM, SIGUSR1 or Ctrl-C into a request to stop.

    A second Ctrl-C interrupts at once, as KeyboardInterrupt. Outside the `with` block
    the former handlers are back. Signals reach only the main thread of a process: in
    another thread the block changes nothing.

    Where `jax.distributed` runs, SIGTERM (the notice that platforms give) is its own
    from the start; the other two are passed on to it. It finds a place that no
    process has passed yet.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._asked, self._agreed = 0, False
        self._shared = jax.distributed.is_initialized()

    def requested(self) -> str | None:
        """The signal that asked to stop here, or None.

        With several processes all call it equally often, at the same places, and get
        the same answer; one that did not get the signal itself calls it SIGTERM.
        """
        if self._shared and not self._agreed:
            self._asked += 1
            self._agreed = multihost_utils.reached_preemption_sync_point(self._asked)
        if not self._agreed:
            return None if self._shared else self._received
        return self._received or signal.SIGTERM.name

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS[self._shared :]:
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number).name
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{self._received}: finishing and saving this step; ".encode())
        os.write(2, b"Ctrl-C now stops at once, without saving\n")
        if self._shared:
            signal.raise_signal(signal.SIGTERM)
