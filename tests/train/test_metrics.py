"""Writers: one JSON object a line, no duplicate steps after a resume."""

import errno
import json
import pathlib
import sys

import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.train.metrics import EventLog, JsonlWriter, TensorBoardWriter, Writers


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_are_json_and_not_finite_is_null(tmp_path):
    writer = JsonlWriter(tmp_path / "new" / "metrics.jsonl")
    writer.write(3, {"loss": float("nan"), "b": np.float32(0.5), "a": float("inf")})
    text = (tmp_path / "new" / "metrics.jsonl").read_text()  # no flush, no close
    row = json.loads(text, parse_constant=pytest.fail)
    assert row.pop("time") > 0
    assert row == {"step": 3, "a": None, "b": 0.5, "loss": None}
    assert list(row) == ["step", "a", "b", "loss"]
    writer.close()


def test_truncate_drops_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in range(1, 7):
        writer.write(step, {"loss": step})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 7, "lo')
    writer = JsonlWriter(path)
    writer.truncate(4)
    assert steps(path) == [1, 2, 3, 4]
    writer.write(5, {"loss": 0.0})
    writer.close()
    assert steps(path) == [1, 2, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_appending_after_a_torn_line_starts_a_new_one(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start", "step": 0}\n{"event": "re')
    log = EventLog(path)
    log.write("resume", step=2, detail={"x": [float("nan")]})
    log.close()
    assert steps(path) == [0, 2]


def test_full_disk_is_a_user_error():
    writer = JsonlWriter("/dev/full")
    with pytest.raises(UserError, match=r"/dev/full: No space left.*free disk space"):
        writer.write(1, {"loss": 0.0})
    writer.close()


def test_a_full_disk_on_going_back_is_a_user_error_and_loses_no_row(
    tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (1, 2):
        writer.write(step, {"loss": 0.0})
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"metrics.jsonl: No space left.*free disk"):
        writer.truncate(1)
    assert steps(path) == [1, 2]


def test_bytes_that_are_no_text_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00\n{"step": 2}\n')
    JsonlWriter(path).truncate(9)
    assert steps(path) == [1, 2]


def test_tensorboard_rows_and_purge(tmp_path):
    tensorboard = TensorBoardWriter(tmp_path / "tb")
    writers = Writers([JsonlWriter(tmp_path / "metrics.jsonl"), tensorboard])
    writers.write(1, {"loss": 2.0})
    writers.write(2, {"loss": 1.0})
    writers.truncate(1)
    writers.write(2, {"loss": 1.5})
    writers.flush()
    writers.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2]
    assert sum(p.stat().st_size for p in (tmp_path / "tb").iterdir()) > 100


def test_missing_tensorboard_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"log\.tensorboard=False"):
        TensorBoardWriter(tmp_path)
