"""Frames and samples to an mp4 file that plays anywhere."""

import os
from fractions import Fraction
from typing import IO, Any

import numpy as np
from jaxtyping import Float32, UInt8


def encode_mp4(
    out: str | os.PathLike[str] | IO[bytes],
    *,
    video: UInt8[np.ndarray, "f h w 3"] | None = None,
    fps: float = 25.0,
    audio: Float32[np.ndarray, "s"] | None = None,
    rate: int = 16_000,
    crf: int = 20,
    most: int | None = None,
    sound: int = 64_000,
) -> None:
    """Writes H.264 video with AAC mono sound; the same input gives the same bytes.

    Args:
      out: an .mp4 file to write, or an open one.
      video: RGB frames with even height and width; None leaves the stream out.
      fps: frames per second.
      audio: samples in [-1, 1] at `rate` Hz; None leaves the stream out.
      rate: samples per second.
      crf: x264's constant quality; lower is better and larger.
      most: bits per second that the video may take; None: whatever `crf` needs.
      sound: bits per second of the sound.
    """
    import av

    target: Any = os.fspath(out) if isinstance(out, str | os.PathLike) else out
    with av.open(target, "w", format="mp4") as container:
        images: Any = None
        voice: Any = None
        if video is not None:
            # Without no-mbtree=1:threads=1 x264 gives other bytes at every run.
            extra = "no-mbtree=1:threads=1"
            if most is not None:
                extra += f":vbv-maxrate={most // 1000}:vbv-bufsize={most // 1000}"
            options = {"preset": "veryfast", "crf": str(crf), "x264-params": extra}
            step = Fraction(fps).limit_denominator(1000)
            images = container.add_stream("libx264", rate=step, options=options)
            images.height, images.width = video.shape[1:3]
            images.pix_fmt = "yuv420p"
            images.gop_size = 12  # seeks stay cheap
        if audio is not None:
            voice = container.add_stream("aac", rate=rate, layout="mono")
            voice.bit_rate = sound
        if video is not None:
            for pixels in video:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(images.encode(frame))
            container.mux(images.encode(None))
        if audio is not None:
            samples = av.AudioFrame.from_ndarray(audio[None], "fltp", "mono")
            samples.sample_rate = rate
            samples.pts = 0
            container.mux(voice.encode(samples))
            container.mux(voice.encode(None))
