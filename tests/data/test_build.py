"""Build: what goes in comes out, faults are counted, and no half dataset stays."""

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest

from mmssl import files
from mmssl.data import build, intake, manifest, records, sources, splits
from mmssl.data.faults import MediaFault
from mmssl.data.media import Probe
from mmssl.errors import UserError

# TFDS and protobuf 7 disagree about a deprecated method.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

# Runs without mmssl, with a poisoned one on the path: TFDS alone reads our datasets.
READER = """
import hashlib, json, sys
sys.modules["mmssl"] = None
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
rows = {}
for split in builder.info.splits:
    source = builder.as_data_source(split)
    for i in range(len(source)):
        row = source[i]
        rows[row["id"].decode()] = [
            split, hashlib.sha256(row["media"]).hexdigest(),
            [t.decode() for t in row["segments"]["text"]],
            row["labels"]["color"].decode(),
        ]
assert "tensorflow" not in sys.modules
print(json.dumps(rows))
"""


class NoDecode:
    """A pool that vouches for everything, where decoding is not the matter."""

    workers = 2

    def probe(self, src, *, full):
        assert full
        return Probe(duration=2.0, video={"frames": 1}, audio=None)


def make(tmp_path, rows=3, **kwargs):
    for i in range(rows):
        (tmp_path / f"{i}.mp4").write_bytes(b"media %d" % i)
    out = tmp_path / "out" / "ds"
    kwargs = {"folder": tmp_path, "out": out, "pool": NoDecode()} | kwargs
    return out, build.build(**kwargs)


def nothing_left(out):
    return not out.exists() and not any(out.parent.glob(".*"))


