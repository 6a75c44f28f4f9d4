"""Shards of media: read in place, and nothing outside them."""

import io
import json
import pathlib
import tarfile
from collections.abc import Mapping

import pytest

from mmssl.data import manifest, tars
from mmssl.data.faults import MediaFault
from mmssl.errors import UserError
from tests.data import media_files

CLIP = media_files.encode(times=[0.0, 0.1], wave=media_files.tone(0.5))


def write(path: pathlib.Path, files: Mapping[str, bytes | tarfile.TarInfo]) -> str:
    """A tar file of these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def fault(path: str, limit: int = 2**30) -> str:
    with pytest.raises(MediaFault) as caught:
        tars.read(path, limit=limit)
    return caught.value.fault_class


def test_members_are_read_in_place(tmp_path: pathlib.Path) -> None:
    long = "deep/" * 40 + "name.mp4"  # beyond the 100 bytes of a plain header
    files = {"a.mp4": CLIP, "ä b.mp4": b"2", long: b"3", "empty.mp4": b""}
    shard = write(tmp_path / "s.tar", files)
    for name, content in files.items():
        assert tars.read(f"{shard}!/{name}", limit=2**30) == content
    assert not list(tmp_path.glob("*.mp4"))


def test_what_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    files = {
        "../secret.mp4": b"x",
        "a/../../secret.mp4": b"x",
        "/etc/clip.mp4": b"x",
        "link.mp4": special("link.mp4", tarfile.SYMTYPE, str(tmp_path / "secret.mp4")),
        "hard.mp4": special("hard.mp4", tarfile.LNKTYPE, "a.mp4"),
        "pipe.mp4": special("pipe.mp4", tarfile.FIFOTYPE),
        "disk.mp4": special("disk.mp4", tarfile.BLKTYPE),
        "a.mp4": b"four",
    }
    shard = write(tmp_path / "s.tar", files)
    for name in list(files)[:-1]:
        assert fault(f"{shard}!/{name}") == "forbidden", name
    assert fault(f"{shard}!/b.mp4") == "missing"
    assert fault(f"{shard}!/a.mp4", limit=3) == "too_large"
    assert fault(f"{tmp_path}/none.tar!/a.mp4") == "missing"
    assert tars.read(f"{shard}!/a.mp4", limit=4) == b"four"
    # A scan lists them, so that a build counts and names them.
    found = {row.id: row for row in tars.scan([shard]).rows}
    assert {"s/link", "s/pipe", "s/../secret"} <= set(found)
    assert fault(str(found["s/link"].path)) == "forbidden"


def test_damaged_shards_are_told(tmp_path: pathlib.Path) -> None:
    files = {f"{i}.mp4": bytes([i]) * 3000 for i in range(5)}
    whole = pathlib.Path(write(tmp_path / "s.tar", files)).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:9000])
    hole = tmp_path / "hole.tar"
    hole.write_bytes(whole[:3584] + b"\xff" * 512 + whole[4096:])  # the second header
    for name in (cut, hole):
        assert tars.read(f"{name}!/0.mp4", limit=2**20) == files["0.mp4"]
        assert fault(f"{name}!/2.mp4") == "unreadable"
        rows = {row.id: row for row in tars.scan([str(name)]).rows}
        # Beside the clips, a row for what is lost: a build counts and names it.
        assert fault(str(rows[f"{name.stem}/(rest)"].path)) == "unreadable"
        assert f"{name.stem}/0" in rows
    (tmp_path / "text.tar").write_text("no tar file" * 200)
    (tmp_path / "void.tar").touch()
    for name in ("text", "void"):
        with pytest.raises(UserError, match=rf"{name}.tar: expected tar files"):
            tars.scan([f"{tmp_path}/{name}.tar"])


def header(name: bytes, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's header, with any size."""
    info = special(name.decode("latin-1"), kind)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "latin-1", "strict"))
    block[124:136] = b"\xff" + (size % 2**88).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [-1, -512, -1000, -(2**40)])
