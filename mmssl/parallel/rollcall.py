"""Who is there? Asked before `jax.distributed` starts, which aborts without a name.

Process 0 listens on the coordinator's port, the others tell it their number and
machine, and all get the list; then the port is jax's.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import time

from mmssl.errors import AgainError, UserError

_SHOWN = 16
"""Processes named in a message."""


def roll_call(
    address: str, *, processes: int, process: int, timeout: float
) -> list[str]:
    """The machine of each process, in their order, once all are there.

    Args:
      address: `HOST:PORT` of process 0; the port is free there, before and after.
      processes: how many there are.
      process: this one, from 0.
      timeout: seconds to wait for all.

    Raises:
      AgainError: somebody did not come in time, and who; or the port was not free.
      UserError: two have the same number.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    if process == 0:
        found = _lead(int(port), processes, deadline)
    else:
        found = _follow(host.strip("[]"), int(port), process, deadline, timeout)
    missing = [i for i in range(processes) if i not in found]
    if missing:
        raise AgainError(_missing(found, missing, processes, timeout))
    return [found[i] for i in range(processes)]


def _lead(port: int, processes: int, deadline: float) -> dict[int, str]:
    found = {0: socket.gethostname()}
    ids = {0: os.getpid()}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port, deadline))
        connections = []
        while len(found) < processes and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            # Anybody may knock at a port; who says something else is not of this run.
            with contextlib.suppress(OSError, ValueError, TypeError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                number, name, id = json.loads(connection.makefile().readline())
                if type(number) is not int or not 0 <= number < processes:
                    continue
                # One that lost its connection comes again.
                one = found.setdefault(number, name), ids.setdefault(number, id)
                if one != (name, id):
                    raise UserError(
                        f"two processes say that they are number {number}, on "
                        f"{one[0]} (pid {one[1]}) and on {name} (pid {id}); each "
                        "needs its own"
                    )
                connections.append(connection)
        answer = json.dumps(found).encode()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(answer)
    return found


def _listen(port: int, deadline: float) -> socket.socket:
    """A socket on the port, which a run that just ended may still have."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=both, backlog=1024
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise AgainError(
                    f"port {port} of {socket.gethostname()}, the coordinator's, cannot "
                    f"be had: {error.strerror}; end what has it, or take another"
                ) from error
            time.sleep(0.5)


def _follow(
    host: str, port: int, process: int, deadline: float, timeout: float
) -> dict[int, str]:
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                # Its answer to all comes when its own time is over, at the latest.
                connection.settimeout(left + timeout)
                hello = json.dumps([process, socket.gethostname(), os.getpid()])
                connection.sendall(f"{hello}\n".encode())
                answer = json.loads(connection.makefile().read())
                return {int(number): name for number, name in answer.items()}
        except (OSError, ValueError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or reason
            time.sleep(min(0.5, left))
    raise AgainError(
        f"process 0 at {host}:{port} could not be reached from {socket.gethostname()} "
        f"within {timeout:g} s ({reason}): look at its log, or whether a firewall or "
        "another address stands between them"
    )


def _missing(
    found: dict[int, str], missing: list[int], processes: int, timeout: float
) -> str:
    planned = _planned(processes)
    names = [f"{i} ({planned[i]})" if planned else str(i) for i in missing[:_SHOWN]]
    here = [f"{i} ({found[i]})" for i in sorted(found)[:_SHOWN]]
    return (
        f"{len(missing)} of {processes} processes did not come within {timeout:g} s: "
        f"{', '.join(names)}{', ...' * (len(missing) > _SHOWN)}. "
        f"Here are {', '.join(here)}{', ...' * (len(found) > _SHOWN)}. Look at the "
        "logs of those that are missing; --start-timeout gives them longer"
    )


def _planned(processes: int) -> list[str] | None:
    """Where each process should be, as far as the launcher says."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["scontrol", "show", "hostnames", nodes]
            names = subprocess.check_output(command, text=True, timeout=10).split()
        tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
        counts: list[int] = []
        for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", tasks):
            counts += [int(count)] * int(times or 1)
        # srun fills node after node.
        names = [n for n, count in zip(names, counts) for _ in range(count)]
    return names if len(names) == processes else None
