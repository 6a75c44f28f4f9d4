"""A look at one record's media: some seconds of frames and sound, and a small mp4.

The mp4 is made of what was decoded, upright and mono: it shows what training reads,
plays in any browser, and has a bound on its size.
"""

import dataclasses
import io
import math

import numpy as np
from jaxtyping import Float32, UInt8

from mmssl.data import encode, survey
from mmssl.data.clips import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.faults import MediaFault
from mmssl.data.pool import DecodePool
from mmssl.data.records import Record

SECONDS = 20.0
"""Of a longer clip, so much is shown."""

RATE = 16_000
"""Samples per second of the sound."""

_FRAMES = 240
_FPS = 25.0
_PIXELS = 320 * 180
_SIDES = (16, 640)
# Of 20 s, 360 kB at most, or 480 kB in base64.
_VIDEO_BITS = 112_000
_AUDIO_BITS = 32_000


@dataclasses.dataclass(frozen=True)
class Preview:
    """Decoded media of [start, end) seconds.

    Attributes:
      start: seconds.
      end: seconds.
      frames: RGB at `fps` from `start`, or None; upright, with square pixels.
      fps: frames per second.
      audio: mono at `RATE` Hz, or None.
      faults: modality, or "media", to the class of fault met now.
    """

    start: float
    end: float
    frames: UInt8[np.ndarray, "f h w 3"] | None = None
    fps: float = 0.0
    audio: Float32[np.ndarray, "s"] | None = None
    faults: dict[str, str] = dataclasses.field(default_factory=dict)

    def mp4(self) -> bytes:
        """It as a file; b"" where there is neither picture nor sound."""
        if self.frames is None and self.audio is None:
            return b""
        out = io.BytesIO()
        encode.encode_mp4(
            out,
            video=self.frames,
            fps=self.fps,
            audio=self.audio,
            rate=RATE,
            crf=27,
            most=_VIDEO_BITS,
            sound=_AUDIO_BITS,
        )
        return out.getvalue()


def preview(
    record: Record,
    pool: DecodePool,
    *,
    around: float | None = None,
    seconds: float = SECONDS,
) -> Preview:
    """Decodes a record's media: all of it, or `seconds` where it is longer.

    Args:
      record: as the dataset has it.
      pool: decodes.
      around: seconds; what the part is centred on. None: the middle.
      seconds: at most.

    Returns:
      Also where nothing decodes: `faults` says why.
    """
    probe = survey.known_probe(record)
    # A still has no duration to speak of.
    length = float(probe.get("duration") or 0.1)
    shown = min(length, seconds)
    middle = length / 2 if around is None else around
    start = min(max(middle - shown / 2, 0.0), length - shown)
    found = Preview(start, start + shown)
    if not record.media:
        return found
    video, audio, fps = None, None, 0.0
    if stream := probe.get("video"):
        fps = min(stream.get("fps") or _FPS, _FPS, _FRAMES / shown)
        count = max(1, math.floor(shown * fps))
        size = _small(stream["height"], stream["width"] * stream.get("aspect", 1.0))
        times = tuple(start + i / fps for i in range(count))
        video = VideoRequest(times, size=size, fit="resize")
    if probe.get("audio"):
        audio = AudioRequest(start, max(1, round(shown * RATE)), RATE)
    if video is None and audio is None:
        return found
    try:
        clip = pool.clip(record.media, ClipRequest(video, audio))
    except MediaFault as fault:
        return dataclasses.replace(found, faults={"media": fault.fault_class})
    return dataclasses.replace(
        found, frames=clip.video, fps=fps, audio=clip.audio, faults=dict(clip.faults)
    )


def _small(height: float, width: float) -> tuple[int, int]:
    """A size of the same shape with few pixels, both sides even as H.264 wants."""
    scale = min(1.0, math.sqrt(_PIXELS / (height * width)))
    low, high = _SIDES
    even = [max(low, min(high, 2 * round(n * scale / 2))) for n in (height, width)]
    return even[0], even[1]
