"""Small media made for tests: every frame and sample says when it is."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def level(index: int) -> int:
    """Grey level of frame `index`: far enough apart to survive compression."""
    return 16 + 8 * (index % 28)


def index_of(frame: np.ndarray) -> int:
    """Which frame this is, from its grey level."""
    return round((float(frame.mean()) - 16) / 8)


def encode(
    *,
    times: Sequence[float] = (),
    size: tuple[int, int] = (48, 64),
    images: Sequence[np.ndarray] | None = None,
    wave: np.ndarray | None = None,
    rate: int = 16000,
    wave_start: float = 0.0,
    format: str = "mp4",
    codec: str = "libx264",
    audio_codec: str = "aac",
    rotation: int = 0,
    gop: int = 250,
    cover: bool = False,
) -> bytes:
    """A file with grey frames at `times` seconds (1 ms stamps) and a mono wave."""
    out = io.BytesIO()
    with av.open(out, "w", format=format) as box:
        video = audio = None
        if len(times):
            video = box.add_stream(codec, rate=25)
            video.height, video.width = size if images is None else images[0].shape[:2]
            video.pix_fmt = "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000)
            video.time_base = Fraction(1, 1000)
            video.codec_context.gop_size = gop
            if codec == "libx264":
                video.options = {"preset": "ultrafast", "bf": "0", "qp": "8"}
            if rotation:
                video.set_display_rotation(rotation)
        if wave is not None:
            audio = box.add_stream(audio_codec, rate=rate, layout="mono")
        for i, time in enumerate(times):
            image = np.full((*size, 3), level(i), np.uint8)
            image = image if images is None else images[i]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            box.mux(video.encode(frame))
        if video is not None:
            box.mux(video.encode(None))
        if audio is not None and wave is not None:
            for at in range(0, len(wave), 1024):
                part = wave[None, at : at + 1024].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = at + round(wave_start * rate)
                box.mux(audio.encode(frame))
            box.mux(audio.encode(None))
    return out.getvalue()


def tone(seconds: float, *, rate: int = 16000, hz: float = 440.0) -> np.ndarray:
    """A sine of amplitude 0.5."""
    return (
        0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)
    ).astype(np.float32)


def wav_header(data_bytes: int, *, rate: int = 48000) -> bytes:
    """The 44 bytes before 16-bit mono samples."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + data_bytes, b"WAVE", b"fmt ", 16, 1, 1),
        *(rate, 2 * rate, 2, 16, b"data", data_bytes),
    )
