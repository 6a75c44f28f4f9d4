"""One decode process: `python -m mmssl.data.worker LIMITS` with a socket on fd 0.

Decodes untrusted media under resource limits. It imports no jax, opens no network
connection, writes no file, and ends when its parent closes the socket or dies.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

import numpy as np

from mmssl.data import wire
from mmssl.data.faults import Limits, MediaFault

# The worker ends itself if the parent could not end it.
_ALARM_LATER = 2.0


def _restrict(limits: Limits) -> None:
    """Limits on what this process may take; those the system lacks are skipped."""
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 64}
    with contextlib.suppress(OSError):
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        wanted["RLIMIT_AS"] = used + limits.memory_mb * 2**20
    for name, value in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _answer(
    header: dict[str, Any], body: memoryview, limits: Limits
) -> tuple[dict[str, Any], list[memoryview]]:
    from mmssl.data import media

    src = bytes(body) if header["path"] is None else header["path"]
    if header["op"] == "probe":
        found = media.probe(src, full=header["full"], limits=limits)
        return {"probe": dataclasses.asdict(found)}, []
    if header["op"] == "transcode":
        return _transcoded(src, header["storage"], limits)
    request = media.ClipRequest.from_json(header["request"])
    clip = media.decode_clip(src, request, limits=limits)
    reply: dict[str, Any] = {"faults": clip.faults, "video": None, "audio": None}
    chunks: list[memoryview] = []
    for name, array in (("video", clip.video), ("audio", clip.audio)):
        if array is not None:
            reply[name] = list(array.shape)
            chunks.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return reply, chunks


def _transcoded(
    src: bytes | str, storage: dict[str, Any], limits: Limits
) -> tuple[dict[str, Any], list[memoryview]]:
    from mmssl.data import transcode
    from mmssl.data.storage import Storage

    probe, pieces = transcode.transcode(src, Storage(**storage), limits=limits)
    chunks = [memoryview(piece.media) for piece in pieces]
    parts = [
        dataclasses.asdict(piece) | {"media": len(piece.media)} for piece in pieces
    ]
    return {"probe": dataclasses.asdict(probe), "pieces": parts}, chunks


def serve(sock: socket.socket, limits: Limits) -> None:
    """Answers requests until the other side closes."""
    import av.error

    while True:
        try:
            header, body = wire.receive(sock, limit=2**40)
        except wire.ClosedError:
            return
        except MemoryError:
            wire.send(sock, {"fault": ["memory", "the media's own bytes"]})
            return
        signal.setitimer(signal.ITIMER_REAL, header["seconds"] + _ALARM_LATER)
        chunks: list[memoryview] = []
        try:
            reply, chunks = _answer(header, body, limits)
        except MediaFault as fault:
            reply = {"fault": [fault.fault_class, fault.detail[:500]]}
        except MemoryError as error:
            reply = {"fault": ["memory", str(error)[:500]]}
        except (av.error.FFmpegError, ArithmeticError) as error:
            reply = {"fault": ["corrupt", f"{type(error).__name__}: {error}"[:500]]}
        except Exception as error:  # a bug, which must not end a build of days
            reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
        del body
        try:
            wire.send(sock, reply, chunks)
        except wire.ClosedError:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)


def _follow_parent(parent: int) -> None:
    """Ends this process soon after its parent, even in the middle of an item."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    parent = os.getppid()
    threading.Thread(target=_follow_parent, args=(parent,), daemon=True).start()
    limits = Limits(**json.loads(sys.argv[1]))
    import av
    import soxr  # noqa: F401  imported before the limits count

    from mmssl.data import media  # noqa: F401

    av.logging.set_level(None)
    _restrict(limits)
    with socket.socket(fileno=os.dup(0)) as sock:
        wire.send(sock, {"ready": os.getpid()})
        serve(sock, limits)


if __name__ == "__main__":
    main()
