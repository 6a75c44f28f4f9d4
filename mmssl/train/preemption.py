"""Asking a run to stop: signals become a flag that the loop reads between steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

REQUEUE_EXIT_CODE = 75
"""EX_TEMPFAIL: the run stopped by request and continues when started again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preemption:
    """Turns the first SIGTERM, SIGUSR1 or Ctrl-C into a request to stop.

    A second Ctrl-C interrupts at once, as KeyboardInterrupt. Outside the `with` block
    the former handlers are back. Signals reach only the main thread of a process: in
    another thread the block changes nothing.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._former: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        """The name of the signal that asked to stop, or None."""
        return self._received

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
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
