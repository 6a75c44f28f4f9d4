"""What is stored anew shows and says the same at the same times."""

import pathlib
from fractions import Fraction

import numpy as np
import pytest

from mmssl.data import intake, manifest, media, storage, transcode
from mmssl.data.media import Limits, MediaFault
from mmssl.data.pool import DecodePool
from mmssl.data.records import Segment, Word
from mmssl.data.storage import Storage
from mmssl.errors import UserError
from tests.data import media_files, odd_files

KINDS = ("h264", "jpeg")
TIMES = [i / 25 for i in range(100)]  # 4 s
SECONDS = 4.0


def chirp(rate: int = 48000) -> np.ndarray:
    """A sound whose every moment is another: from 200 Hz up to 2 kHz."""
    t = np.arange(int(SECONDS * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * t + 225 * t**2))).astype(np.float32)


@pytest.fixture(scope="module")
def talk() -> bytes:
    return media_files.encode(
        times=TIMES,
        wave=chirp(),
        rate=48000,
        format="matroska",
        audio_codec="flac",
    )


def shown(data: bytes, times: list[float]) -> list[int]:
    return [media_files.index_of(f) for f in media.decode_video(data, times)]


def heard(data: bytes, start: float, seconds: float) -> np.ndarray:
    return media.decode_audio(data, start=start, duration=seconds, rate=16000)


