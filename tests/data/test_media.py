"""Frames and samples by time, whatever the container says."""

import dataclasses
import socket
import threading

import numpy as np
import pytest

from mmssl.data import container, media
from mmssl.data.media import (
    FAULTS,
    AudioRequest,
    ClipRequest,
    Limits,
    MediaFault,
    VideoRequest,
)
from tests.data import media_files


def indices(data: bytes, times: list[float]) -> list[int]:
    return [media_files.index_of(f) for f in media.decode_video(data, times)]


def test_the_frame_shown_at_a_time_is_the_last_one_stamped_before_it() -> None:
    stamps = [0.0, 0.04, 0.5, 0.52, 1.3, 1.34]  # variable frame rate
    data = media_files.encode(times=stamps)
    wanted = [0.0, 0.039, 0.04, 0.2, 0.499, 0.5, 0.51, 0.52, 1.2999, 1.3, 1.34, 1.5]
    expected = [max(i for i, t in enumerate(stamps) if t <= w) for w in wanted]
    assert indices(data, wanted) == expected


def test_times_before_the_first_and_after_the_last_frame_hold_them() -> None:
    data = media_files.encode(times=[0.4, 0.8, 1.2], wave=media_files.tone(2.0))
    assert indices(data, [0.0, 0.39, 0.8, 1.9]) == [0, 0, 1, 2]


def test_a_common_offset_of_all_stamps_is_no_time() -> None:
    times = [10 + i / 25 for i in range(25)]
    data = media_files.encode(times=times, format="mpegts")
    assert indices(data, [0.0, 0.4, 0.96]) == [0, 10, 24]


def test_seeking_gives_the_frames_and_samples_of_sequential_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = media_files.encode(
        times=[i / 10 for i in range(120)], wave=media_files.tone(12.0), gop=15
    )
    request = ClipRequest(
        VideoRequest((8.0, 8.25, 9.0)), AudioRequest(8.0, 16000, 16000)
    )
    sought = media.decode_clip(data, request)
    monkeypatch.setattr(container, "SEEK_AFTER", 1e9)
    plain = media.decode_clip(data, request)
    assert sought.video is not None
    assert [media_files.index_of(f) for f in sought.video] == [
        80 % 28,
        82 % 28,
        90 % 28,
    ]
    np.testing.assert_array_equal(sought.video, plain.video)
    np.testing.assert_allclose(sought.audio, plain.audio, atol=1e-3)


