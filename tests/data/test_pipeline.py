"""Order is a function of (seed, step); positions are integers; faults are counted."""

import collections
import itertools
import json
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from mmssl.data import device
from mmssl.data.faults import MediaFault
from mmssl.data.media import Clip, ClipRequest
from mmssl.data.pipeline import HostBatch, Pipeline
from mmssl.data.records import Record
from mmssl.data.views import View
from mmssl.errors import UserError

PROBE = {
    "duration": 5.0,
    "video": None,
    "audio": {"samples": 500, "rate": 100, "start": 0.0},
}


class SlowPool:
    """Decodes to a constant, after a time that differs from call to call."""

    workers = 2

    def __init__(self, fault_every: int = 0) -> None:
        self.fault_every = fault_every
        self.calls = itertools.count(1)

    def clip(self, media: bytes, request: ClipRequest) -> Clip:
        time.sleep(0.003 * (next(self.calls) % 3))
        if self.fault_every and int(media) % self.fault_every == 0:
            raise MediaFault("crash")
        assert request.audio is not None
        wave = np.full(request.audio.samples, int(media) + 1, np.float32)
        return Clip(None, wave)


class Source:
    """Records named after their source and number."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        media = str(index).encode()
        name = f"{self.name}{index}"
        meta = {"probe": PROBE}
        return Record(id=name, media=media, media_name=f"{name}.mp4", meta=meta)

    def __repr__(self) -> str:
        return f"Source({self.name})"


def make(
    *,
    sources: Any = None,
    train: bool = True,
    windows: int = 1,
    pool: Any = None,
    **options: Any,
) -> Pipeline:
    view = View(
        pool or SlowPool(),
        seconds=1.0,
        audio={"rate": 16, "noise": 0.1},
        train=train,
        windows=windows,
    )
    sources = sources or [(Source("a", 12), 3.0), (Source("b", 5), 1.0)]
    return Pipeline(
        sources, view, **({"batch": 8, "seed": 5, "train": train} | options)
    )


def take(pipeline: Any, count: int) -> list[HostBatch]:
    found = list(itertools.islice(pipeline, count))
    if isinstance(pipeline, Pipeline):
        pipeline.close()
    return found


def ids(batches: list[HostBatch]) -> list[str]:
    return [info["id"] for found in batches for info in found.info]


def assert_same(one: list[HostBatch], two: list[HostBatch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.info == b.info
        for x, y in zip(jax.tree.leaves(a.raw), jax.tree.leaves(b.raw), strict=True):
            np.testing.assert_array_equal(x, y)


def test_order_does_not_depend_on_threads_or_timing() -> None:
    expected = take(make(threads=1, prefetch=1), 5)
    assert_same(take(make(threads=7, prefetch=20), 5), expected)
    assert ids(take(make(seed=6), 5)) != ids(expected)
    noise = expected[0].raw.media["audio"]
    assert len(np.unique(noise)) > noise.size // 2  # rows have their own streams


@pytest.mark.parametrize("processes", [2, 4])
def test_process_parts_concatenate_to_the_global_batch(processes: int) -> None:
    expected = take(make(), 3)
    parts = [take(make(shards=((i,), processes)), 3) for i in range(processes)]
    for step, whole in enumerate(expected):
        rows = [part[step] for part in parts]
        assert [i for row in rows for i in row.info] == whole.info
        joined = np.concatenate([np.asarray(row.raw.media["audio"]) for row in rows])
        np.testing.assert_array_equal(joined, whole.raw.media["audio"])


def test_shards_apart_are_those_rows_of_the_global_batch() -> None:
    whole = take(make(), 3)
    part = take(make(shards=((0, 3), 4)), 3)
    for found, expected in zip(part, whole, strict=True):
        assert found.info == expected.info[:2] + expected.info[6:]


def test_resume_is_exact_also_on_other_numbers_of_processes() -> None:
    expected = take(make(), 7)
    first = make()
    take(first, 3)
    state = json.loads(json.dumps(first.get_state()))
    again = make(threads=1)
    again.set_state(state)
    assert_same(take(again, 4), expected[3:])
    # Going on after a close, and back to an earlier position, are the same.
    assert_same(take(first, 2), expected[3:5])
    first.set_state({**state, "step": 1})
    assert_same(take(first, 1), expected[1:2])
    halves = [make(shards=((i,), 2)) for i in range(2)]
    for half in halves:
        half.set_state(state)
    found = [take(half, 1)[0].info for half in halves]
    assert found[0] + found[1] == expected[3].info


def test_a_run_that_grows_from_one_process_to_four_loses_and_repeats_nothing() -> None:
    """Three epochs of 40 rows in steps of 8: on 1 process, then 2, then 4, then 1."""
    rows = [(Source("a", 40), 1.0)]
    whole = take(make(sources=rows), 15)
    state, found = make(sources=rows).get_state(), []
    for processes, steps in ((1, 3), (2, 4), (4, 6), (1, 2)):
        parts = [
            make(sources=rows, shards=((i,), processes), threads=i % 3 + 1)
            for i in range(processes)
        ]
        for part in parts:
            part.set_state(state)
        batches = [take(part, steps) for part in parts]
        for step in range(steps):
            found.append([row for part in batches for row in part[step].info])
        states = [json.loads(json.dumps(part.get_state())) for part in parts]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert found == [batch.info for batch in whole]
    names = [row["id"] for batch in found for row in batch]
    for epoch in range(3):
        seen = names[40 * epoch : 40 * (epoch + 1)]
        assert sorted(seen) == sorted(f"a{i}" for i in range(40))


def test_a_state_of_another_order_is_refused() -> None:
    state = make().get_state()
    for changes in ({"seed": 6}, {"batch": 16}):
        with pytest.raises(UserError, match=next(iter(changes))):
            make(**changes).set_state(state)


def test_epochs_lose_and_repeat_nothing_and_differ_in_order() -> None:
    found = ids(take(make(sources=[(Source("a", 12), 1.0)], batch=4), 6))
    epochs = [found[:12], found[12:]]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"a{i}" for i in range(12))
    assert epochs[0] != epochs[1]
    assert epochs[0] != [f"a{i}" for i in range(12)]


def test_mixture_weights_hold_over_every_window() -> None:
    weighted = [(Source("a", 12), 0.58), (Source("b", 5), 0.42)]
    found = ids(take(make(sources=weighted), 15))
    for start in (0, 13, 50, 70):  # of 29 + 21
        counts = collections.Counter(name[0] for name in found[start : start + 50])
        assert counts == {"a": 29, "b": 21}


def test_evaluation_is_one_pass_in_order_padded() -> None:
    pipeline = make(train=False, windows=2)
    assert pipeline.steps == 5
    found = list(pipeline)
    expected = [f"a{i}" for i in range(12)] + [f"b{i}" for i in range(5)]
    assert ids(found) == [name for name in expected for _ in range(2)]
    assert [i["window"] for b in found for i in b.info] == [0, 1] * 17
    last = found[-1]
    assert len(last.info) == 2
    assert last.raw.present["audio"].tolist() == [True] * 2 + [False] * 6
    assert not np.asarray(last.raw.media["audio"])[2:].any()
    assert_same(list(pipeline), found)  # again from the start
    assert pipeline.seen == 68


def test_evaluation_parts_concatenate_too() -> None:
    found = list(make(train=False))
    parts = [list(make(train=False, shards=((i,), 2))) for i in range(2)]
    assert [len(part) for part in parts] == [len(found)] * 2
    for whole, one, two in zip(found, *parts, strict=True):
        assert one.info + two.info == whole.info


def test_faults_are_counted_and_a_set_fraction_stops_the_run() -> None:
    pool = SlowPool(fault_every=5)  # 3 of 12 and 1 of 5 records
    some = make(pool=pool, max_fault_fraction=0.5, train=False)
    batches = list(some)
    assert some.faults == {"crash": 4}
    # By source, with the first files: 0, 5 and 10 of the first, 0 of the second.
    assert [met.counts["crash"] for met in some.met] == [3, 1]
    assert some.met[0].files == {"crash": ["a0.mp4", "a5.mp4", "a10.mp4"]}
    assert some.met[1].files == {"crash": ["b0.mp4"]}
    assert some.seen == 17
    present = np.concatenate([b.raw.present["audio"] for b in batches])
    assert present.sum() == 13
    with pytest.raises(UserError, match="max_fault_fraction") as caught:
        take(make(pool=SlowPool(fault_every=3), max_fault_fraction=0.2, batch=40), 8)
    assert "crash" in str(caught.value)


def test_arguments_are_checked() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch": 9, "shards": ((0,), 2)}, "divisible"),
        ({"shards": ((2,), 2)}, "shards"),
        ({"sources": [(Source("a", 3), 0.0)]}, "weights"),
    ]
    for options, match in cases:
        with pytest.raises(ValueError, match=match):
            make(**options)


def test_grain_needs_no_parsed_flags_of_the_user() -> None:
    import subprocess
    import sys

    code = (
        "from mmssl.data.pipeline import Pipeline\n"
        "from mmssl.data.records import Record\n"
        "from mmssl.data.views import View\n"
        "class Pool: workers = 1\n"
        "source = [Record(id=str(i)) for i in range(4)]\n"
        "view = View(Pool(), audio={}, train=True)\n"
        "p = Pipeline([(source, 1.0)], view, batch=2, seed=0, train=True)\n"
        "print(len(next(p).info))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["2"]


@pytest.fixture
def sharding() -> jax.sharding.NamedSharding:
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("to_device")]


def test_batches_reach_the_devices_with_their_positions(sharding) -> None:
    expected = take(make(), 4)
    stream = device.to_device(make(), sharding)
    with jax.transfer_guard("disallow"):
        found = list(itertools.islice(stream, 4))
    stream.close()
    assert threads() == []
    assert [b.state and b.state["step"] for b in found] == [1, 2, 3, 4]
    for got, wanted in zip(found, expected, strict=True):
        assert got.info == wanted.info
        assert got.wait_seconds >= 0
        assert got.raw.media["audio"].sharding == sharding
        np.testing.assert_array_equal(
            jax.device_get(got.raw.media["audio"]), wanted.raw.media["audio"]
        )


def test_an_evaluation_ends_and_errors_surface_in_the_consumer(sharding) -> None:
    found = list(device.to_device(make(train=False), sharding))
    assert [len(b.info) for b in found] == [8, 8, 1]

    def failing():
        yield from take(make(), 2)
        raise UserError("the disk is gone")

    stream = device.to_device(failing(), sharding)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(UserError, match="the disk is gone"):
        next(stream)
    assert threads() == []


def test_waiting_is_measured(sharding) -> None:
    def slow():
        for found in take(make(), 2):
            time.sleep(0.2)
            yield found

    waits = [b.wait_seconds for b in device.to_device(slow(), sharding)]
    assert min(waits) > 0.1
