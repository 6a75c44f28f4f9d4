"""Validate finds what was broken on purpose, and names it."""

import io
import json
import pathlib
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from mmssl.data import build, records, shards, validate
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from tests.data import media_files

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


@pytest.fixture
def dataset(mixed_dataset, tmp_path):
    """A copy to break."""
    return shutil.copytree(mixed_dataset[0], tmp_path / "ds")


def written(tmp_path, rows):
    """A dataset of these records, past the checks of a build."""
    from mmssl.data import builder

    out = builder.prepare(
        str(tmp_path / "x"),
        label_columns=("a",),
        work=lambda runner, options: {"train": [len(rows)]},
    )
    builder.write_shard(out / shards.file_name("train", 0), rows, ("a",))
    metadata = {"schema_version": 1, "label_columns": ["a"]}
    metadata |= {"splits": {"train": len(rows)}, "files": build.file_hashes(out)}
    (out / records.METADATA_FILE).write_text(json.dumps(metadata))
    return out


def test_a_good_dataset(mixed_dataset):
    out, report = mixed_dataset
    calls = []
    found = validate.validate(out, progress=lambda *args: calls.append(args))
    assert found["ok"], found["details"]
    assert found["rows"] == report.used == len(calls)
    assert found["media_decoded"] == 12
    assert found["splits"] == report.splits
    assert found["faults"] == {}
    assert found["warnings"] == {"empty_text": 1, "no_media": 1}
    assert found["warning_ids"]["no_media"] == ["said"]


@pytest.mark.parametrize(("media", "least", "most"), [(0, 0, 0), (4, 3, 6)])
def test_a_sample_of_the_media(mixed_dataset, media, least, most):
    found = validate.validate(mixed_dataset[0], media=media)
    assert least <= found["media_decoded"] <= most
    assert found["rows"] == 13


def test_fewer_than_no_media(mixed_dataset):
    with pytest.raises(ValueError, match="media must be at least 0"):
        validate.validate(mixed_dataset[0], media=-5)


def test_a_tokenizer_beside_the_shards_is_no_surprise(dataset):
    (dataset / "tokenizer.model").touch()
    (dataset / "notes.txt").touch()
    found = validate.validate(dataset, media=0)
    assert found["ok"]
    assert found["warning_ids"]["unknown_file"] == ["notes.txt"]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_flipped_byte_names_its_shard(dataset, share):
    [shard] = dataset.glob("*-train.*")
    content = bytearray(shard.read_bytes())
    content[int(share * len(content))] ^= 0x10
    shard.write_bytes(content)
    found = validate.validate(dataset, media=0)
    assert not found["ok"]
    assert found["ids"]["file_changed"] == [shard.name]
    assert found["ids"]["split_unreadable"] == ["train"]
    assert found["rows"] == found["splits"]["test"]


def test_a_truncated_and_a_missing_shard(dataset):
    [train] = dataset.glob("*-train.*")
    [test] = dataset.glob("*-test.*")
    train.write_bytes(train.read_bytes()[:-1000])
    test.unlink()
    found = validate.validate(dataset, media=0)
    assert found["ids"]["file_changed"] == [train.name]
    assert found["ids"]["file_missing"] == [test.name]
    assert found["ids"]["split_unreadable"] == ["train", "test"]
    assert found["rows"] == 0
    assert any(str(train.stat().st_size) in line for line in found["details"])


def test_what_records_may_have_wrong(tmp_path):
    nan = float("nan")
    good = records.Record(
        id="good",
        labels={"a": ""},
        segments=(records.Segment(nan, nan, "t"), records.Segment(1, 1, "t")),
    )
    rows = [
        good,
        records.Record(id="late", labels={"a": ""}, words=(records.Word(2, 1, "w"),)),
        records.Record(
            id="half", labels={"a": ""}, segments=(records.Segment(nan, 1, "t"),)
        ),
        records.Record(id="junk", labels={"a": ""}, media=b"no media at all"),
        records.Record(id="junk2", labels={"a": ""}, media=b"no media at all"),
    ]
    found = validate.validate(written(tmp_path, rows))
    assert sorted(found["ids"]["times"]) == ["half", "late"]
    assert sorted(found["ids"]["media"]) == ["junk", "junk2"]
    assert found["faults"] == {"times": 2, "media": 2}
    assert found["warnings"]["duplicate_media"] == 1
    assert any("unreadable" in line for line in found["details"])


