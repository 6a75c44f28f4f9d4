"""Builds that go on: after a failure, over a grown manifest, into a bucket."""

import dataclasses
import json
import os
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mmssl import cli, files
from mmssl.data import build, records, shards, sources, stores
from mmssl.data import manifest as manifest_lib
from mmssl.data.faults import Limits
from mmssl.data.media import Probe
from mmssl.data.storage import Storage
from mmssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

ROWS = 40


class Pool:
    """Vouches for everything, remembers what it saw, may break off."""

    workers = 2

    def __init__(self, most=10**6):
        self.seen: list[bytes] = []
        self._most = most

    def probe(self, src, *, full):
        if len(self.seen) == self._most:
            raise KeyboardInterrupt
        self.seen.append(src)
        return Probe(duration=2.0, video={"frames": 1}, audio=None)


def world(root, count=ROWS):
    """A manifest of files that are told apart by their content."""
    root.mkdir(exist_ok=True)
    rows = [
        {"id": f"{i}", "media": f"{i}.mp4", "labels": {"c": "x"}} for i in range(count)
    ]
    for i in range(count):
        (root / f"{i}.mp4").write_bytes(b"media %d" % i)
    path = root / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(manifest: Any, out: Any, pool: Any = None, **kwargs: Any) -> Any:
    pool = pool or Pool()
    return build.build(manifest=manifest, out=out, pool=pool, shard_rows=4, **kwargs)