def same_sound(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same to within coding noise, and not a sample early or late."""
    inner = slice(800, -800)
    shifts = range(-4, 5)
    errors = [
        float(np.mean((np.roll(found, k) - expected)[inner] ** 2)) for k in shifts
    ]
    return abs(shifts[int(np.argmin(errors))]) <= 1 and min(errors) < 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_one_piece_has_the_same_frames_and_sound_at_the_same_times(talk, kind) -> None:
    probe, [piece] = transcode.transcode(talk, Storage(kind))
    assert probe == media.probe(talk)
    assert piece.probe == media.probe(piece.media)
    assert (piece.start, piece.end) == (0.0, probe.duration)
    assert piece.probe.duration == pytest.approx(probe.duration, abs=0.05)
    times = [0.0, 0.5, 1.02, 3.9]
    assert shown(piece.media, times) == shown(talk, times)
    assert same_sound(heard(piece.media, 0.0, 4.0), heard(talk, 0.0, 4.0))
    assert piece.probe.video is not None
    assert piece.probe.video["frames"] == 100
    assert piece.probe.faults == {}


@pytest.mark.parametrize("kind", KINDS)
def test_rates_and_sizes(kind: str) -> None:
    image = np.full((90, 160, 3), 128, np.uint8)
    data = media_files.encode(
        times=TIMES, images=[image] * 100, wave=chirp(), rate=48000
    )
    way = Storage(kind, short_side=32, fps=5, audio_rate=16000)
    _, [piece] = transcode.transcode(data, way)
    video, audio = piece.probe.video, piece.probe.audio
    assert video is not None
    assert audio is not None
    assert (video["width"], video["height"]) == (56, 32)  # 56.9, and even
    assert video["frames"] == 20
    assert video["fps"] == pytest.approx(5, rel=1e-3)
    assert audio["rate"] == 16000
    _, [larger] = transcode.transcode(data, Storage(kind, short_side=500))
    assert larger.probe.video is not None
    assert larger.probe.video["width"] == 160  # never enlarged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", [None, 10.0])
def test_pieces_hold_what_was_there_then(talk: bytes, kind: str, fps) -> None:
    way = Storage(kind, fps=fps, segment=1.5)
    _, pieces = transcode.transcode(talk, way)
    assert [p.start for p in pieces] == [0.0, 1.5, 3.0]
    assert pieces[-1].end == pytest.approx(4.0, abs=0.1)
    for piece in pieces:
        length = min(1.5, 4.0 - piece.start)
        times = [0.0, 0.3, 0.7]  # on the grid of 10 fps
        assert shown(piece.media, times) == shown(
            talk, [piece.start + t for t in times]
        )
        sound = heard(talk, piece.start, length)
        assert same_sound(heard(piece.media, 0.0, length), sound)
        assert piece.probe.video is not None
        frames = round(length * (fps or 25))
        assert abs(piece.probe.video["frames"] - frames) <= 1


def test_the_same_bytes_every_time(talk: bytes) -> None:
    for kind in KINDS:
        first, second = (
            transcode.transcode(talk, Storage(kind, segment=2.0))[1] for _ in range(2)
        )
        assert [p.media for p in first] == [p.media for p in second]


def test_slides_are_shown_on_until_the_next_one() -> None:
    # Variable frame rate: a frame of 5 s spans pieces.
    data = odd_files.pictures(
        [np.full((48, 64, 3), media_files.level(i), np.uint8) for i in range(3)],
        codec="mjpeg",
        pix_fmt="yuvj420p",
        stamps=[0, 5000, 6000],
    )
    for fps in (None, 4.0):
        _, pieces = transcode.transcode(data, Storage("jpeg", fps=fps, segment=2.0))
        assert [p.start for p in pieces] == [0, 2, 4, 6][: len(pieces)]
        assert len(pieces) >= 3
        assert shown(pieces[1].media, [0.0, 1.5]) == [0, 0]
        assert shown(pieces[2].media, [0.0, 0.9, 1.0, 1.9]) == [0, 0, 1, 1]


def test_a_piece_has_only_the_streams_that_have_something_in_it() -> None:
    wave = media_files.tone(1.0)
    data = media_files.encode(
        times=TIMES, wave=wave, wave_start=2.5, format="matroska", audio_codec="flac"
    )
    _, pieces = transcode.transcode(data, Storage("h264", segment=1.0))
    assert [p.probe.audio is not None for p in pieces] == [False, False, True, True]
    late = heard(pieces[2].media, 0.0, 1.0)
    assert np.abs(late[:7500]).max() < 0.01
    assert np.abs(late[8500:]).max() > 0.4
    assert all(p.probe.faults == {} for p in pieces)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_upright_square_pixels_and_colours(kind: str, degrees: int) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:] = (220, 40, 40), (40, 200, 60)
    image[32:, :48], image[32:, 48:] = (50, 60, 210), (180, 180, 180)
    data = media_files.encode(times=[0.0, 0.1], images=[image] * 2, rotation=degrees)
    _, [piece] = transcode.transcode(data, Storage(kind))
    (before,), (after,) = (media.decode_video(d, [0.0]) for d in (data, piece.media))
    assert piece.probe.video is not None
    assert piece.probe.video["rotation"] == 0
    assert after.shape == before.shape
    corners = np.ix_([16, -16], [16, -16])
    assert np.abs(after[corners].astype(int) - before[corners]).max() < 10


def test_wide_pixels_and_woven_fields_are_gone() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    wide = odd_files.pictures([image] * 2, format="mp4", pixel_aspect=Fraction(2))
    _, [piece] = transcode.transcode(wide, Storage("jpeg", short_side=32))
    assert piece.probe.video is not None
    assert (piece.probe.video["width"], piece.probe.video["height"]) == (64, 32)
    woven = np.zeros((96, 128, 3), np.uint8)
    woven[0::2, :64], woven[1::2, 64:] = 220, 220
    data = odd_files.pictures([woven] * 3, options={"x264-params": "tff=1"})
    _, [piece] = transcode.transcode(data, Storage("h264"))
    (frame,) = media.decode_video(piece.media, [0.1])
    assert frame[10:-10, 10:50].min() > 190
    assert frame[10:-10, 80:-10].max() < 30


def test_sound_alone_a_picture_alone_and_odd_rates() -> None:
    wave = media_files.tone(1.0, rate=44000)[None]
    sound = odd_files.sounds([wave], layouts=["mono"], rate=44000)
    for kind, rate in (("h264", 44100), ("jpeg", 44000)):
        _, [piece] = transcode.transcode(sound, Storage(kind))
        assert piece.probe.video is None
        assert piece.probe.audio is not None
        assert piece.probe.audio["rate"] == rate
        assert same_sound(heard(piece.media, 0.0, 1.0), heard(sound, 0.0, 1.0))
    image = [np.full((64, 64, 3), 90, np.uint8)]
    still = odd_files.pictures(image, codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg")
    for kind in KINDS:
        _, [piece] = transcode.transcode(still, Storage(kind, fps=10, segment=5))
        assert piece.probe.video is not None
        assert piece.probe.video["frames"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_falls_between_the_last_frame_and_the_cut(kind: str) -> None:
    images = [np.full((48, 64, 3), media_files.level(i), np.uint8) for i in range(6)]
    data = odd_files.pictures(
        images,
        codec="mjpeg",
        pix_fmt="yuvj420p",
        stamps=[0, 400, 3000, 6500, 9500, 10000],
    )
    probe, pieces = transcode.transcode(data, Storage(kind, segment=3.0))
    assert [(p.start, p.end) for p in pieces] == [
        (0.0, 3.0),
        (3.0, 6.0),
        (6.0, 9.0),
        (9.0, probe.duration),
    ]
    # The held frame lasts until the cut.
    for piece in pieces:
        length = piece.end - piece.start
        assert piece.probe.duration == pytest.approx(length, abs=0.02)
    assert shown(pieces[1].media, [0.0, 2.9]) == [2, 2]
    assert shown(pieces[2].media, [0.0, 0.4, 0.6, 2.9]) == [2, 2, 3, 3]
    words = [Word(i / 10, i / 10 + 0.1, "x") for i in range(101)]
    assert storage.unplaced([], words, pieces) == 0
    assert storage.unplaced([Segment(0.5, 1.5, "x")], [], pieces) == 0
    found = [storage.words_within(words, p.start, p.end) for p in pieces]
    assert sum(map(len, found)) == len(words)


def test_sound_after_the_cut_brings_no_word_twice(talk: bytes) -> None:
    # AAC comes in blocks of 1024 samples, so the sound of a piece ends after its cut.
    _, pieces = transcode.transcode(talk, Storage("h264", segment=1.5))
    words = [Word(t, t + 0.002, "x") for t in np.arange(0, 4, 0.004).tolist()]
    found = [storage.words_within(words, p.start, p.end) for p in pieces]
    assert sum(map(len, found)) == len(words)


def test_text_of_a_rest_that_is_left_out_is_counted(
    talk: bytes, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "talk.mkv").write_bytes(talk)
    row = manifest.Row(
        id="talk",
        media="talk.mkv",
        path=tmp_path / "talk.mkv",
        segments=(Segment(0.0, 3.0, "kept"), Segment(3.85, 3.95, "lost")),
        words=(Word(3.7, 3.8, "kept"), Word(3.9, 4.0, "lost")),
        labels={},
        meta={},
    )
    with DecodePool(1) as pool:
        checked = intake.check(row, pool, Storage("jpeg", fps=5, segment=3.8))
    [(name, detail)] = checked.partial
    assert name == "text"
    assert detail.startswith("2 ")


def test_a_short_rest_is_left_out(talk: bytes) -> None:
    _, pieces = transcode.transcode(talk, Storage("jpeg", fps=5, segment=3.8))
    assert [p.start for p in pieces] == [0.0]
    _, pieces = transcode.transcode(talk, Storage("jpeg", fps=5, segment=2.5))
    assert [p.start for p in pieces] == [0.0, 2.5]


def test_limits_and_faults() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), dtype=np.uint8)
    data = odd_files.pictures(list(noise))
    with pytest.raises(MediaFault) as caught:
        transcode.transcode(data, Storage("jpeg"), limits=Limits(output_mb=1))
    assert caught.value.fault_class == "too_large"
    with pytest.raises(MediaFault) as caught:
        transcode.transcode(b"no media", Storage("h264"))
    assert caught.value.fault_class == "unreadable"


def test_workers_give_what_is_given_here(talk: bytes) -> None:
    way = Storage("h264", fps=5, audio_rate=16000, segment=1.5)
    with DecodePool(1) as pool:
        assert pool.transcode(talk, way) == transcode.transcode(talk, way)
        with pytest.raises(MediaFault, match="empty"):
            pool.transcode(b"", way)


def test_texts_go_where_they_are_said() -> None:
    nan = float("nan")
    title = Segment(nan, nan, "title")
    texts = [
        title,
        Segment(0.0, 9.0, "in the first"),
        Segment(8.0, 10.5, "mostly in the first"),
        Segment(9.5, 13.0, "mostly in the second"),
        Segment(15.0, 48.0, "a long caption"),
        Segment(20.0, 20.0, "a moment"),
    ]
    pieces = [storage.within(texts, start, start + 10) for start in range(0, 50, 10)]
    said = [[s.text for s in piece if s.timed] for piece in pieces]
    assert said == [
        ["in the first", "mostly in the first"],
        ["mostly in the second", "a long caption"],
        ["a long caption", "a moment"],
        ["a long caption"],
        ["a long caption"],
    ]
    assert all(title in piece for piece in pieces)
    assert pieces[0][2] == Segment(8.0, 10.0, "mostly in the first")
    assert pieces[1][1] == Segment(0.0, 3.0, "mostly in the second")
    assert pieces[4][1] == Segment(0.0, 8.0, "a long caption")
    # No text is lost at a cut, and words are in one piece each.
    rng = np.random.default_rng(0)
    for start, length in zip(rng.uniform(0, 40, 200), rng.uniform(0, 9, 200)):
        text = [Segment(start, start + length, "x")]
        found = [storage.within(text, s, s + 10) for s in range(0, 60, 10)]
        assert sum(map(len, found)) >= 1
        words = [Word(start, start + length, "x")]
        places = [storage.words_within(words, s, s + 10) for s in range(0, 60, 10)]
        assert sum(map(len, places)) == 1
        [[word]] = [found for found in places if found]
        assert 0 <= word.start <= word.end <= 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "h265"}, "expected one of original, h264, jpeg"),
        ({"fps": 10}, "choose 'h264' or 'jpeg'"),
        ({"kind": "h264", "segment": 0.1}, "segment: expected 0.5 to 86400, found 0.1"),
        ({"kind": "h264", "segment": float("nan")}, "segment: .* found nan"),
        ({"kind": "h264", "segment": float("inf")}, "segment: .* found inf"),
        ({"kind": "jpeg", "fps": float("nan")}, "fps: expected 0.1 to 1000, found nan"),
        ({"kind": "jpeg", "fps": 1e9}, "fps: .* found 1e\\+09"),
        ({"kind": "jpeg", "short_side": 10**6}, "short_side: .* 8192"),
        ({"kind": "h264", "audio_rate": 13000}, "AAC has"),
    ],
)
def test_storage_that_cannot_be(options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Storage(**options)
