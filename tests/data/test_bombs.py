"""Files that ask for far more than they are: each costs one item, and little time."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mmssl.data import media
from mmssl.data.media import ClipRequest, VideoRequest
from mmssl.data.pool import DecodePool, Limits, MediaFault
from tests.data import bombs, media_files, odd_files

GOOD = media_files.encode(times=[i / 10 for i in range(10)], wave=media_files.tone(1.0))
FIRST = ClipRequest(VideoRequest((0.0,), size=(24, 24)))


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    limits = Limits(seconds=10, probe_seconds=10, memory_mb=256)
    with DecodePool(1, limits) as pool:
        pool.probe(GOOD)
        yield pool


def outcome(pool: DecodePool, src: bytes | str, *, seconds: float = 20.0) -> str:
    """The fault class of a full probe, "used", or "used, MODALITY_CLASS"."""
    started = time.monotonic()
    try:
        found = pool.probe(src)
        name = ", ".join(["used", *(f"{k}_{v}" for k, v in found.faults.items())])
        assert (found.video and found.video["frames"]) or found.audio
    except MediaFault as fault:  # of a class in FAULTS: it refuses others
        name = fault.fault_class
    assert time.monotonic() - started < seconds
    return name


@pytest.fixture(autouse=True)
def pool_goes_on(pool: DecodePool) -> Iterator[None]:
    yield
    assert outcome(pool, GOOD) == "used"


@pytest.mark.parametrize("honest", [True, False])
def test_a_hundred_hours_of_silence(pool: DecodePool, tmp_path, honest: bool) -> None:
    path = bombs.hours_of_silence(tmp_path / "a.wav", 100, honest=honest)
    assert outcome(pool, str(path)) == "too_long"


def test_hours_without_a_header_that_says_so(pool: DecodePool) -> None:
    stamps = [0, 100, 400_000_000]  # the last frame 111 hours later
    grey = [np.full((48, 64, 3), 90, np.uint8)] * 3
    late = odd_files.pictures(grey, codec="mjpeg", pix_fmt="yuvj420p", stamps=stamps)
    assert outcome(pool, late) == "too_long"


def test_a_gif_of_a_hundred_thousand_frames_that_never_ends() -> None:
    gif = bombs.many_frames(100_000)
    assert len(gif) < 2.5e6
    with DecodePool(1, Limits(duration=60)) as pool:
        assert outcome(pool, gif) == "too_long"


def test_more_pixels_than_the_limit(pool: DecodePool) -> None:
    png = bombs.huge_png(12_000, bits=1)
    assert len(png) < 100_000
    assert outcome(pool, png) == "too_large"
    with pytest.raises(MediaFault) as caught:
        pool.clip(png, FIRST)
    assert caught.value.fault_class == "too_large"


def test_more_pixels_than_the_memory(pool: DecodePool) -> None:
    png = bombs.huge_png(6_000, bits=16, channels=4)  # 36 million, 275 MiB
    assert outcome(pool, png) == "memory"


JPEG = odd_files.pictures(
    [np.zeros((64, 64, 3), np.uint8)], codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg"
)


@pytest.mark.parametrize(
    "data",
    [bombs.huge_png(bits=1), bombs.huge_png(), bombs.huge_jpeg(JPEG), bombs.huge_gif()],
    ids=["png1", "png8", "jpeg", "gif"],
)
def test_twenty_thousand_by_twenty_thousand_pixels(pool: DecodePool, data) -> None:
    # Beyond 2^28 pixels FFmpeg itself refuses, without saying why.
    assert outcome(pool, data) in ("too_large", "corrupt")


@pytest.mark.parametrize("count", [65, 50_000])
def test_many_streams(pool: DecodePool, count: int) -> None:
    assert outcome(pool, bombs.many_streams(64)) == "used"
    assert outcome(pool, bombs.many_streams(count)) == "too_large"


def test_packets_that_unpack_to_a_thousand_times_their_size(pool: DecodePool) -> None:
    data = bombs.packed_packets(64)  # 8 packets of 64 kB
    assert outcome(pool, data) in ("no_frames", "memory", "corrupt")


@pytest.mark.parametrize("depth", [1, 3, 8, 40])
@pytest.mark.parametrize("claim", [2**20, 2**32 - 32])
def test_headers_packed_in_packed_headers(pool: DecodePool, depth: int, claim) -> None:
    data = bombs.packed_headers(depth, claim)
    assert len(data) < 3000
    assert outcome(pool, data) in ("no_streams", "unreadable", "memory")


@pytest.mark.parametrize("depth", [5, 100, 20_000])
def test_boxes_in_boxes(pool: DecodePool, depth: int) -> None:
    assert outcome(pool, bombs.nested_boxes(depth)) in ("no_streams", "unreadable")


def test_samples_said_to_be_in_another_file_are_not_read_there(tmp_path) -> None:
    white = [np.full((48, 64, 3), 235, np.uint8)] * 5
    other = tmp_path / "other.mp4"
    other.write_bytes(
        media_files.encode(times=[i / 10 for i in range(5)], images=white)
    )
    for name in (f"file://{other}", str(other), "other.mp4"):
        path = tmp_path / "points.mov"
        path.write_bytes(bombs.points_outside(name))
        for src in (path, path.read_bytes()):
            try:
                clip = media.decode_clip(src, FIRST)
            except MediaFault:
                continue
            assert clip.video is not None
            assert media_files.index_of(clip.video[0]) == 0  # its own frame


def test_zero_bytes(pool: DecodePool, tmp_path) -> None:
    assert outcome(pool, b"") == "empty"
    (tmp_path / "none.mp4").touch()
    assert outcome(pool, str(tmp_path / "none.mp4")) == "empty"
    assert outcome(pool, bytes(2**20)) == "unreadable"


MAGIC = {
    "nothing": b"",
    "mp4": b"\0\0\0\x14ftypisom\0\0\0\0isom",
    "matroska": b"\x1a\x45\xdf\xa3",
    "wav": b"RIFF\xff\xff\0\0WAVEfmt ",
    "avi": b"RIFF\xff\xff\0\0AVI LIST",
    "ogg": b"OggS\0\2",
    "gif": b"GIF89a",
    "mp3": b"ID3\4\0\0",
    "flac": b"fLaC",
    "flv": b"FLV\1\5\0\0\0\x09",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "mpeg": b"\0\0\1\xba",
    "mpegts": (b"G" + bytes(187)) * 8,
    "h264": b"\0\0\0\1\x67",
}


@pytest.mark.parametrize("kind", MAGIC)
def test_random_bytes(pool: DecodePool, kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for size in (1, 100, 200_000):
        outcome(pool, MAGIC[kind] + rng.bytes(size))


@pytest.mark.parametrize("format", ["mp4", "matroska", "mpegts", "avi"])
def test_damaged_files_never_cost_more_than_themselves(pool, format: str) -> None:
    codec = "mpeg4" if format == "avi" else "libx264"
    sound = "mp3" if format == "avi" else "aac"
    good = media_files.encode(
        times=[i / 10 for i in range(10)],
        wave=media_files.tone(1.0),
        format=format,
        codec=codec,
        audio_codec=sound,
    )
    rng = np.random.default_rng(0)
    for _ in range(12):
        data = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(len(data), size=int(rng.integers(1, 40)))
        data[places] = rng.integers(256, size=len(places))
        outcome(pool, data.tobytes())
        with contextlib.suppress(MediaFault):
            pool.clip(data.tobytes(), FIRST)
