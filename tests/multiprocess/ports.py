"""Where processes of a test may meet."""

import socket


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
