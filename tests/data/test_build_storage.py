"""Builds from tar files, and builds that store media anew."""

import json

import pytest

from mmssl.data import build, media, sources, tars, validate
from mmssl.data.pool import DecodePool
from mmssl.data.storage import Storage
from tests.data import media_files
from tests.data.test_tars import special, write

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

TALK = media_files.encode(times=[i / 10 for i in range(50)], wave=media_files.tone(5.0))


@pytest.fixture(scope="module")
def pool():
    with DecodePool(1) as pool:
        yield pool


def rows(out, split="train"):
    source = sources.open_dataset(out, split)
    return {source[i].id: source[i] for i in range(len(source))}


def test_tar_files_to_a_dataset(tmp_path, pool):
    write(
        tmp_path / "0.tar",
        {
            "a.mp4": TALK,
            "a.txt": b"said of a",
            "b.mp4": b"garbage" * 100,
            "c.mp4": special("c.mp4", b"2", "/etc/passwd"),
            "d.pickle": b"x",
        },
    )
    (tmp_path / "1.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:2000])
    report = build.build(
        tars=[f"{tmp_path}/*.tar"], out=tmp_path / "ds", splits={"train": 1}, pool=pool
    )
    assert report.used == 1
    assert report.faults == {"forbidden": 1, "unreadable": 3}
    name = f"{tmp_path}/0.tar!/"
    assert report.files["forbidden"] == [name + "c.mp4"]
    assert name + "b.mp4" in report.files["unreadable"]
    found = rows(tmp_path / "ds")["0/a"]
    assert found.media == TALK
    assert found.segments[0].text == "said of a"


def test_a_manifest_may_name_members_of_tar_files(tmp_path, pool):
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards/0.tar", {"x/a.mp4": TALK})
    lines = [
        {"id": "in", "media": "shards/0.tar!/x/a.mp4", "text": "t"},
        {"id": "gone", "media": "shards/0.tar!/x/b.mp4"},
        {"id": "out", "media": "shards/0.tar!/../a.mp4"},
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "ds"
    report = build.build(manifest=manifest, out=out, splits={"train": 1}, pool=pool)
    assert report.faults == {"missing": 2}
    assert rows(out)["in"].media == TALK


def test_long_media_are_cut_with_their_text(tmp_path, pool):
    (tmp_path / "talk.mp4").write_bytes(TALK)
    line = {
        "id": "talk",
        "media": "talk.mp4",
        "text": "the title",
        "segments": [[0.2, 1.2, "one"], [2.2, 3.0, "two"], [4.5, 4.9, "three"]],
        "words": [[0.2, 0.5, "on"], [1.9, 2.3, "tw"], [4.5, 4.9, "three"]],
        "labels": {"topic": "grey"},
        "meta": {"of": "mine"},
    }
    text = {"id": "words", "text": "no media"}
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps(line) + "\n" + json.dumps(text) + "\n")
    out = tmp_path / "ds"
    report = build.build(
        manifest=manifest,
        out=out,
        splits={"train": 1},
        pool=pool,
        storage=Storage("h264", fps=5, audio_rate=16000, segment=2),
    )
    assert (report.rows, report.used, report.splits) == (2, 2, {"train": 4})
    found = rows(out)
    assert sorted(found) == ["talk#0000", "talk#0001", "talk#0002", "words"]
    parts = [found[f"talk#000{n}"] for n in range(3)]
    said = [[(round(s.start, 3), s.text) for s in p.segments if s.timed] for p in parts]
    assert said == [[(0.2, "one")], [(0.2, "two")], [(0.5, "three")]]
    assert all(p.segments[0].text == "the title" for p in parts)
    assert [[w.word for w in p.words] for p in parts] == [["on"], ["tw"], ["three"]]
    for number, part in enumerate(parts):
        assert part.labels == {"topic": "grey"}
        assert part.meta["of"] == "mine"
        assert part.meta["source"]["start"] == 2 * number
        assert part.meta["probe"]["video"]["fps"] == pytest.approx(5, rel=1e-3)
        seen = media.decode_video(part.media, [0.0, 0.4])
        wanted = [20 * number, 20 * number + 4]
        assert [media_files.index_of(f) for f in seen] == [i % 28 for i in wanted]
    metadata = json.loads((out / "mmssl.json").read_text())
    assert metadata["storage"]["kind"] == "h264"
    checked = validate.validate(out, workers=1)
    assert checked["ok"], checked["details"]
    assert checked["media_decoded"] == 3


def test_the_command(tmp_path, capsys):
    from mmssl import cli

    write(tmp_path / "s.tar", {f"{i}.mp4": TALK for i in range(2)})
    out = tmp_path / "ds"
    arguments = ["data", "build", "--tar", f"{tmp_path}/s.tar", "--out", str(out)]
    arguments += ["--store", "jpeg", "--short-side", "32", "--fps", "5"]
    arguments += ["--runner", "none", "--limits", "duration=60,seconds=20"]
    assert cli.main([*arguments, "--splits", "train=1", "--workers", "1"]) == 0
    found = rows(out)
    assert sorted(found) == ["s/0", "s/1"]  # not cut: as many, under their own names
    assert found["s/0"].meta["probe"]["video"]["height"] == 32
    assert found["s/0"].media[:4] == b"\x1a\x45\xdf\xa3"  # plain Matroska
    assert cli.main([*arguments[:6], "--fps", "5"]) == 2
    assert "choose 'h264' or 'jpeg'" in capsys.readouterr().err
    for limits in ("durations=60", "duration=0", "duration=x"):
        with pytest.raises(SystemExit):
            cli.main([*arguments[:6], "--limits", limits])
    assert "did you mean 'duration'?" in capsys.readouterr().err


def test_scans_know_places(tmp_path):
    shard = write(tmp_path / "s.tar", {"a.mp4": TALK})
    [row] = tars.scan([shard]).rows
    assert row.place is not None
    assert row.place[1] == len(TALK)