def test_a_late_first_frame_after_a_seek_falls_back_to_the_start() -> None:
    # The only keyframe is the first: whatever the index says, frames must be right.
    data = media_files.encode(times=[i / 10 for i in range(80)], gop=1000)
    assert indices(data, [6.0, 7.0]) == [60 % 28, 70 % 28]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_is_applied(degrees: int) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255  # top left
    data = media_files.encode(times=[0.0, 0.1], images=[image] * 2, rotation=degrees)
    plain = media_files.encode(times=[0.0, 0.1], images=[image] * 2)
    (stored,) = media.decode_video(plain, [0.0])
    (upright,) = media.decode_video(data, [0.0])
    shown = {tuple(np.argwhere(upright[..., 0] > 128).mean(0).round().astype(int))}
    # set_display_rotation turns counter-clockwise, as np.rot90 does.
    wanted = np.rot90(stored, degrees // 90)
    assert upright.shape == wanted.shape
    assert shown == {
        tuple(np.argwhere(wanted[..., 0] > 128).mean(0).round().astype(int))
    }
    found = media.probe(data)
    assert found.video is not None
    assert (found.video["height"], found.video["width"]) == wanted.shape[:2]
    # A crop is placed in the upright frame, too.
    box = ((0.25, 1.0, 0.0, 0.0),)
    request = VideoRequest((0.0,), size=wanted.shape[:2], attempts=box)
    clip = media.decode_clip(data, ClipRequest(video=request))
    assert clip.video is not None
    corner = wanted[: wanted.shape[0] // 2, : wanted.shape[1] // 2]
    assert abs(clip.video[0].mean() - corner.mean()) < 8


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_flip_mirrors_the_upright_frame(degrees: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    image = image.repeat(8, axis=0).repeat(8, axis=1)
    data = media_files.encode(times=[0.0, 0.1], images=[image] * 2, rotation=degrees)
    size = (64, 48) if degrees % 180 == 0 else (48, 64)
    request = media.VideoRequest((0.0, 0.1), size=size)
    plain, flipped = (
        media.decode_clip(data, media.ClipRequest(dataclasses.replace(request, flip=f)))
        for f in (False, True)
    )
    assert plain.video is not None
    assert flipped.video is not None
    np.testing.assert_array_equal(flipped.video, plain.video[:, :, ::-1])
    assert (flipped.video != plain.video).any()


def test_sizes_and_fits() -> None:
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, 24:72] = 200  # the centred square
    data = media_files.encode(times=[0.0], images=[image])
    cropped = media.decode_video(data, [0.0], size=(24, 24))
    assert cropped.shape == (1, 24, 24, 3)
    assert abs(cropped[:, :, 2:-2].mean() - 200) < 6
    squeezed = media.decode_video(data, [0.0], size=(24, 24), fit="resize")
    assert abs(squeezed.mean() - 100) < 12
    assert squeezed[0, :, :4].mean() < 16


def test_frames_without_stamps_follow_the_frame_rate() -> None:
    data = media_files.encode(times=[i / 25 for i in range(20)], format="h264")
    assert indices(data, [0.0, 0.2, 0.4]) == [0, 5, 10]


@pytest.mark.parametrize("source_rate", [8000, 16000, 44100, 48000])
def test_audio_is_resampled_in_time(source_rate: int) -> None:
    data = media_files.encode(
        wave=media_files.tone(2.0, rate=source_rate),
        rate=source_rate,
        format="matroska",
        audio_codec="flac",
    )
    wave = media.decode_audio(data, start=0.5, duration=1.0, rate=16000)
    assert wave.shape == (16000,)
    assert wave.dtype == np.float32
    expected = media_files.tone(1.5)[8000:]
    inner = slice(400, -400)
    shifts = [
        float(np.mean((np.roll(wave, k) - expected)[inner] ** 2)) for k in range(-3, 4)
    ]
    assert int(np.argmin(shifts)) == 3  # not even one sample late or early
    assert shifts[3] < 1e-6


def test_a_click_is_heard_when_its_frame_is_seen() -> None:
    rate, wave = 48000, np.zeros(48000 * 2, np.float32)
    wave[round(1.2 * rate) : round(1.2 * rate) + 480] = 0.9
    data = media_files.encode(times=[i / 10 for i in range(20)], wave=wave, rate=rate)
    clip = media.decode_clip(
        data, ClipRequest(VideoRequest((1.0, 1.2)), AudioRequest(1.0, 8000, 16000))
    )
    assert clip.video is not None
    assert clip.audio is not None
    assert media_files.index_of(clip.video[1]) == 12
    onset = int(np.argmax(np.abs(clip.audio) > 0.3)) / 16000
    assert onset == pytest.approx(0.2, abs=2e-3)


def test_audio_that_ends_early_or_starts_late_is_silent_there() -> None:
    data = media_files.encode(
        times=[i / 10 for i in range(30)], wave=media_files.tone(1.0)
    )
    wave = media.decode_audio(data, start=0.5, duration=1.5, rate=16000)
    assert np.abs(wave[:7000]).max() > 0.4
    assert np.abs(wave[10000:]).max() == 0
    late = media_files.encode(
        times=[i / 10 for i in range(30)],
        wave=media_files.tone(1.0),
        wave_start=1.0,
        format="matroska",
        audio_codec="flac",
    )
    wave = media.decode_audio(late, start=0.0, duration=2.0, rate=16000)
    assert np.abs(wave[:15900]).max() < 1e-3
    assert np.abs(wave[16100:]).max() > 0.4


def test_a_window_after_the_end_is_a_fault_of_that_modality() -> None:
    data = media_files.encode(
        times=[i / 10 for i in range(60)], wave=media_files.tone(1.0)
    )
    request = ClipRequest(VideoRequest((3.0, 3.5)), AudioRequest(3.0, 8000, 16000))
    clip = media.decode_clip(data, request)
    assert clip.video is not None
    assert clip.audio is None
    assert clip.faults == {"audio": "ended"}
    with pytest.raises(MediaFault, match="ended"):
        media.decode_video(data, [30.0])


def test_a_missing_stream_is_no_fault_of_a_clip() -> None:
    data = media_files.encode(wave=media_files.tone(1.0))
    request = ClipRequest(VideoRequest((0.0,)), AudioRequest(0.0, 800, 16000))
    clip = media.decode_clip(data, request)
    assert clip.video is None
    assert clip.audio is not None
    assert clip.faults == {}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty"),
        (bytes(range(256)) * 64, "unreadable"),
        (b"\x00" * 4096, "unreadable"),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n", "forbidden"),
    ],
)
def test_what_is_no_media_has_a_fault_class(data: bytes, fault: str) -> None:
    with pytest.raises(MediaFault) as caught:
        media.probe(data)
    assert caught.value.fault_class == fault
    assert FAULTS[fault] in str(caught.value)


