"""What one bad item may cost the pool: itself."""

import ast
import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmssl.data import media
from mmssl.data.media import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.pool import DecodePool, Limits, MediaFault
from tests.data import media_files

GOOD = media_files.encode(times=[i / 10 for i in range(10)], wave=media_files.tone(1.0))
REQUEST = ClipRequest(
    VideoRequest((0.0, 0.5), size=(24, 32), attempts=((0.5, 1.0, 0.2, 0.3),)),
    AudioRequest(0.0, 8000, 16000),
)


@pytest.fixture
def slow(tmp_path: pathlib.Path) -> str:
    """A file that takes far longer to decode than any test waits: 12 hours of audio."""
    size = 2**32 - 2**16
    path = tmp_path / "slow.wav"
    with path.open("wb") as f:
        f.write(media_files.wav_header(size))
        f.truncate(size + 44)  # sparse
    return str(path)


def assert_works(pool: DecodePool) -> None:
    clip = pool.clip(GOOD, REQUEST)
    expected = media.decode_clip(GOOD, REQUEST)
    assert clip.video is not None
    assert clip.audio is not None
    np.testing.assert_array_equal(clip.video, expected.video)
    np.testing.assert_array_equal(clip.audio, expected.audio)


def fault_of(pool: DecodePool, src: bytes | str) -> str:
    with pytest.raises(MediaFault) as caught:
        pool.probe(src)
    return caught.value.fault_class


def gone(pid: int) -> bool:
    """True when the process has ended (a zombie has)."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state[0] == "Z"


def wait_until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_the_pool_gives_what_decoding_here_gives(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(GOOD)
    with DecodePool(1) as pool:
        assert_works(pool)
        assert pool.probe(GOOD) == media.probe(GOOD)
        assert pool.probe(str(path), full=False) == media.probe(path, full=False)
        assert fault_of(pool, b"no media at all") == "unreadable"
        assert fault_of(pool, str(tmp_path / "none.mp4")) == "missing"
        assert len(pool.pids()) == 1  # faults cost no process


def test_a_hang_costs_one_item(slow: str) -> None:
    with DecodePool(1, Limits(probe_seconds=0.5, duration=1e6)) as pool:
        assert_works(pool)
        before, begin = pool.pids(), time.monotonic()
        assert fault_of(pool, slow) == "timeout"
        assert time.monotonic() - begin < 5
        assert_works(pool)
        assert pool.pids() != before
        assert all(map(gone, before))


def test_a_killed_worker_costs_one_item(slow: str) -> None:
    with DecodePool(2, Limits(duration=1e6)) as pool:
        assert_works(pool)
        (pid,) = pool.pids()

        def kill() -> None:
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert fault_of(pool, slow) == "crash"
        killer.join()
        assert_works(pool)
        (other,) = pool.pids()
        os.kill(other, signal.SIGKILL)  # while idle: the next item finds it dead
        wait_until(lambda: gone(other))
        with pytest.raises(MediaFault):
            pool.clip(GOOD, REQUEST)
        assert_works(pool)


def test_a_worker_that_needs_too_much_memory_costs_one_item() -> None:
    image = np.zeros((3000, 4000, 3), np.uint8)
    big = media_files.encode(times=[0.0], images=[image], codec="mpeg4")
    with DecodePool(1, Limits(memory_mb=16)) as pool:
        assert fault_of(pool, big) in ("memory", "crash", "corrupt", "no_frames")
        assert pool.probe(GOOD, full=False).duration > 0
    with DecodePool(1) as pool:
        assert pool.probe(big).video is not None


def test_an_error_in_a_worker_costs_one_item() -> None:
    with DecodePool(1) as pool:
        with pytest.raises(MediaFault, match=r"crash .*decoder error: KeyError") as e:
            pool._call(GOOD, {"op": "clip", "request": {}}, 10.0)
        assert e.value.fault_class == "crash"
        assert_works(pool)


def test_workers_do_not_outlive_their_parent(slow: str) -> None:
    code = (
        "import threading, sys, time\n"
        "from mmssl.data.pool import DecodePool, Limits\n"
        "pool = DecodePool(2, Limits(duration=1e6))\n"
        "threading.Thread(target=pool.probe, args=(sys.argv[1],)).start()\n"
        "pool.probe(sys.argv[2], full=False)\n"
        "print(*pool.pids(), flush=True)\n"
        "time.sleep(60)\n"
    )
    header = pathlib.Path(slow).with_name("short.wav")
    header.write_bytes(media_files.wav_header(32000) + bytes(32000))
    parent = subprocess.Popen(
        [sys.executable, "-c", code, slow, str(header)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with parent.stdout as out:
        pids = [int(pid) for pid in out.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    assert wait_until(lambda: all(map(gone, pids)))  # the idle one and the busy one


def test_an_interrupted_start_leaves_no_stale_greeting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with DecodePool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("mmssl.data.wire.receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.clip(GOOD, REQUEST)
        assert pool.clip(GOOD, REQUEST).video is not None


def test_workers_are_recycled() -> None:
    with DecodePool(1, recycle=2) as pool:
        seen = set()
        for _ in range(4):
            assert_works(pool)
            seen.update(pool.pids())
        assert len(seen) == 2


def test_many_threads_share_few_workers() -> None:
    expected = media.decode_clip(GOOD, REQUEST)
    with DecodePool(2) as pool, concurrent.futures.ThreadPoolExecutor(8) as threads:
        clips = list(threads.map(lambda _: pool.clip(GOOD, REQUEST), range(24)))
        assert len(pool.pids()) == 2
    for clip in clips:
        assert clip.video is not None
        np.testing.assert_array_equal(clip.video, expected.video)


def test_a_closed_pool_leaves_nothing_and_refuses() -> None:
    pool = DecodePool(2)
    assert_works(pool)
    pids = pool.pids()
    pool.close()
    pool.close()
    assert pids
    assert wait_until(lambda: all(map(gone, pids)))
    with pytest.raises(RuntimeError, match="closed"):
        pool.probe(GOOD)


def test_a_worker_has_no_jax_and_starts_fast() -> None:
    code = (
        "import sys, mmssl.data.worker, mmssl.data.media; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"Limits\.seconds"):
        Limits(seconds=0)
    with pytest.raises(ValueError, match="workers"):
        DecodePool(0)


UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "urllib"}
CALLS = {"eval", "exec", "compile", "system", "popen", "load_module", "__import__"}


def test_nothing_that_handles_media_unpickles_or_starts_a_shell() -> None:
    folder = pathlib.Path(media.__file__).parent
    modules = sorted(folder.rglob("*.py"))
    assert len(modules) > 30
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & UNSAFE, module
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                plain = isinstance(node.func, ast.Name) or called in ("system", "popen")
                assert not (plain and called in CALLS), f"{module}:{node.lineno}"
                words = {k.arg: k.value for k in node.keywords}
                assert "shell" not in words, f"{module}:{node.lineno}"
                assert "allow_pickle" not in words, f"{module}:{node.lineno}"
