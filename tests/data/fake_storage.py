"""A bucket on this machine: what ArrayRecord and fsspec ask of gs:// is served here."""

import contextlib
import http.server
import pathlib
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations import dirfs, local

ENDPOINT = "CLOUD_STORAGE_EMULATOR_ENDPOINT"
"""Where Google's C++ client, which ArrayRecord links, looks for an emulator."""


class Bucket:
    """Files below a folder, by HTTP ranges.

    Attributes:
      refused: requests still to be answered with 404, which no client tries again.
      slow: requests still to be answered late, after `seconds`.
      ranges: (first byte asked for or "", file name) of each request.
      sent: bytes.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.refused = self.slow = self.sent = 0
        self.seconds = 0.0
        self.ranges: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def take(self, counter: str) -> bool:
        """Whether one is left of `refused` or `slow`, which it uses up."""
        with self.lock:
            left = getattr(self, counter)
            setattr(self, counter, max(0, left - 1))
        return left > 0


def _handler(bucket: Bucket) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            name = urllib.parse.unquote(self.path.partition("?")[0].split("/o/", 1)[1])
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or "")
            bucket.ranges.append((asked[1] if asked else "", name))
            file = bucket.folder / name
            if bucket.take("slow"):
                time.sleep(bucket.seconds)
            if bucket.take("refused") or not file.is_file():
                self.send_error(404)
                return
            data = file.read_bytes()
            first, last = 0, len(data) - 1
            if asked and asked[1]:
                first, last = int(asked[1]), min(last, int(asked[2] or last))
            elif asked:
                first = max(0, len(data) - int(asked[2]))
            self.send_response(206 if asked else 200)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that has enough
                for at in range(first, last + 1, 2**16):
                    self.wfile.write(data[at : min(at + 2**16, last + 1)])
                    bucket.sent += min(2**16, last + 1 - at)

    return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Files(dirfs.DirFileSystem):
    """Paths of a bucket called `bucket`, in its folder."""

    protocol = "gcs"
    folder = ""

    def __init__(self, **_: object) -> None:
        super().__init__(path=self.folder, fs=local.LocalFileSystem())

    def _join(self, path):
        return super()._join(str(path).removeprefix("gs://").removeprefix("bucket/"))


@contextlib.contextmanager
def served(folder: pathlib.Path, patch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """`gs://bucket/...` is `folder`, for ArrayRecord (HTTP) and etils (fsspec)."""
    bucket = Bucket(folder)
    server = _Server(("127.0.0.1", 0), _handler(bucket))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    patch.setenv(ENDPOINT, f"http://127.0.0.1:{server.server_port}")
    patch.setattr(_Files, "folder", str(folder))
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, _Files, clobber=True)
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
