"""Start-up: who is missing is named, contradictions told, launchers understood."""

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmssl import cli
from mmssl.errors import AgainError, UserError
from mmssl.parallel import distributed, rollcall

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in os.environ:
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "TPU_")):
            monkeypatch.delenv(name)


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def call_roll(port, numbers, *, processes, timeout):
    """What each process of `numbers` gets, or the error it meets."""

    def one(process):
        try:
            return rollcall.roll_call(
                f"localhost:{port}",
                processes=processes,
                process=process,
                timeout=timeout,
            )
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, numbers))


def test_all_get_the_list(port):
    found = call_roll(port, [2, 0, 1, 3], processes=4, timeout=20)
    assert found == [[HOST] * 4] * 4


def test_the_missing_are_named_to_all(port, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-a,host-b,host-c,host-d")
    for error in call_roll(port, [0, 1], processes=4, timeout=1):
        assert isinstance(error, AgainError)
        assert (
            "2 of 4 processes did not come within 1 s: 2 (host-c), 3 (host-d)"
            in str(error)
        )
        assert f"Here are 0 ({HOST}), 1 ({HOST})" in str(error)


def test_a_missing_first_process_is_named(port):
    (error,) = call_roll(port, [1], processes=2, timeout=0.5)
    assert isinstance(error, AgainError)
    assert f"process 0 at localhost:{port} could not be reached" in str(error)


def test_a_port_that_stays_taken_is_told():
    with socket.create_server(("", 0), family=socket.AF_INET6) as server:
        taken = server.getsockname()[1]
        (error,) = call_roll(taken, [0], processes=2, timeout=0.2)
    assert isinstance(error, AgainError)
    assert f"port {taken} of {HOST}" in str(error)


def test_missing_processes_are_worth_another_start(capsys):
    assert cli.report(AgainError("1 of 2 processes did not come")) == 75
    assert cli.report(UserError("two processes say that they are number 1")) == 2
    assert "did not come" in capsys.readouterr().err


@pytest.mark.parametrize("where", [HOST, "elsewhere"])
def test_two_of_one_number_are_told(port, where):
    def impostor():
        hello = json.dumps([1, where, os.getpid() + 1]) + "\n"
        with socket.create_connection(("localhost", port)) as connection:
            connection.sendall(hello.encode())
            connection.recv(1)

    thread = threading.Thread(target=impostor)
    # The leader is there first, the two others follow.
    with ThreadPoolExecutor(1) as pool:
        leading = pool.submit(call_roll, port, [0, 1], processes=3, timeout=3)
        while not thread.is_alive() and not leading.done():
            try:
                socket.create_connection(("localhost", port)).close()
                thread.start()
            except ConnectionRefusedError:
                continue
        first = leading.result()[0]
    thread.join()
    assert isinstance(first, UserError)
    assert not isinstance(first, AgainError)
    assert "two processes say that they are number 1" in str(first)


@pytest.mark.parametrize(
    "said",
    ["GET / HTTP/1.1\r\n", "5", "null", '["a", "b", 1]', '[9, "x", 1]', "[[],0,0]"],
)
def test_strangers_at_the_port_do_no_harm(port, said):
    options = {"processes": 2, "timeout": 20}
    with ThreadPoolExecutor(1) as pool:
        leading = pool.submit(call_roll, port, [0], **options)
        while True:
            try:
                stranger = socket.create_connection(("localhost", port))
                break
            except ConnectionRefusedError:
                continue
        with stranger:
            stranger.sendall(f"{said}\n".encode())
            following = call_roll(port, [1], **options)
        assert leading.result() == following == [[HOST] * 2]


def test_slurm_says_where_each_should_be(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'n1\\nn2\\nn3\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-3]")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2),1")
    assert rollcall._planned(5) == ["n1", "n1", "n2", "n2", "n3"]
    assert rollcall._planned(6) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cluster": "slrum"}, "did you mean 'slurm'"),
        ({"cluster": "slurm"}, "--cluster slurm does not find its processes"),
        ({"coordinator": "a:1", "process": 0}, "--processes missing"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "not one of 2"),
        ({"start_timeout": 0}, "start timeout must be at least 1 s"),
    ],
)
def test_contradictions_are_told(options, told):
    with pytest.raises(UserError, match=told):
        distributed.initialize(**options)


def test_environment_stands_in_for_arguments(monkeypatch):
    for name, value in zip(distributed.ENVIRONMENT, ("a:1", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert distributed._explicit(None, None, None) == ("a:1", 4, 3)
    assert distributed._explicit(None, None, 0) == ("a:1", 4, 0)
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(UserError, match="JAX_PROCESS_ID: expected a number"):
        distributed._explicit(None, None, None)


def test_what_launchers_say_is_understood(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "n[03-04]",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    found = distributed._detected("slurm", None, None, None, 1)
    assert found == ("n03:61447", 4, 3, [1])
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    assert distributed._detected("auto", None, None, None, 1)[3] == [0, 1]


def test_one_process_is_alone():
    distributed.initialize()
    assert not distributed.several()
    assert distributed.hosts() == [HOST]
    assert distributed.first()
    assert distributed.from_first(lambda: {"a": 1}) == {"a": 1}
    np.testing.assert_array_equal(distributed.total(np.arange(3)), [0, 1, 2])
    with pytest.raises(UserError, match="as it is"):
        distributed.from_first(lambda: (_ for _ in ()).throw(UserError("as it is")))


@pytest.mark.parametrize(
    ("failure", "code"),
    [(UserError("bad"), 2), (AgainError("again"), 75), (OSError(5, "storage"), 75)],
)
def test_what_stops_the_first_process_stops_the_others_alike(
    monkeypatch, failure, code
):
    sent = []

    def first_sends(value):
        sent.append(value)
        return value

    def fail():
        raise failure

    monkeypatch.setattr(distributed, "several", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(distributed.multihost_utils, "broadcast_one_to_all", first_sends)
        with pytest.raises(type(failure)) as raised:
            distributed.from_first(fail)
    assert raised.value is failure
    monkeypatch.setattr(distributed, "first", lambda: False)
    monkeypatch.setattr(
        distributed.multihost_utils, "broadcast_one_to_all", lambda _: sent.pop()
    )
    with pytest.raises(UserError, match="process 0 cannot go on") as followed:
        distributed.from_first(fail)
    assert cli.report(followed.value) == code