def content(folder):
    """Every file but the report, whose time is its own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != records.REPORT_FILE
    }


def facts(report):
    return dataclasses.asdict(report) | {"seconds": None}


def media(out):
    """Of all rows of all splits."""
    splits = [s for s, n in records.read_metadata(out)["splits"].items() if n]
    data = [sources.open_dataset(out, split) for split in splits]
    return sorted(rows[i].media for rows in data for i in range(len(rows)))


def test_a_build_goes_on_where_it_ended(tmp_path):
    manifest = world(tmp_path / "in")
    clean = run(manifest, tmp_path / "clean")
    assert clean.shards > 8

    out, first = tmp_path / "out", Pool(most=17)
    with pytest.raises(KeyboardInterrupt):
        run(manifest, out, first)
    assert not out.exists()
    finished = list((tmp_path / ".out.partial/new/outcomes").iterdir())
    (tmp_path / ".out.partial/new/.partial-x").mkdir()  # as a kill leaves them
    calls, second = [], Pool()
    report = run(manifest, out, second, progress=lambda *x: calls.append(x))
    done = sum(
        len(json.loads((out / "outcomes" / p.name).read_text())["rows"])
        for p in finished
    )
    assert 0 < done <= 17
    assert len(second.seen) == ROWS - done
    assert calls[0][0] == done
    assert f"{len(finished)} of {clean.shards} shards" in calls[0][2]
    assert calls[-1][:2] == (ROWS, ROWS)
    assert content(out) == content(tmp_path / "clean")
    assert facts(report) == facts(clean)
    assert not any(tmp_path.glob(".*"))


def test_another_manifest_redoes_only_what_it_changes(tmp_path):
    manifest = world(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        run(manifest, tmp_path / "out", Pool(most=30))
    lines = manifest.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    manifest.write_text("".join(json.dumps(r) + "\n" for r in rows[1:]))
    pool = Pool()
    run(manifest, tmp_path / "out", pool)
    assert 9 <= len(pool.seen) < 25
    run(manifest, tmp_path / "clean")
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def test_a_manifest_that_changes_and_changes_back(tmp_path):
    manifest = world(tmp_path / "in")
    run(manifest, tmp_path / "clean")
    with pytest.raises(KeyboardInterrupt):
        run(manifest, tmp_path / "out", Pool(most=30))
    [first] = (tmp_path / ".out.partial/new/outcomes").glob("train-00000-*")
    id = json.loads(first.read_text())["rows"][0]["id"]
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(x for x in lines if json.loads(x)["id"] != id))
    with pytest.raises(KeyboardInterrupt):  # past the shard that lost a row
        run(manifest, tmp_path / "out", Pool(most=8))
    manifest.write_text("".join(lines))
    run(manifest, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def test_a_grown_manifest_adds_only_the_new(tmp_path):
    manifest, out = world(tmp_path / "in"), tmp_path / "out"
    lost = tmp_path / "in/7.mp4"
    lost.rename(tmp_path / "later")
    before = run(manifest, out, update=True)  # with nothing there: a first build
    assert before.faults == {"missing": 1}
    (out / "tokenizer.model").write_text("t")
    (out / "mine/deep").mkdir(parents=True)
    (out / "mine/deep/notes").write_text("n")
    (out / "mine/link").symlink_to("gone")
    (out / "latest").symlink_to("mine")
    half = tmp_path / ".out.partial/new/mine/deep"  # of an update that was killed
    half.mkdir(parents=True)
    (half / "notes").write_text("n")
    old = {p.name: p.stat().st_ino for p in out.glob("*.array_record-*")}

    world(tmp_path / "in", ROWS + 6)
    pool = Pool()
    report = run(manifest, out, pool, update=True)
    assert sorted(pool.seen) == sorted(b"media %d" % i for i in [7, *range(40, 46)])
    assert (report.used, report.faults, report.kept) == (46, {}, before.shards)
    now = {p.name: p.stat().st_ino for p in out.glob("*.array_record-*")}
    assert now.items() > old.items()
    assert (out / "tokenizer.model").read_text() == "t"
    assert (out / "latest/deep/notes").read_text() == "n"
    assert os.readlink(out / "latest") == "mine"
    assert os.readlink(out / "mine/link") == "gone"
    assert media(out) == sorted(b"media %d" % i for i in range(46))
    assert set(records.read_metadata(out)["files"]) > set(now)

    pool = Pool()
    again = run(manifest, out, pool, update=True)
    assert (pool.seen, again.used) == ([], 46)


def test_an_update_drops_what_the_manifest_no_longer_has(tmp_path):
    manifest, out = world(tmp_path / "in"), tmp_path / "out"
    run(manifest, out)
    lines = manifest.read_text().splitlines()
    changed = json.loads(lines[3]) | {"text": "now with words"}
    manifest.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[5:]]))
    pool = Pool()
    report = run(manifest, out, pool, update=True)
    assert len(pool.seen) <= 2 * 8
    assert (report.used, report.modalities["text"]) == (39, 1)
    assert media(out) == sorted(b"media %d" % i for i in range(40) if i != 4)
    files = {p.name for p in out.glob("*.array_record-*")}
    assert files <= set(records.read_metadata(out)["files"])

    (tmp_path / "in/m.jsonl").write_text('{"media": "0.mp4", "labels": {"d": "y"}}')
    with pytest.raises(UserError, match=r"label columns \(c\).*\(d\).*--overwrite"):
        run(manifest, out, update=True)
    other = {"storage": Storage("h264", short_side=256)}
    now = r"--store h264 --short-side 256"
    with pytest.raises(UserError, match=rf"storage \(--store original\).*\({now}\)"):
        run(manifest, out, update=True, **other)
    manifest.write_text(lines[0])
    with pytest.raises(UserError, match="with other limits than this build"):
        run(manifest, out, update=True, limits=Limits(seconds=1))
    assert report.used == sum(records.read_metadata(out)["splits"].values())


def test_an_update_keeps_no_shard_that_is_not_what_was_written(tmp_path):
    manifest, out = world(tmp_path / "in"), tmp_path / "out"
    clean = run(manifest, out)
    (secret := tmp_path / "secret").write_text("s")
    cut, lost, lies, *_ = sorted((out / "outcomes").glob("train-*"))
    outcome = json.loads(lies.read_text())
    outcome["file"] |= {"name": "../secret", "bytes": 1}
    lies.write_text(json.dumps(outcome))
    files = [json.loads(p.read_text())["file"]["name"] for p in (cut, lost)]
    os.truncate(out / files[0], 100)
    (out / files[1]).unlink()
    (out / "outcomes/.DS_Store").touch()
    report = run(manifest, out, update=True)
    assert (report.kept, report.used) == (clean.shards - 3, ROWS)
    assert media(out) == sorted(b"media %d" % i for i in range(ROWS))
    assert secret.stat().st_nlink == 1
    assert not any(tmp_path.glob(".out*"))


def test_an_update_counts_what_it_drops(tmp_path, capsys, monkeypatch):
    manifest, out = world(tmp_path / "in", 12), tmp_path / "out"
    run(manifest, out)
    lines = manifest.read_text().splitlines(keepends=True)
    changed = json.dumps(json.loads(lines[0]) | {"text": "the same clip"}) + "\n"
    manifest.write_text("".join([changed, *lines[1:9]]))
    report = run(manifest, out, update=True)
    assert (report.used, report.dropped) == (9, 3)
    monkeypatch.setattr(build, "build", lambda **given: report)
    cli.main(["data", "build", "--manifest", "m", "--out", "o", "--update"])
    assert "3 clips dropped: not in the manifest any more" in capsys.readouterr().out


def test_an_update_with_none_of_the_clips_is_refused(tmp_path):
    manifest, out = world(tmp_path / "in", 4), tmp_path / "out"
    run(manifest, out)
    before = content(out)
    world(tmp_path / "in", 6)
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[4:]))
    with pytest.raises(UserError, match=r"none of its 4 ids.*'0'.*--overwrite"):
        run(manifest, out, update=True)
    assert content(out) == before
    assert not any(tmp_path.glob(".*"))


def test_a_worker_that_outlives_its_build_keeps_off_the_next(tmp_path):
    rows = manifest_lib.read_manifest(world(tmp_path / "in", 8)).rows
    (root := tmp_path / "ds").mkdir()
    (root / records.OUTCOMES).mkdir()
    settings = shards.Settings(("c",))
    common = {"settings": settings, "most": 99, "taken": {}}
    [task] = shards.plan(root, rows, {"train": range(8)}, **common)

    class Next(Pool):
        """The next build plans and writes the shard while this one decodes."""

        workers = 1  # so that there is one next build

        def probe(self, src, *, full):
            if not self.seen:
                [other] = shards.plan(root, rows, {"train": range(4)}, **common)
                shards.write(root, other, settings=settings, pool=Pool())
            return super().probe(src, full=full)

    with pytest.raises(RuntimeError, match="another build has changed the plan"):
        shards.write(root, task, settings=settings, pool=Next())
    [name] = stores.names(root / records.OUTCOMES)
    file = json.loads((root / records.OUTCOMES / name).read_text())["file"]
    assert files.sha256(root / file["name"]) == file["sha256"]


def test_a_full_disk_at_the_end_keeps_the_work(tmp_path, monkeypatch):
    manifest, out = world(tmp_path / "in"), tmp_path / "out"

    def full(path, text):
        if path.name == records.METADATA_FILE:
            raise OSError(28, os.strerror(28))
        write(path, text)

    write = stores.write
    monkeypatch.setattr(stores, "write", full)
    with pytest.raises(UserError, match=r"disk is full.*the same command goes on"):
        run(manifest, out)
    monkeypatch.undo()
    pool = Pool()
    run(manifest, out, pool)
    assert pool.seen == []


class Bucket(MemoryFileSystem):
    """What an `s3://` driver does, in memory."""

    protocol = "s3"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        path = path.removeprefix("s3://").strip("/")
        return f"/{path}" if path else ""


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield fsspec.filesystem("s3")
    fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)


def test_from_a_bucket_into_a_bucket(tmp_path, bucket):
    local = world(tmp_path / "in")
    bucket.put(str(tmp_path / "in"), "s3://b/in", recursive=True)
    clean = run(local, tmp_path / "clean")
    manifest, out = "s3://b/in/m.jsonl", "s3://b/ds"
    bucket.pipe(f"{out}/plan.jsonl", b"{}")  # all that a kill left
    with pytest.raises(KeyboardInterrupt):
        run(manifest, out, Pool(most=17))
    assert not bucket.exists(f"{out}/mmssl.json")
    pool = Pool()
    report = run(manifest, out, pool)
    assert 0 < len(pool.seen) < ROWS
    assert facts(report) == facts(clean)
    bucket.get(out, str(tmp_path / "copy"), recursive=True)
    assert media(tmp_path / "copy") == media(tmp_path / "clean")
    # Rows are the same; where their media lay is in the outcomes alone.
    same = {k for k in content(tmp_path / "clean") if "array_record" in k}
    copied = content(tmp_path / "copy")
    assert {k: copied[k] for k in same} == {
        k: v for k, v in content(tmp_path / "clean").items() if k in same
    }
    assert not any("partial" in k or "plan" in k for k in copied)

    with pytest.raises(UserError, match="already there and not empty"):
        run(manifest, out)
    bucket.pipe("s3://b/in/40.mp4", b"media 40")
    row = {"id": "40", "media": "s3://b/in/40.mp4", "labels": {"c": "x"}}
    grown = tmp_path / "grown.jsonl"  # here, its media there
    lines = [json.loads(line) for line in local.read_text().splitlines()]
    rows = [line | {"media": f"s3://b/in/{line['media']}"} for line in lines]
    grown.write_text("".join(json.dumps(r) + "\n" for r in [*rows, row]))
    pool = Pool()
    report = run(grown, out, pool, update=True, splits={"train": 0.9, "test": 0.1})
    assert report.used == ROWS + 1

    older = json.loads(bucket.cat(f"{out}/mmssl.json"))
    del older["settings"]
    bucket.pipe(f"{out}/mmssl.json", json.dumps(older).encode())
    bucket.rm(f"{out}/outcomes", recursive=True)
    before = bucket.find(out)
    with pytest.raises(UserError, match="release that kept no outcomes"):
        run(grown, out, update=True)
    assert bucket.find(out) == before

    bucket.pipe("s3://b/foreign/x", b"")
    with pytest.raises(UserError, match="mmssl did not write it"):
        run(manifest, "s3://b/foreign")
    assert run(manifest, out, overwrite=True).used == ROWS


def test_a_bucket_without_its_driver_is_one_message(tmp_path):
    world(tmp_path / "in")
    with pytest.raises(UserError, match=r"pip install gcsfs"):
        run("gs://b/m.jsonl", tmp_path / "x")
    with pytest.raises(UserError, match=r"unknown storage 'ftp'"):
        run(tmp_path / "in/m.jsonl", "ftp://b/ds")