def test_a_size_below_zero_is_damage(tmp_path: pathlib.Path, size: int) -> None:
    whole = pathlib.Path(write(tmp_path / "good.tar", {"a.mp4": CLIP})).read_bytes()
    first = whole[: 512 + -(-len(CLIP) // 512) * 512]
    bad = tmp_path / "bad.tar"
    bad.write_bytes(first + header(b"b.mp4", size) + bytes(5000))
    assert tars.read(f"{bad}!/a.mp4", limit=2**30) == CLIP
    assert fault(f"{bad}!/b.mp4", limit=100) == "unreadable"
    assert {row.id for row in tars.scan([str(bad)]).rows} == {"bad/a", "bad/(rest)"}
    with pytest.raises(MediaFault, match="unreadable"):
        tars.read(f"{bad}!/b.mp4", limit=100, place=(0, size))


def chained(count: int) -> bytes:
    """Long names of long names."""
    return b"".join(
        header(b"././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + b"x.mp4".ljust(512)
        for _ in range(count)
    )


def sized(size: int) -> bytes:
    """A member whose size stands in a pax header."""
    info = special("x.mp4", tarfile.REGTYPE)
    info.pax_headers = {"size": str(size)}
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize("bad", [chained(3000), sized(-1_000_000), sized(-(10**30))])
def test_headers_that_end_no_scan(tmp_path: pathlib.Path, bad: bytes) -> None:
    good = pathlib.Path(write(tmp_path / "good.tar", {"a.mp4": CLIP})).read_bytes()
    first = tmp_path / "first.tar"
    first.write_bytes(bad + bytes(1024))
    member = good[: 512 + -(-len(CLIP) // 512) * 512]
    (tmp_path / "late.tar").write_bytes(member + bad + bytes(1024))
    ids = {row.id for row in tars.scan([f"{tmp_path}/*.tar"]).rows}
    assert ids == {"good/a", "first/(rest)", "late/a", "late/(rest)"}
    assert fault(f"{first}!/x.mp4") == "unreadable"


def test_names_that_are_not_unicode(tmp_path: pathlib.Path) -> None:
    with tarfile.open(
        tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        for name in ("ärger.mp4", "a ß.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(CLIP)
            tar.addfile(info, io.BytesIO(CLIP))
    rows = {row.id: row for row in tars.scan([f"{tmp_path}/s.tar"]).rows}
    assert set(rows) == {r"s/\xe4rger", r"s/a \xdf"}
    row = rows[r"s/\xe4rger"]
    assert row.media == rf"{tmp_path}/s.tar!/\xe4rger.mp4"
    for place in (None, row.place):
        assert tars.read(str(row.path), limit=2**30, place=place) == CLIP


def test_shards_of_one_name_in_two_folders(tmp_path: pathlib.Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0.tar", {"a.mp4": CLIP})
    rows = tars.scan([f"{tmp_path}/*/0.tar"]).rows
    assert [row.id for row in rows] == ["train/0/a", "val/0/a"]
    # Alone, or twice the same by two names: as before.
    other = f"{tmp_path}/train/../train/0.tar"
    assert [row.id for row in tars.scan([f"{tmp_path}/train/0.tar", other]).rows] == [
        "0/a"
    ]


def test_a_shard_that_changed_is_read_anew(tmp_path: pathlib.Path) -> None:
    shard = write(tmp_path / "s.tar", {"a.mp4": b"one"})
    assert tars.read(f"{shard}!/a.mp4", limit=9) == b"one"
    write(tmp_path / "s.tar", {"z.mp4": bytes(20_000), "a.mp4": b"two"})
    assert tars.read(f"{shard}!/a.mp4", limit=9) == b"two"


def test_clips_of_shards_in_the_layout_of_webdataset(tmp_path: pathlib.Path) -> None:
    facts = {"caption": "from json", "url": "u", "status": "ok"}
    said = {"segments": [[0.0, 1.0, "said"]]}
    write(
        tmp_path / "00000.tar",
        {
            "a.mp4": CLIP,
            "a.txt": "grün\n".encode(),
            "a.json": json.dumps(facts).encode(),
            "a.cls": b"7",
            "b.json": json.dumps(facts).encode(),
            "b.flac": CLIP,
            "b.jpg": b"thumbnail",
            "b.pyd": b"\x80\x04cos\nsystem\n",
            "b.pickle": b"\x80\x04cos\nsystem\n",
            "c.json": json.dumps(said).encode(),
            "c.jpg": b"picture",
            "d.txt": b"no media",
            "sub/e.seg.mp4": CLIP,
            "sub/e.txt": b"\xff\xfe\xff",
        },
    )
    write(tmp_path / "00001.tar", {"a.wav": CLIP})
    found = tars.scan([f"{tmp_path}/*.tar", f"{tmp_path}/00001.tar"])
    rows = {row.id: row for row in found.rows}
    assert sorted(rows) == ["00000/a", "00000/b", "00000/c", "00000/sub/e", "00001/a"]
    a = rows["00000/a"]
    assert [s.text for s in a.segments] == ["from json"]
    assert a.meta == {"url": "u", "status": "ok"}
    assert a.labels == {"class": "7"}
    assert a.media == f"{tmp_path}/00000.tar!/a.mp4"
    assert tars.read(str(a.path), limit=2**20) == CLIP
    assert rows["00000/b"].media.endswith("b.flac")
    assert rows["00000/c"].media.endswith("c.jpg")
    assert rows["00000/c"].segments[0].end == 1.0
    assert rows["00000/sub/e"].media.endswith("sub/e.seg.mp4")
    [(name, detail)] = rows["00000/sub/e"].faults
    assert name == "caption"
    assert ".txt" in detail
    assert found.label_columns == ("class",)
    assert isinstance(found, manifest.Manifest)


def test_shards_that_are_not_there_or_are_compressed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such tar file"):
        tars.scan([f"{tmp_path}/*.tar"])
    (tmp_path / "s.tar.gz").touch()
    with pytest.raises(UserError, match="gunzip"):
        tars.scan([f"{tmp_path}/s.tar.gz"])
    write(tmp_path / "s.tar", {"a.npy": b"x", "a.pickle": b"x"})
    with pytest.raises(UserError, match="other files"):
        tars.scan([f"{tmp_path}/s.tar"])


def test_the_place_of_a_member_spares_reading_the_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write(tmp_path / "s.tar", {"a.mp4": b"one", "b.mp4": CLIP})
    rows = {row.id: row for row in tars.scan([shard]).rows}
    monkeypatch.setattr(tars, "shard", None)
    found = rows["s/b"]
    assert tars.read(str(found.path), limit=2**20, place=found.place) == CLIP
    with pytest.raises(MediaFault, match="too_large"):
        tars.read(str(found.path), limit=100, place=found.place)
