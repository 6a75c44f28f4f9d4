"""Worker processes that decode media which nobody vouches for.

A crash, a hang or a memory bomb costs one item: the worker is replaced and the item
becomes a `MediaFault`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

import mmssl
from mmssl.data import wire
from mmssl.data.clips import Clip, ClipRequest
from mmssl.data.faults import Limits, MediaFault
from mmssl.data.media import Probe
from mmssl.data.storage import Piece, Storage

__all__ = ["Clip", "ClipRequest", "DecodePool", "Limits"]

Source = bytes | str | os.PathLike[str]

_START_SECONDS = 60.0
_OWN_TIMEOUTS = (signal.SIGALRM, signal.SIGXCPU)


class _Worker:
    """One process, started when first needed, and again after it died."""

    def __init__(self, limits: Limits, recycle: int) -> None:
        self._limits = limits
        self._recycle = recycle
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._served = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def call(
        self, header: dict[str, Any], body: bytes, seconds: float
    ) -> tuple[dict[str, Any], memoryview]:
        """One request, one reply.

        Raises:
          MediaFault: the worker's, or timeout or crash.
        """
        sock = self._socket or self._start()
        deadline = time.monotonic() + seconds
        limit = (self._limits.output_mb + 64) * 2**20
        try:
            message = header | {"seconds": seconds}
            wire.send(sock, message, [body] if body else [], deadline=deadline)
            reply, data = wire.receive(sock, limit=limit, deadline=deadline)
        except TimeoutError:
            self.stop()
            raise MediaFault("timeout", f"more than {seconds:g} s") from None
        except wire.ClosedError as error:
            raise self._died(str(error)) from None
        except BaseException:
            self.stop()  # an interrupt in mid-message leaves the stream unusable
            raise
        self._served += 1
        if self._served >= self._recycle:
            self.stop()
        if "fault" in reply:
            raise MediaFault(*reply["fault"])
        if "error" in reply:
            self.stop()  # what it was in the middle of is not known
            raise MediaFault("crash", f"decoder error: {reply['error']}")
        return reply, data

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        package = str(pathlib.Path(mmssl.__file__).parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        limits = json.dumps(dataclasses.asdict(self._limits))
        with theirs, tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mmssl.data.worker", limits],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
                # The terminal's Ctrl-C is for the parent; workers end with it.
                start_new_session=True,
            )
            self._socket = ours
            self._served = 0
            try:
                deadline = time.monotonic() + _START_SECONDS
                wire.receive(ours, limit=0, deadline=deadline)
            except (TimeoutError, wire.ClosedError) as error:
                self.stop()
                log.seek(0)
                text = log.read().decode(errors="replace").strip()
                raise RuntimeError(f"a decode worker did not start: {text}") from error
            except BaseException:
                # Its greeting, still unread, would pass for the reply to the next item.
                self.stop()
                raise
        return ours

    def _died(self, detail: str) -> MediaFault:
        process = self._process
        self.stop()
        code = process.returncode if process is not None else 0
        if -code in _OWN_TIMEOUTS:
            return MediaFault("timeout", "ended by its own alarm")
        if code < 0:
            detail = f"killed by {signal.Signals(-code).name}"
        return MediaFault("crash", detail)

    def stop(self) -> None:
        """Ends the process; the next call starts another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            # Having lost its socket it is ending anyway; a dead one keeps its code.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.05)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None


class DecodePool:
    """Decodes in worker processes; safe to call from many threads at once.

    Each call waits for a free worker. Use it as a context manager, or `close` it.

    Args:
      workers: processes; None: one per CPU core.
      limits: what one item may cost.
      recycle: items after which a worker is replaced, against leaks in decoders.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        *,
        recycle: int = 2000,
    ) -> None:
        self.workers = os.cpu_count() or 1 if workers is None else workers
        if self.workers < 1 or recycle < 1:
            raise ValueError(
                f"workers and recycle must be at least 1, found {workers} and {recycle}"
            )
        self.limits = limits or Limits()
        self._all = [_Worker(self.limits, recycle) for _ in range(self.workers)]
        # Last in, first out: a light load starts few processes.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._closed = threading.Event()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, after the calls under way."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in self._all:
            self._idle.get().stop()
        for worker in self._all:
            self._idle.put(worker)  # a waiting caller finds the pool closed

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.pid for worker in self._all if worker.pid is not None]

    def probe(self, src: Source, *, full: bool = True) -> Probe:
        """Describes media; `full` decodes everything.

        Args:
          src: media bytes, or the path of a local file.
          full: decode it all, to count frames and samples.

        Raises:
          MediaFault: nothing in it can be used.
        """
        limits = self.limits
        seconds = limits.probe_seconds if full else limits.seconds
        reply, _ = self._call(src, {"op": "probe", "full": full}, seconds)
        return Probe(**reply["probe"])

    def transcode(self, src: Source, storage: Storage) -> tuple[Probe, list[Piece]]:
        """Describes media and encodes them anew; see `transcode.transcode`.

        Raises:
          MediaFault: nothing in it can be used.
        """
        header = {"op": "transcode", "storage": dataclasses.asdict(storage)}
        reply, data = self._call(src, header, self.limits.probe_seconds)
        pieces, view = [], memoryview(data)
        for part in reply["pieces"]:
            media, view = bytes(view[: part["media"]]), view[part["media"] :]
            probe = Probe(**part["probe"])
            pieces.append(Piece(part["start"], part["end"], media, probe))
        return Probe(**reply["probe"]), pieces

    def clip(self, src: Source, request: ClipRequest) -> Clip:
        """Decodes one window of media; see `media.decode_clip`.

        Raises:
          MediaFault: the media as a whole cannot be used.
        """
        header = {"op": "clip", "request": request.to_json()}
        reply, data = self._call(src, header, self.limits.seconds)
        arrays: dict[str, np.ndarray | None] = {"video": None, "audio": None}
        at = 0
        for name, dtype in (("video", np.uint8), ("audio", np.float32)):
            shape = reply[name]
            if shape is not None:
                count = int(np.prod(shape))
                flat = np.frombuffer(data, dtype, count=count, offset=at)
                arrays[name] = flat.reshape(shape)
                at += flat.nbytes
        return Clip(arrays["video"], arrays["audio"], reply["faults"])

    def _call(
        self, src: Source, header: dict[str, Any], seconds: float
    ) -> tuple[dict[str, Any], memoryview]:
        in_memory = isinstance(src, bytes)
        path = None if in_memory else os.path.abspath(src)
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise RuntimeError("the decode pool is closed")
            body = src if isinstance(src, bytes) else b""
            return worker.call(header | {"path": path}, body, seconds)
        finally:
            self._idle.put(worker)
