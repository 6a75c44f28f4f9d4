"""Small files that ask for a lot. Written byte by byte: no encoder makes them."""

import pathlib
import struct
import zlib

from tests.data import media_files

SIDE = 20_000


def hours_of_silence(path: pathlib.Path, hours: float, *, honest: bool) -> pathlib.Path:
    """A sparse WAV of 8-bit silence at 8 kHz; a dishonest header claims no length."""
    size = int(hours * 3600 * 8000)
    stated = size if honest else 0xFFFFFFFF
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", min(36 + stated, 0xFFFFFFFF), b"WAVE", b"fmt ", 16, 1, 1),
        *(8000, 8000, 1, 8, b"data", stated),
    )
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def huge_png(side: int = SIDE, *, bits: int = 8, channels: int = 1) -> bytes:
    """A square of one colour; a thousandth of its pixels in bytes."""
    kind = {1: 0, 3: 2, 4: 6}[channels]
    line = bytes(1 + side * bits * channels // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    )


def huge_jpeg(small: bytes) -> bytes:
    """A JPEG whose header says 20,000 x 20,000."""
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", SIDE, SIDE) + small[at + 4 :]


def huge_gif() -> bytes:
    """A screen and an image of 20,000 x 20,000; its data end at once."""
    size = struct.pack("<HH", SIDE, SIDE)
    image = b"," + bytes(4) + size + b"\0" + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + image + b";"


def many_frames(count: int) -> bytes:
    """A GIF that loops for ever, of `count` frames of 1 x 1, 0.1 s each: 23 B each."""
    one = struct.pack("<HH", 1, 1)
    head = b"GIF89a" + one + b"\x80\0\0" + bytes(6)
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    frame = b"\x21\xf9\x04\0\x0a\0\0\0," + bytes(4) + one + b"\0\x02\x02\x4c\x01\0"
    return head + loop + frame * count + b";"


def _element(id: bytes, data: bytes) -> bytes:
    return id + struct.pack(">Q", len(data) | 1 << 56) + data


def _matroska(*parts: bytes) -> bytes:
    head = _element(b"\x1a\x45\xdf\xa3", _element(b"\x42\x82", b"matroska"))
    return head + _element(b"\x18\x53\x80\x67", b"".join(parts))


def _track(number: int, extra: bytes = b"") -> bytes:
    kind = _element(b"\x83", b"\x02") + _element(b"\x86", b"A_PCM/INT/LIT")
    ids = _element(b"\xd7", struct.pack(">I", number))
    sound = _element(b"\xb5", struct.pack(">d", 8000)) + _element(b"\x62\x64", b"\x08")
    return _element(b"\xae", ids + kind + _element(b"\xe1", sound) + extra)


def many_streams(count: int) -> bytes:
    """A Matroska header that declares `count` tracks of sound."""
    tracks = b"".join(_track(i + 1) for i in range(count))
    block = _element(b"\xa3", b"\x81\0\0\x80" + bytes(800))
    cluster = _element(b"\x1f\x43\xb6\x75", _element(b"\xe7", b"\0") + block)
    return _matroska(_element(b"\x16\x54\xae\x6b", tracks), cluster)


def packed_packets(megabytes: int) -> bytes:
    """A Matroska track whose packets are zlib streams of zeros."""
    packing = _element(b"\x42\x54", b"\x00")  # ContentCompAlgo: zlib
    coding = _element(b"\x62\x40", _element(b"\x50\x34", packing))
    track = _track(1, _element(b"\x6d\x80", coding))
    data = zlib.compress(bytes(megabytes * 2**20), 9)
    block = _element(b"\xa3", b"\x81\0\0\x80" + data)
    cluster = _element(b"\x1f\x43\xb6\x75", _element(b"\xe7", b"\0") + block * 8)
    return _matroska(_element(b"\x16\x54\xae\x6b", track), cluster)


def atom(name: bytes, data: bytes) -> bytes:
    """One box of an MP4 file."""
    return struct.pack(">I4s", len(data) + 8, name) + data


def packed_headers(depth: int, claim: int) -> bytes:
    """A compressed MP4 header in a compressed header, `depth` deep.

    The innermost claims to unpack to `claim` bytes.
    """
    inner, size = zlib.compress(bytes(2**20), 9), claim
    for _ in range(depth):
        packing = atom(b"dcom", b"zlib") + atom(
            b"cmvd", struct.pack(">I", size) + inner
        )
        moov = atom(b"moov", atom(b"cmov", packing))
        inner, size = zlib.compress(moov, 9), len(moov)
    return atom(b"ftyp", b"qt  \0\0\0\0qt  ") + moov


def nested_boxes(depth: int) -> bytes:
    """Boxes in boxes in boxes."""
    data = b""
    for _ in range(depth):
        data = atom(b"udta", data)
    return atom(b"ftyp", b"isom\0\0\0\0isom") + atom(b"moov", data)


def points_outside(target: str) -> bytes:
    """An MP4 file whose samples are said to be in another file."""
    whole = media_files.encode(times=[i / 10 for i in range(5)])
    plain = atom(b"url ", b"\0\0\0\x01")  # 1: in this file
    assert plain in whole
    name = target.encode() + b"\0"
    other = atom(b"url ", b"\0\0\0\0" + name)
    grown = len(other) - len(plain)
    whole = whole.replace(plain, other)
    # Every box around it has grown, too.
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = whole.index(box) - 4
        size = struct.unpack(">I", whole[at : at + 4])[0] + grown
        whole = whole[:at] + struct.pack(">I", size) + whole[at + 4 :]
    return whole
