"""Media with one odd property each, written by PyAV."""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from tests.data import media_files


def pictures(
    images: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    source: str = "rgb24",
    format: str = "matroska",
    options: Mapping[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
    stamps: Sequence[int] | None = None,
    container: Mapping[str, str] | None = None,
) -> bytes:
    """Frames 0.1 s apart, or at `stamps` (ms) in any order: one packet a frame."""
    out = io.BytesIO()
    quality = {"qp": "4", "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(
        out, "w", format=format, container_options=dict(container or {})
    ) as box:
        video: Any = box.add_stream(
            codec, rate=10, options=quality | dict(options or {})
        )
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.codec_context.qmin, video.codec_context.qmax = 1, 2
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        packets = []
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format=source)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            packets += video.encode(frame)
        packets += video.encode(None)
        for i, packet in enumerate(packets):
            if stamps is not None:
                packet.time_base = Fraction(1, 1000)
                packet.dts, packet.pts = i, stamps[i]
                packet.duration = 0
            box.mux(packet)
    return out.getvalue()


def sounds(
    waves: Sequence[np.ndarray],
    *,
    layouts: Sequence[str],
    rate: int = 16000,
    codec: str = "flac",
    sample_format: str = "flt",
    format: str = "matroska",
) -> bytes:
    """One audio stream for each wave [c, s]."""
    out = io.BytesIO()
    with av.open(out, "w", format=format) as box:
        streams: list[Any] = [
            box.add_stream(codec, rate=rate, layout=layout) for layout in layouts
        ]
        for stream, wave, layout in zip(streams, waves, layouts, strict=True):
            # Packed: PyAV cannot make planar frames of eight channels.
            data = wave.T.reshape(1, -1)
            data = np.ascontiguousarray(data)
            frame = av.AudioFrame.from_ndarray(data, sample_format, layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            box.mux(stream.encode(frame))
            box.mux(stream.encode(None))
    return out.getvalue()


def cover(format: str, codec: str, layout: str) -> bytes:
    """A second of sound, and a picture of the album."""
    out = io.BytesIO()
    with av.open(out, "w", format=format) as box:
        audio: Any = box.add_stream(codec, rate=44100, layout=layout)
        art: Any = box.add_stream("mjpeg", rate=1)
        art.height = art.width = 64
        art.pix_fmt, art.disposition = "yuvj420p", Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), "rgb24")
        box.mux(art.encode(image.reformat(format="yuvj420p")))
        box.mux(art.encode(None))
        wave = media_files.tone(1.0, rate=44100)
        wave = np.stack([wave] * len(audio.layout.channels))
        frame = av.AudioFrame.from_ndarray(wave, "fltp", layout)
        frame.sample_rate = 44100
        box.mux(audio.encode(frame))
        box.mux(audio.encode(None))
    return out.getvalue()
