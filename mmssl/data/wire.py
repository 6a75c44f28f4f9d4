"""Messages between the pool and its workers: JSON and raw bytes, length-prefixed.

No pickle: a worker that untrusted media took over can send numbers and text only.
"""

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LENGTHS = struct.Struct("!IQ")
_MAX_HEADER = 2**24


class ClosedError(Exception):
    """The other side is gone."""


def send(
    sock: socket.socket,
    header: Mapping[str, Any],
    chunks: Sequence[bytes | bytearray | memoryview] = (),
    *,
    deadline: float | None = None,
) -> None:
    """Sends one message.

    Raises:
      TimeoutError: not through by `deadline` (time.monotonic seconds).
      ClosedError: the other side is gone.
    """
    head = json.dumps(header).encode()
    body = sum(memoryview(chunk).nbytes for chunk in chunks)
    try:
        for part in (_LENGTHS.pack(len(head), body) + head, *chunks):
            sock.settimeout(_left(deadline))
            sock.sendall(part)
    except (BrokenPipeError, ConnectionError) as error:
        raise ClosedError(str(error)) from error


def receive(
    sock: socket.socket, *, limit: int, deadline: float | None = None
) -> tuple[dict[str, Any], memoryview]:
    """Receives one message: header and body.

    Args:
      sock: the connection.
      limit: bytes the body may have.
      deadline: time.monotonic seconds, or None to wait for ever.

    Raises:
      TimeoutError: nothing whole by the deadline.
      ClosedError: the other side is gone, or what it sends is no message.
    """
    head, body = _LENGTHS.unpack(_exactly(sock, _LENGTHS.size, deadline))
    if head > _MAX_HEADER or body > limit:
        raise ClosedError(f"a message of {head} + {body} bytes")
    try:
        header = json.loads(bytes(_exactly(sock, head, deadline)))
    except ValueError as error:
        raise ClosedError(f"not JSON: {error}") from error
    return header, _exactly(sock, body, deadline)


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _exactly(sock: socket.socket, count: int, deadline: float | None) -> memoryview:
    # Not a bytearray: its zeros would be written before the frames are.
    buffer = np.empty(count, np.uint8).data
    rest = buffer
    while rest:
        sock.settimeout(_left(deadline))
        try:
            got = sock.recv_into(rest)
        except ConnectionError as error:
            raise ClosedError(str(error)) from error
        if got == 0:
            raise ClosedError("end of stream")
        rest = rest[got:]
    return buffer