def test_plain_tfds_reads_it_without_mmssl(mixed_manifest, tmp_path):
    out, halves = tmp_path / "ds", {"train": 0.7, "test": 0.3}
    report = build.build(manifest=mixed_manifest, out=out, splits=halves, shard_rows=4)
    assert report.shards > 3
    run = subprocess.run(
        [sys.executable, "-c", READER, str(out)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    source = {row.id: row for row in manifest.read_manifest(mixed_manifest).rows}
    assert set(got) == set(source) - {"gone", "garbage", "empty", "cut", "folder"}
    assert len(got) == report.used
    for id, (split, digest, texts, color) in got.items():
        row = source[id]
        media = row.path.read_bytes() if row.path else b""
        assert digest == hashlib.sha256(media).hexdigest()
        assert split == splits.split_of(id, halves)
        assert texts == [segment.text for segment in row.segments]
        assert color == row.labels.get("color", "")


def test_report(mixed_dataset):
    out, report = mixed_dataset
    stored = json.loads((out / "build_report.json").read_text())
    assert stored == dataclasses.asdict(report)
    assert (report.rows, report.used) == (18, 13)
    assert report.used + sum(report.faults.values()) == report.rows
    by_file = {f: name for name, files in report.files.items() for f in files}
    assert by_file.pop("media/cut.mp4") in ("unreadable", "corrupt", "no_frames")
    assert by_file == {
        "media/gone.mp4": "missing",
        "media": "missing",
        "media/garbage.mp4": "unreadable",
        "media/empty.mp4": "empty",
    }
    assert "No such file" in report.details["media/gone.mp4"][0]
    assert report.modalities == {"video": 12, "audio": 11, "text": 12}
    assert sum(report.splits.values()) == 13
    assert report.duration_seconds == pytest.approx(12 * 2.4, rel=0.05)
    assert sum(report.labels["shape"].values()) == 12
    assert report.partial == {}


def test_records_carry_probe_and_swap(mixed_dataset):
    out, _ = mixed_dataset
    source = sources.open_dataset(out, "train")
    for record in (source[i] for i in range(len(source))):
        if record.media:
            assert record.meta["probe"]["video"]["frames"] == 30
            assert record.meta["swapped"] in ("", "text", "audio")
        assert set(record.labels) == {"color", "motion", "shape"}


def test_metadata_hashes_every_file(mixed_dataset):
    out, report = mixed_dataset
    metadata = records.read_metadata(out)
    assert metadata["splits"] == report.splits
    names = {path.name for path in out.iterdir()}
    own = {"mmssl.json", "build_report.json", "outcomes"}
    assert names == {*metadata["files"], *own}
    for name, facts in metadata["files"].items():
        content = (out / name).read_bytes()
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
        assert facts["bytes"] == len(content)


@pytest.mark.parametrize("rows", [1, 3])
def test_tiny_datasets_open(tmp_path, rows):
    out, report = make(tmp_path, rows, splits={"one": 1.0})
    assert report.splits == {"one": rows}
    source = sources.open_dataset(out, "one")
    got = {source[i].media for i in range(len(source))}
    assert got == {b"media %d" % i for i in range(rows)}


def test_a_split_without_rows_is_reported_and_not_written(tmp_path):
    _, report = make(tmp_path, 1, splits={"a": 1e-7, "b": 1 - 1e-7})
    assert report.splits == {"a": 0, "b": 1}


def test_a_group_is_on_one_side_and_copies_on_both_are_told(tmp_path):
    halves = {"train": 0.5, "test": 0.5}
    (tmp_path / "m.mp4").write_bytes(b"one recording")
    rows = [{"id": id, "media": "m.mp4"} for id in "abcdefgh"]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = make(tmp_path, 0, folder=None, manifest=path, splits=halves)
    sides = {"train": ["b", "c", "d", "e", "f", "h"], "test": ["a", "g"]}
    assert report.leaks == [{name: sides[name] for name in report.leaks[0]}]

    rows = [row | {"group": "recording"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "grouped"
    _, report = make(tmp_path, 0, folder=None, manifest=path, splits=halves, out=out)
    side = splits.split_of("recording", halves)
    assert (report.splits[side], report.leaks) == (8, [])
    assert sources.open_dataset(out, side)[0].meta["group"] == "recording"


def test_the_same_input_gives_the_same_files(tmp_path):
    out, _ = make(tmp_path, 20)
    other, _ = make(tmp_path, 20, out=tmp_path / "again" / "ds")
    assert records.read_metadata(out) == records.read_metadata(other)


def test_partial_faults_are_kept_apart(tmp_path):
    class Half(NoDecode):
        def probe(self, src, *, full):
            if src == b"media 0":
                raise MediaFault("crash", "signal 11")
            return Probe(1.0, {"frames": 1}, None, {"audio": "corrupt"})

    (tmp_path / "1.srt").write_text("--> nonsense")
    _, report = make(tmp_path, 3, pool=Half())
    assert (report.faults, report.files) == ({"crash": 1}, {"crash": ["0.mp4"]})
    assert report.partial == {"audio_corrupt": 2, "caption": 1}
    assert report.partial_files["caption"] == ["1.mp4"]
    assert report.modalities == {"video": 2, "audio": 0, "text": 0}
    assert report.used == 2


def test_progress_counts_up_to_the_rows(tmp_path):
    calls = []
    make(tmp_path, 4, progress=lambda *args: calls.append(args))
    assert calls == [(i + 1, 4, "decoding") for i in range(4)]


def test_no_usable_row(tmp_path):
    class Bad(NoDecode):
        def probe(self, src, *, full):
            raise MediaFault("unreadable", "moov atom not found")

    with pytest.raises(UserError, match=r"none of its 3 rows.*3 unreadable.*0.mp4: un"):
        make(tmp_path, 3, pool=Bad())
    assert nothing_left(tmp_path / "out" / "ds")


def test_the_bytes_that_were_decoded_are_those_that_are_stored(tmp_path):
    class Careless(NoDecode):
        def probe(self, src, *, full):
            for path in tmp_path.glob("*.mp4"):
                path.write_bytes(b"another")
            return super().probe(src, full=full)

    out, _ = make(tmp_path, 1, pool=Careless(), splits={"all_of_it": 1.0})
    record = sources.open_dataset(out, "all_of_it")[0]
    assert record.media == b"media 0"
    assert record.meta["sha256"] == hashlib.sha256(record.media).hexdigest()


def test_pipes_and_huge_files_are_faults(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.setattr(intake, "MAX_MEDIA_BYTES", 10)
    path = tmp_path / "m.jsonl"
    (tmp_path / "big.mp4").write_bytes(bytes(11))
    rows = [{"media": "pipe.mp4"}, {"media": "big.mp4"}, {"id": "t", "text": "t"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = make(tmp_path, 0, folder=None, manifest=path)
    assert report.files == {"missing": ["pipe.mp4"], "too_large": ["big.mp4"]}


def test_existing_folders(tmp_path):
    out, _ = make(tmp_path, 1)
    before = (out / "mmssl.json").read_bytes()
    with pytest.raises(UserError, match="already there and not empty; choose another"):
        make(tmp_path, 2)
    assert (out / "mmssl.json").read_bytes() == before
    _, report = make(tmp_path, 2, overwrite=True)
    assert report.used == 2
    assert records.read_metadata(out)["splits"] == report.splits

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"no mmssl.json, so mmssl did not write it"):
        make(tmp_path, 1, out=foreign, overwrite=True)
    assert (foreign / "thesis.tex").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder to write, found a file"):
        make(tmp_path, 1, out=tmp_path / "file")
    with pytest.raises(UserError, match="a part of the path is a file"):
        make(tmp_path, 1, out=tmp_path / "file" / "ds")
    (tmp_path / "empty").mkdir()
    assert make(tmp_path, 1, out=tmp_path / "empty")[1].used > 0


@pytest.mark.parametrize("when", ["opening shards", "in C++"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, when):
    def full(*args, **kwargs):
        if when == "in C++":
            raise RuntimeError("write() failed: No space left on device; writing ...")
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = "array_record.python.array_record_module.ArrayRecordWriter"
    monkeypatch.setattr(writer, full)
    with pytest.raises(UserError, match=r"the disk is full.*nothing half-written"):
        make(tmp_path, 2)
    assert nothing_left(tmp_path / "out" / "ds")


def test_a_disk_with_too_little_room_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 3)
    with pytest.raises(UserError, match="the disk is too full: the dataset needs"):
        make(tmp_path, 1)
    assert nothing_left(tmp_path / "out" / "ds")


def test_a_kill_leaves_nothing_whole_and_the_next_build_cleans_up(tmp_path):
    out = tmp_path / "out" / "ds"
    code = (
        "import time, sys; from mmssl import files\n"
        "with files.whole_folder(sys.argv[1], marker='m') as new:\n"
        "    (new / 'half').write_text('x'); print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with (
            pytest.raises(UserError, match="another process is writing it now"),
            files.whole_folder(out, marker="m"),
        ):
            pass
        process.kill()
    assert not out.exists()
    assert make(tmp_path, 1)[1].used == 1
    assert not any(out.parent.glob(".*"))


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="exactly one of manifest, folder and tars"):
        build.build(out=tmp_path / "x")
    with pytest.raises(UserError, match="must sum to 1"):
        make(tmp_path, 1, splits={"train": 0.5})
    assert not (tmp_path / "out").exists()


def test_stated_splits_and_coverage_are_kept(tmp_path):
    (tmp_path / "m.mp4").write_bytes(b"media")
    rows = [
        {"id": "a", "media": "m.mp4", "split": "validation"},
        {"id": "b", "text": "t", "split": "test"},
        {"dataset": {"coverage": {"test": {"listed": 9, "found": 1}}}},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, report = make(tmp_path, 0, folder=None, manifest=path)
    assert report.splits == {"test": 1, "validation": 1}
    assert sources.open_dataset(out, "validation")[0].id == "a"
    assert records.read_metadata(out)["dataset"] == report.dataset == rows[2]["dataset"]

    assert records.coverage(out, "test") == {"listed": 9, "found": 1}
    assert records.coverage(out, "validation") is None

    rows += [{"id": f"c{i}", "text": "t"} for i in range(20)]  # these are drawn
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = make(tmp_path, 0, folder=None, manifest=path, out=tmp_path / "more")
    assert list(report.splits) == ["train", "test", "validation"]
    assert (sum(report.splits.values()), report.splits["validation"]) == (22, 1)
