"""Pure decode functions: probe, frames at given times, audio of a window.

Time 0 is the container's start, common to video and audio. Untrusted media goes
through `pool.DecodePool`, which runs these functions in limited processes.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from mmssl.data import container
from mmssl.data.clips import AudioRequest, Clip, ClipDecoder, ClipRequest, VideoRequest
from mmssl.data.faults import FAULTS, Limits, MediaFault
from mmssl.data.render import Light
from mmssl.data.timeline import Stamps, mono

__all__ = [
    "FAULTS",
    "AudioRequest",
    "Clip",
    "ClipRequest",
    "Limits",
    "MediaFault",
    "Probe",
    "VideoRequest",
    "decode_audio",
    "decode_clip",
    "decode_video",
    "probe",
]

Source = bytes | str | os.PathLike[str]

SILENCE = 1e-3
"""Sound that never exceeds it (-60 dB of full scale) is silence."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a media item holds; JSON-able by `dataclasses.asdict`, back by `Probe(**d)`.

    Attributes:
      duration: seconds; the end of the last frame or sample after a full probe, the
        header's claim (0.0 = none) otherwise.
      video: None, or width and height of upright frames, frames (count; 0 = not
        counted), fps, start (seconds), rotation (quarter turns applied), errors
        (packets that did not decode); after a full probe also black (no frame has
        anything lit) and aspect (width over height of an upright frame's pixels).
      audio: None, or rate (Hz), channels, samples (count; 0 = not counted), start,
        errors; after a full probe also silent (no sound above -60 dB of full scale)
        and drift (seconds by which timestamps run ahead of the samples).
      faults: modality to fault class: `corrupt` beside a usable modality, another
        class for a stream that exists and cannot be used.
      format: the container's name.
    """

    duration: float
    video: dict[str, Any] | None
    audio: dict[str, Any] | None
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    format: str = ""


def probe(src: Source, *, full: bool = True, limits: Limits | None = None) -> Probe:
    """Describes media; `full` decodes everything, because headers lie.

    Raises:
      MediaFault: nothing in it can be used.
    """
    limits = limits or Limits()
    with container.opened(src, limits) as streams:
        return full_probe(streams, limits) if full else _header(streams)


def _header(streams: container.Streams) -> Probe:
    box = streams.container
    v, a = streams.video, streams.audio
    video = audio = None
    if v is not None:
        context = v.codec_context
        video = {
            "width": context.width,
            "height": context.height,
            "frames": 0,
            "fps": float(v.average_rate or v.guessed_rate or 0),
            "start": _start(v, streams),
            "rotation": 0,
            "errors": 0,
        }
    if a is not None:
        audio = {
            "rate": a.codec_context.sample_rate,
            "channels": a.codec_context.channels,
            "samples": 0,
            "start": _start(a, streams),
            "errors": 0,
        }
    seconds = (box.duration or 0) / 1e6
    return Probe(seconds, video, audio, dict(streams.faults), box.format.name)


def _start(stream: Any, streams: container.Streams) -> float:
    if stream.start_time is None:
        return 0.0
    return float(stream.start_time * stream.time_base) - streams.origin


class Sink(Protocol):
    """What else is done with what a full probe decodes."""

    def picture(self, time: float, frame: Any, seconds: float) -> None:
        """The next frame: its time, in ascending order, and how long it is shown."""

    def sound(self, time: float | None, frame: Any) -> None:
        """The next samples, and their time if they are stamped."""


def full_probe(
    streams: container.Streams, limits: Limits, sink: Sink | None = None
) -> Probe:
    """Decodes everything once and describes it; `sink` gets what was decoded.

    Raises:
      MediaFault: nothing in it can be used, or it is beyond the limits.
    """
    counts = _Counts(streams, limits, sink)
    for kind, frame in container.frames(streams, wanted={"video", "audio"}):
        if kind == "video":
            counts.add_video(frame)
        else:
            counts.add_audio(frame)
    return counts.finish()


class _Counts:
    """Adds up a full decode."""

    def __init__(
        self, streams: container.Streams, limits: Limits, sink: Sink | None
    ) -> None:
        self._streams = streams
        self._limits = limits
        self._sink = sink
        self._stamps = Stamps(streams) if streams.video is not None else None
        self._light = Light()
        self._times: list[float] = []
        self._end = 0.0
        self._audio_end = 0.0
        self._video: dict[str, Any] | None = None
        self._audio: dict[str, Any] | None = None

    def add_video(self, frame: Any) -> None:
        assert self._stamps is not None
        container.check_pixels(frame.width, frame.height, self._limits)
        if self._video is None:
            turns = container.quarter_turns(frame)
            size = (frame.width, frame.height)
            width, height = size[::-1] if turns % 2 else size
            self._video = {"width": width, "height": height, "rotation": turns}
            aspect = float(self._streams.video.sample_aspect_ratio or 1)
            self._video["aspect"] = 1 / aspect if turns % 2 else aspect
        self._shown(self._stamps.push(frame))

    def _shown(self, frames: list[tuple[float, Any]]) -> None:
        assert self._stamps is not None
        for time, frame in frames:
            seconds = self._stamps.seconds(frame)
            self._light.look(time, frame)
            self._times.append(time)
            self._reach(time + seconds)
            if self._sink is not None:
                self._sink.picture(time, frame, seconds)

    def add_audio(self, frame: Any) -> None:
        time = container.frame_seconds(frame)
        if time is not None:
            time -= self._streams.origin
        if self._audio is None:
            self._audio = {
                "rate": frame.sample_rate,
                "channels": len(frame.layout.channels),
                "samples": 0,
                "start": 0.0 if time is None else time,
                "silent": True,
            }
            self._audio_end = self._audio["start"]
        if self._audio["silent"]:
            self._audio["silent"] = bool(np.abs(mono(frame)).max(initial=0) <= SILENCE)
        begin = self._audio_end if time is None else time
        self._audio_end = begin + frame.samples / frame.sample_rate
        self._audio["samples"] += frame.samples
        self._reach(self._heard())
        if self._sink is not None:
            self._sink.sound(time, frame)

    def _heard(self) -> float:
        """Where the audio ends by the count of its samples."""
        assert self._audio is not None
        return self._audio["start"] + self._audio["samples"] / self._audio["rate"]

    def _reach(self, time: float) -> None:
        self._end = max(self._end, time)
        if self._end > self._limits.duration:
            raise MediaFault("too_long", f"more than {self._limits.duration:.0f} s")

    def finish(self) -> Probe:
        streams, faults = self._streams, dict(self._streams.faults)
        if self._video is not None and self._stamps is not None:
            self._shown(self._stamps.flush())
            times = self._times
            span = times[-1] - times[0]
            rate = (len(times) - 1) / span if span > 0 else 0.0
            self._video |= {"frames": len(times), "fps": rate, "start": times[0]}
            self._video["black"] = not self._light.seen
        if self._audio is not None:
            self._audio["drift"] = round(self._audio_end - self._heard(), 6)
        for kind, found in (("video", self._video), ("audio", self._audio)):
            errors = streams.errors.get(kind, 0)
            if found is not None:
                found["errors"] = errors
            if errors:
                faults[kind] = "corrupt"
            elif found is None and getattr(streams, kind) is not None:
                faults[kind] = "no_frames"
        if self._video is None and self._audio is None:
            cause = next(iter(faults.values()))
            raise MediaFault(cause, f"nothing decodes: {faults}")
        name = streams.container.format.name
        return Probe(self._end, self._video, self._audio, faults, name)


def decode_clip(
    src: Source, request: ClipRequest, *, limits: Limits | None = None
) -> Clip:
    """Decodes frames and audio of one window in one pass over the packets.

    A window that starts late is reached by a seek to the keyframe before it.

    Raises:
      MediaFault: the media as a whole cannot be read, or nothing that was asked for
        can be had although the media has a stream for it.
    """
    limits = limits or Limits()
    starts = [request.video.times[0]] if request.video else []
    starts += [request.audio.start] if request.audio else []
    seek = min(starts, default=0.0)
    if seek > container.SEEK_AFTER:
        try:
            with container.opened(src, limits) as streams:
                return ClipDecoder(streams, request, limits).run(seek)
        except container.SeekMissedError:
            pass
    with container.opened(src, limits) as streams:
        return ClipDecoder(streams, request, limits).run(None)


def decode_video(
    src: Source,
    times: Sequence[float],
    *,
    size: tuple[int, int] | None = None,
    fit: str = "crop",
) -> UInt8[np.ndarray, "f h w 3"]:
    """The upright frames on screen at `times` (ascending seconds), RGB.

    Args:
      src: media bytes or a path. Trusted: it is decoded in this process.
      times: the last frame with timestamp <= time is taken; the first frame also
        stands for times before it, the last for times after it.
      size: (h, w), or None for the frames' own.
      fit: as in `VideoRequest`.

    Raises:
      MediaFault: also where the media has no video (no_streams).
    """
    request = VideoRequest(tuple(times), size=size, fit=fit)
    frames = decode_clip(src, ClipRequest(video=request)).video
    if frames is None:
        raise MediaFault("no_streams", "no video stream")
    return frames


def decode_audio(
    src: Source, *, start: float, duration: float, rate: int
) -> Float32[np.ndarray, "s"]:
    """Mono samples of [start, start + duration) seconds at `rate` Hz, in [-1, 1].

    Zeros where the audio has not begun or is over.

    Raises:
      MediaFault: also where the media has no audio (no_streams).
    """
    request = AudioRequest(start, round(duration * rate), rate)
    wave = decode_clip(src, ClipRequest(audio=request)).audio
    if wave is None:
        raise MediaFault("no_streams", "no audio stream")
    return wave