def test_missing_files_and_unknown_classes(tmp_path: object) -> None:
    with pytest.raises(MediaFault) as caught:
        media.probe(f"{tmp_path}/nothing.mp4")
    assert caught.value.fault_class == "missing"
    with pytest.raises(ValueError, match="no such class"):
        MediaFault("odd", "no such class")


def test_limits_on_pixels_and_duration() -> None:
    data = media_files.encode(times=[i / 10 for i in range(20)])
    for limits, fault in (
        (Limits(pixels=48 * 64 - 1), "too_large"),
        (Limits(duration=1.5), "too_long"),
    ):
        with pytest.raises(MediaFault) as caught:
            media.probe(data, limits=limits)
        assert caught.value.fault_class == fault
    big = VideoRequest(tuple(i / 10 for i in range(20)), size=(512, 512))
    with pytest.raises(MediaFault) as caught:
        media.decode_clip(data, ClipRequest(video=big), limits=Limits(output_mb=1))
    assert caught.value.fault_class == "too_large"


def test_a_truncated_file_gives_what_is_there_or_a_fault() -> None:
    data = media_files.encode(
        times=[i / 25 for i in range(100)], format="matroska", gop=5
    )
    found = media.probe(data[: len(data) // 2])
    assert found.video is not None
    assert 5 < found.video["frames"] < 95
    with pytest.raises(MediaFault):
        media.probe(media_files.encode(times=[0.0, 0.1])[:200])


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{url}'\n",
    "sdp": "v=0\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\na=rtpmap:0 PCMU/8000\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'type="static" mediaPresentationDuration="PT1S" '
        'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet>'
        '<Representation id="1" mimeType="video/mp4" bandwidth="1">'
        "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
}
SUFFIXES = {"hls": "m3u8", "concat": "ffconcat", "sdp": "sdp", "dash": "mpd"}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("target", ["http", "file"])
def test_a_playlist_opens_nothing(kind: str, target: str, tmp_path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(media_files.encode(times=[0.0, 0.1], format="mpegts"))
    connected = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]

        def listen() -> None:
            try:
                server.accept()[0].close()
                connected.set()
            except TimeoutError:
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        url = f"http://127.0.0.1:{port}/a.ts" if target == "http" else f"file:{secret}"
        text = PLAYLISTS[kind].format(url=url, port=port)
        # FFmpeg trusts a name that looks like a playlist's more than its content.
        named = tmp_path / f"list.{SUFFIXES[kind]}"
        named.write_text(text)
        for src in (text.encode(), named):
            with pytest.raises(MediaFault) as caught:
                media.probe(src)
            assert caught.value.fault_class in ("forbidden", "unreadable")
        thread.join()
    assert not connected.is_set()