def clip(id, **options):
    """A record of a file of 2 s with sound and pictures, unless options say else."""
    options = {
        "times": [i / 10 for i in range(20)],
        "wave": media_files.tone(2.0),
        "format": "matroska",
        "audio_codec": "flac",
        **options,
    }
    segments = (records.Segment(0.0, 1.0, id),)
    media = media_files.encode(**options)
    return records.Record(id=id, labels={"a": ""}, media=media, segments=segments)


def test_what_decodes_and_is_odd(tmp_path, monkeypatch):
    times = [i / 10 for i in range(20)]
    black = [np.full((48, 64, 3), 5, np.uint8)] * 20
    rows = [
        clip("good"),
        clip("also good", times=()),
        clip("deaf", wave=np.zeros(32000, np.float32)),
        clip("dark", images=black, times=times),
        clip("shorter sound", wave=media_files.tone(0.9)),
        clip("later sound", wave_start=1.2),
        clip("just apart", wave=media_files.tone(1.05)),
        clip("long", times=[float(i) for i in range(25)], wave=None),
        clip("short", times=[0.0, 0.1, 0.2, 0.3], wave=None),
    ]
    out = written(tmp_path, rows)
    calls = []
    real = DecodePool.probe
    monkeypatch.setattr(
        DecodePool, "probe", lambda *args, **k: calls.append(0) or real(*args, **k)
    )
    found = validate.validate(out, workers=1)
    assert found["ok"]
    assert len(calls) == len(rows)  # nothing is decoded twice
    assert {name: sorted(ids) for name, ids in found["warning_ids"].items()} == {
        "silent_audio": ["deaf"],
        "black_video": ["dark"],
        "apart": ["later sound", "shorter sound"],
        "duration": ["long"],
    }
    [line] = [line for line in found["details"] if "long: duration" in line]
    assert "s, the median is 2.0" in line


def test_sound_that_runs_away_from_its_stamps(tmp_path):
    box = io.BytesIO()
    with av.open(box, "w", format="matroska") as out:
        stream = out.add_stream("flac", rate=16000, layout="mono")
        for i in range(40):  # 2.048 s of samples, stamped 10% too slowly
            wave = media_files.tone(0.0512)[None]
            frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = round(i * 1000 * 0.0512 * 1.1)
                packet.time_base = Fraction(1, 1000)
                out.mux(packet)
    record = records.Record(id="slow", labels={"a": ""}, media=box.getvalue())
    found = validate.validate(written(tmp_path, [record]), workers=1)
    assert found["warning_ids"]["drift"] == ["slow"]
    assert any("0.20 s at the end" in line for line in found["details"])


def test_the_command_lists_what_the_build_left_out(dataset, tmp_path, capsys):
    from mmssl import cli

    assert cli.main(["data", "validate", str(dataset), "--media", "0"]) == 0
    shown = capsys.readouterr().out
    assert "left out by the build" in shown
    assert "media/garbage.mp4" in shown
    [shard] = dataset.glob("*-train.*")
    shard.write_bytes(shard.read_bytes()[:-1])
    full = str(tmp_path / "all.json")
    arguments = ["data", "validate", str(dataset), "--media", "0", "--json", full]
    assert cli.main(arguments) == 1
    found = json.loads(pathlib.Path(full).read_text())
    assert found["ids"]["file_changed"] == [shard.name]
    assert "media/empty.mp4" in found["left_out"]["empty"]


def test_an_id_twice_and_lost_labels(tmp_path, monkeypatch):
    rows = [records.Record(id=id, labels={"a": "x"}) for id in "ab"]
    out = written(tmp_path, rows)
    real = records.from_example
    monkeypatch.setattr(
        records, "from_example", lambda e: real(e | {"id": b"a", "labels": {}})
    )
    found = validate.validate(out)
    assert found["ids"]["duplicate_id"] == ["a"]
    assert found["faults"]["labels"] == 2


def test_lost_rows_and_unparsable_records(dataset, monkeypatch):
    metadata = json.loads((dataset / "mmssl.json").read_text())
    metadata["splits"]["train"] += 1
    (dataset / "mmssl.json").write_text(json.dumps(metadata))
    real = records.from_example

    def parse(example):
        if example["id"] == b"said":
            raise KeyError("segments")
        return real(example)

    monkeypatch.setattr(records, "from_example", parse)
    found = validate.validate(dataset, media=0)
    assert found["ids"]["rows_missing"] == ["train"]
    assert found["faults"]["record"] == 1
    assert found["rows"] == 12


def test_not_a_dataset(tmp_path):
    with pytest.raises(UserError, match="not a dataset of mmssl"):
        validate.validate(tmp_path)
    (tmp_path / "mmssl.json").write_text('{"schema_version": 0}')
    with pytest.raises(UserError, match="schema version 0, expected 1"):
        validate.validate(tmp_path)
