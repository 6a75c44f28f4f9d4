"""Timestamps, pictures and sound as the web has them, against what went in."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmssl.data import audio, media
from mmssl.data.media import AudioRequest, ClipRequest, MediaFault, VideoRequest
from mmssl.data.timeline import Stamps
from tests.data import media_files, odd_files

PATCHES = np.array(
    [[230, 30, 30], [30, 200, 40], [40, 50, 220], [120, 120, 120]], np.uint8
)


def greys(count: int) -> list[np.ndarray]:
    return [np.full((48, 64, 3), media_files.level(i), np.uint8) for i in range(count)]


def patches() -> np.ndarray:
    """Four columns of 32 pixels: red, green, blue, grey."""
    return np.repeat(np.repeat(PATCHES, 32, axis=0)[None], 64, axis=0)


def seen(frame: np.ndarray) -> np.ndarray:
    """The middle of each patch."""
    part = frame.shape[1] // 4
    return np.stack(
        [frame[8:-8, i * part + 4 : (i + 1) * part - 4].mean((0, 1)) for i in range(4)]
    )


def mono(data: bytes, *, seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    return media.decode_audio(data, start=0.0, duration=seconds, rate=rate)


# Timestamps


def test_permuted_stamps_are_put_in_order() -> None:
    # What a muxer without decoding times makes of B-frames: frames come right, stamps
    # of neighbours are exchanged.
    stamps = [100, 300, 200, 400, 600, 500, 700, 800, 900, 1000]
    data = odd_files.pictures(
        greys(10), codec="mjpeg", pix_fmt="yuvj420p", stamps=stamps
    )
    found = media.probe(data)
    assert found.video is not None
    assert found.video["frames"] == 10
    frames = media.decode_video(data, [0.0, 0.1, 0.15, 0.2, 0.4, 0.5, 0.9])
    assert [media_files.index_of(f) for f in frames] == [0, 1, 1, 2, 4, 5, 9]


def stamped(*times: float | None, rate: Fraction | None = None) -> list[float]:
    """The times that frames with these stamps get."""
    stream: Any = SimpleNamespace(
        average_rate=rate, guessed_rate=None, time_base=Fraction(1, 1000)
    )
    streams: Any = SimpleNamespace(video=stream, origin=0.0)
    stamps = Stamps(streams)
    frames = [SimpleNamespace(time=time, duration=0) for time in times]
    out = [pair for frame in frames for pair in stamps.push(frame)] + stamps.flush()
    assert [frame for _, frame in out] == frames  # in the order of decoding
    return [time for time, _ in out]


def test_stamps_only_ascend() -> None:
    assert stamped(0.0, 0.2, 0.1, 0.3) == [0.0, 0.1, 0.2, 0.3]
    assert stamped(0.5, 0.5, 0.5, 0.7) == [0.5, 0.5, 0.5, 0.7]
    # A file glued to another starts over: its frames follow what was there.
    again = stamped(*(i / 10 for i in range(10)), *(i / 10 for i in range(10)))
    assert again[:4] == [0.0, 0.1, 0.2, 0.3]
    assert (np.diff(again) >= 0).all()
    assert again[-1] == 0.9


def test_missing_stamps_follow_the_rate_or_are_a_fault() -> None:
    assert stamped(None, None, None, rate=Fraction(4)) == [0.0, 0.25, 0.5]
    assert stamped(1.0, None, 1.6, rate=Fraction(4)) == [1.0, 1.25, 1.6]
    with pytest.raises(MediaFault) as caught:
        stamped(1.0, None)
    assert caught.value.fault_class == "no_times"


# Pictures


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "format"),
    [
        ("libx264", "yuv420p", "mp4"),
        ("libx264", "yuv420p10le", "mp4"),
        ("libx264", "yuv444p", "matroska"),
        ("libx264", "yuvj420p", "mp4"),
        ("mjpeg", "yuvj420p", "matroska"),
        ("ffv1", "bgr0", "matroska"),
        ("qtrle", "rgb24", "mov"),
    ],
)
def test_colours_of_any_depth_range_and_sampling(codec, pix_fmt, format) -> None:
    data = odd_files.pictures(
        [patches()] * 3, codec=codec, pix_fmt=pix_fmt, format=format
    )
    (frame,) = media.decode_video(data, [0.1])
    assert np.abs(seen(frame) - PATCHES).max() < 8


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "format"), [("ffv1", "bgra", "nut"), ("qtrle", "argb", "mov")]
)
def test_alpha_is_ignored(codec, pix_fmt, format) -> None:
    alpha = np.full((64, 128, 1), 255, np.uint8)
    alpha[:32] = 0
    image = np.concatenate([patches(), alpha], axis=2)
    data = odd_files.pictures(
        [image] * 2, codec=codec, pix_fmt=pix_fmt, format=format, source="rgba"
    )
    (frame,) = media.decode_video(data, [0.0])
    assert frame.shape == (64, 128, 3)
    assert np.abs(seen(frame) - PATCHES).max() < 8


def test_a_gif_decodes_once_however_often_it_says_to_loop() -> None:
    data = odd_files.pictures(
        greys(6), codec="gif", pix_fmt="gray", format="gif", container={"loop": "0"}
    )
    assert b"NETSCAPE2.0" in data  # "endless"
    found = media.probe(data)
    assert found.video is not None
    assert found.video["frames"] == 6


def test_one_field_of_an_interlaced_frame_is_taken() -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    image[0::2, 16:64] = 220  # at the first moment here,
    image[1::2, 64:112] = 220  # at the second there
    data = odd_files.pictures([image] * 4, options={"x264-params": "tff=1"})
    for size in (None, (48, 64)):
        (frame,) = media.decode_video(data, [0.1], size=size)
        left, right = np.split(frame[..., 0].astype(float), 2, axis=1)
        columns = slice(left.shape[1] // 3, -left.shape[1] // 6)
        assert left[:, columns].min() > 200
        assert right[:, columns].max() < 20
    plain = odd_files.pictures([image] * 4)
    (frame,) = media.decode_video(plain, [0.1])  # progressive: every line is kept
    assert np.abs(np.diff(frame[20:40, 40, 0].astype(int))).min() > 100


def test_crops_count_non_square_pixels() -> None:
    # Stored 96 x 96, shown 2:1: the centred square is the middle half of the columns.
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, 24:72] = 200
    square = odd_files.pictures([image] * 2, format="mp4")
    wide = odd_files.pictures([image] * 2, format="mp4", pixel_aspect=Fraction(2))
    (inside,) = media.decode_video(wide, [0.0], size=(32, 32))
    assert abs(inside[:, 1:-1].mean() - 200) < 8
    (whole,) = media.decode_video(square, [0.0], size=(32, 32))
    assert abs(whole.mean() - 100) < 10


@pytest.mark.parametrize(
    ("format", "codec", "layout"),
    [("mp3", "libmp3lame", "stereo"), ("mp4", "aac", "mono"), ("flac", "flac", "mono")],
)
def test_cover_art_is_no_video(format: str, codec: str, layout: str) -> None:
    data = odd_files.cover(format, codec, layout)
    found = media.probe(data)
    assert found.video is None
    assert found.audio is not None
    request = ClipRequest(VideoRequest((0.0,)), AudioRequest(0.0, 8000, 16000))
    clip = media.decode_clip(data, request)
    assert clip.video is None
    assert clip.audio is not None
    assert clip.faults == {}


# Sound

# ITU-R BS.775-3, table 2, by hand: left, right 0.7071; centre 1; surrounds 0.5.
FRONT = 0.5**0.5
MATRIX = {
    "mono": [1],
    "stereo": [FRONT, FRONT],
    "2.1": [FRONT, FRONT, 0],
    "3.0": [FRONT, FRONT, 1],
    "quad": [FRONT, FRONT, 0.5, 0.5],
    "5.0": [FRONT, FRONT, 1, 0.5, 0.5],
    "5.1": [FRONT, FRONT, 1, 0, 0.5, 0.5],
    "5.1(side)": [FRONT, FRONT, 1, 0, 0.5, 0.5],
    "6.1": [FRONT, FRONT, 1, 0, FRONT, 0.5, 0.5],
    "7.1": [FRONT, FRONT, 1, 0, 0.5, 0.5, 0.5, 0.5],
}


@pytest.mark.parametrize("layout", MATRIX)
def test_channels_are_mixed_by_the_standard_matrix(layout: str) -> None:
    gains = np.array(MATRIX[layout]) / np.sum(MATRIX[layout])
    rng = np.random.default_rng(0)
    waves = rng.uniform(-0.9, 0.9, (len(gains), 8000)).astype(np.float32)
    data = odd_files.sounds([waves], layouts=[layout], codec="pcm_f32le", format="wav")
    found = media.probe(data)
    assert found.audio is not None
    assert found.audio["channels"] == len(gains)
    np.testing.assert_allclose(mono(data), gains @ waves.astype(float), atol=1e-5)


@pytest.mark.parametrize("layout", ["stereo", "5.1", "7.1"])
def test_channels_of_planar_sound_are_mixed_by_it_too(layout: str) -> None:
    gains = np.array(MATRIX[layout]) / np.sum(MATRIX[layout])
    for channel in {0, len(gains) - 1}:
        waves = np.zeros((len(gains), 8000), np.float32)
        waves[channel] = media_files.tone(0.5)
        data = odd_files.sounds([waves], layouts=[layout], codec="aac", format="mp4")
        heard = mono(data)[2000:6000]
        assert np.abs(heard).max() == pytest.approx(0.5 * gains[channel], rel=0.05)


def test_full_scale_in_all_channels_does_not_clip() -> None:
    wave = 0.99 * np.sin(np.arange(8000) / 5)
    waves = np.stack([wave] * 6).astype(np.float32)
    data = odd_files.sounds([waves], layouts=["5.1"], codec="pcm_f32le", format="wav")
    np.testing.assert_allclose(mono(data), wave, atol=1e-5)


def test_channels_without_a_place_are_averaged() -> None:
    assert audio.mono_gains(["LFE"]) == pytest.approx([1])
    assert audio.mono_gains(["new", "newer"]) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("codec", "sample_format", "dtype"),
    [
        ("pcm_u8", "u8", np.uint8),
        ("pcm_s16le", "s16", np.int16),
        ("pcm_s32le", "s32", np.int32),
        ("pcm_f32le", "flt", np.float32),
        ("pcm_f64le", "dbl", np.float64),
    ],
)
def test_sample_formats_have_one_scale(codec, sample_format, dtype) -> None:
    wave = media_files.tone(0.5)
    stereo = np.stack([wave, -wave / 2]).astype(np.float64)
    if np.dtype(dtype).kind != "f":
        full = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        stereo = np.round(stereo * (full - 1)) + (128 if dtype is np.uint8 else 0)
    data = odd_files.sounds(
        [stereo.astype(dtype)],
        layouts=["stereo"],
        codec=codec,
        sample_format=sample_format,
        format="wav",
    )
    np.testing.assert_allclose(mono(data), wave / 4, atol=0.006)


@pytest.mark.parametrize("rate", [4000, 11025, 22050, 44000, 96000, 192000])
def test_any_sample_rate(rate: int) -> None:
    wave = media_files.tone(0.5, rate=rate)[None]
    data = odd_files.sounds(
        [wave], layouts=["mono"], rate=rate, codec="pcm_f32le", format="wav"
    )
    error = mono(data) - media_files.tone(0.5)
    assert np.abs(error[400:-400]).max() < 2e-3


def test_the_first_of_several_audio_streams_is_used() -> None:
    first, second = media_files.tone(0.5)[None], media_files.tone(0.5, hz=900)[None]
    data = odd_files.sounds([first, second], layouts=["mono", "mono"])
    np.testing.assert_allclose(mono(data), first[0], atol=1e-3)


def test_the_rate_may_change_on_the_way() -> None:
    rates = (16000, 8000)
    waves = [media_files.tone(0.5, rate=rate)[None] for rate in rates]
    data = b"".join(
        odd_files.sounds(
            [wave], layouts=["mono"], rate=rate, codec="aac", format="adts"
        )
        for wave, rate in zip(waves, rates, strict=True)
    )
    heard = mono(data, seconds=1.0)
    for part in (heard[2000:6000], heard[10000:14000]):
        peak = np.abs(np.fft.rfft(part)).argmax() * 16000 / len(part)
        assert peak == pytest.approx(440, abs=8)
        assert np.abs(part).max() == pytest.approx(0.5, abs=0.1)


# Nothing in it


def test_what_opens_and_yields_nothing_is_a_fault() -> None:
    options = {"movflags": "empty_moov+frag_keyframe"}
    whole = odd_files.pictures(greys(3), format="mp4", container=options)
    header_only = whole[: whole.index(b"moof") - 4]
    assert media.probe(whole).video is not None
    for data in (header_only, media_files.wav_header(0), media_files.wav_header(64000)):
        for call in (media.probe, lambda d: media.decode_video(d, [0.0])):
            with pytest.raises(MediaFault) as caught:
                call(data)
            assert caught.value.fault_class in ("no_frames", "no_streams")


# What a full probe hears and sees


def test_black_and_silent() -> None:
    dark = [np.full((48, 64, 3), 8, np.uint8)] * 12
    quiet = 5e-4 * media_files.tone(1.2) / 0.5
    times = [i / 10 for i in range(12)]
    found = media.probe(
        media_files.encode(
            times=times, images=dark, wave=quiet, format="matroska", audio_codec="flac"
        )
    )
    assert found.video is not None
    assert found.audio is not None
    assert found.video["black"]
    assert found.audio["silent"]
    lamp = [*dark[:11], patches()[:48, :64]]
    click = quiet.copy()
    click[9000] = 0.01
    found = media.probe(
        media_files.encode(
            times=times, images=lamp, wave=click, format="matroska", audio_codec="flac"
        )
    )
    assert found.video is not None
    assert found.audio is not None
    assert not found.audio["silent"]
