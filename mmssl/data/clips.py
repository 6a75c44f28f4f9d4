"""One clip of one media item: what to decode, what came out, and the decoding."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from mmssl.data import container
from mmssl.data.faults import Limits, MediaFault
from mmssl.data.render import Renderer
from mmssl.data.timeline import AudioWindow, FramePicker, Stamps
from mmssl.data.video import WHOLE, Box, check_region


@dataclasses.dataclass(frozen=True)
class VideoRequest:
    """Frames to decode.

    Attributes:
      times: ascending seconds, one per frame.
      size: (h, w) of the output; None keeps the upright frame's own.
      region: the part of the upright frame that is used: (top, left, height, width)
        as fractions; crops are taken inside it.
      fit: "crop" (largest centred box of the output's aspect) or "resize" (whole
        frame, aspect not kept). Ignored where `attempts` are given.
      attempts: draws for `video.random_box`.
      flip: mirror left and right.
    """

    times: tuple[float, ...]
    size: tuple[int, int] | None = None
    region: Box = WHOLE
    fit: str = "crop"
    attempts: tuple[tuple[float, float, float, float], ...] = ()
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.times or list(self.times) != sorted(self.times):
            raise ValueError(f"times must be ascending and not empty: {self.times}")
        if self.fit not in ("crop", "resize"):
            raise ValueError(f"fit must be 'crop' or 'resize', found {self.fit!r}")
        check_region(self.region)


@dataclasses.dataclass(frozen=True)
class AudioRequest:
    """A window of mono audio: `samples` at `rate` Hz from `start` seconds."""

    start: float
    samples: int
    rate: int

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


@dataclasses.dataclass(frozen=True)
class ClipRequest:
    """What to decode of one media item, in one pass."""

    video: VideoRequest | None = None
    audio: AudioRequest | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `dataclasses.asdict` would copy each number by itself."""
        parts = {"video": self.video, "audio": self.audio}
        return {name: part and vars(part) for name, part in parts.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ClipRequest":
        """The inverse of `to_json`."""
        video, audio = value["video"], value["audio"]
        if video is not None:
            video = VideoRequest(**{k: _tuples(v) for k, v in video.items()})
        return cls(video, None if audio is None else AudioRequest(**audio))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Clip:
    """Decoded media.

    Attributes:
      video: [f, h, w, 3] RGB, or None.
      audio: [s] in [-1, 1], or None.
      faults: modality to fault class. A modality that was asked for and is neither
        decoded nor here has no stream in the media, which is no fault.
    """

    video: UInt8[np.ndarray, "f h w 3"] | None
    audio: Float32[np.ndarray, "s"] | None
    faults: dict[str, str] = dataclasses.field(default_factory=dict)


class ClipDecoder:
    """Fills one request from the frames of one pass."""

    def __init__(
        self, streams: container.Streams, request: ClipRequest, limits: Limits
    ) -> None:
        self._streams = streams
        self._request = request
        self._faults = {k: v for k, v in streams.faults.items() if getattr(request, k)}
        self._wanted: set[str] = set()
        self._until = 0.0
        video, audio = request.video, request.audio
        if video is not None and streams.video is not None:
            aspect = float(streams.video.sample_aspect_ratio or 1)
            self._stamps = Stamps(streams)
            self._picker = FramePicker(video.times, Renderer(video, limits, aspect))
            self._wanted.add("video")
            self._until = video.times[-1]
        if audio is not None and streams.audio is not None:
            self._window = AudioWindow(audio, streams.origin)
            self._wanted.add("audio")
            self._until = max(self._until, audio.start + audio.seconds)

    def run(self, seek: float | None) -> Clip:
        """Decodes; `seek` as in `container.frames`.

        Raises:
          SeekMissedError: the first frame is later than the window.
          MediaFault: as `decode_clip`.
        """
        asked = frozenset(self._wanted)
        takers = {"video": self._take_video, "audio": self._take_audio}
        for kind, frame in container.frames(
            self._streams, wanted=self._wanted, until=self._until, seek=seek
        ):
            self._guard(kind, takers[kind], frame, seek is not None)
        enders = {"video": self._end_video, "audio": self._end_audio}
        found: dict[str, np.ndarray] = {}
        for kind in sorted(asked - set(self._faults)):
            try:
                found[kind] = enders[kind]()
            except MediaFault as fault:
                broken = fault.fault_class == "no_frames" and self._streams.errors[kind]
                self._faults[kind] = "corrupt" if broken else fault.fault_class
        if not found and self._faults:
            raise MediaFault(next(iter(self._faults.values())), f"{self._faults}")
        return Clip(found.get("video"), found.get("audio"), self._faults)

    def _guard(self, kind: str, take: Any, frame: Any, sought: bool) -> None:
        try:
            if take(frame, sought):
                self._wanted.discard(kind)
        except MediaFault as fault:
            self._faults[kind] = fault.fault_class
            self._wanted.discard(kind)

    def _take_video(self, frame: Any, sought: bool) -> bool:
        self._pick(self._stamps.push(frame))
        _check_landing(sought, self._picker.first, self._picker.start)
        return self._picker.done

    def _take_audio(self, frame: Any, sought: bool) -> bool:
        self._window.push(frame)
        _check_landing(sought, self._window.first, self._window.start)
        return self._window.done

    def _pick(self, frames: list[tuple[float, Any]]) -> None:
        for time, frame in frames:
            self._picker.push(time, frame, self._stamps.seconds(frame))

    def _end_video(self) -> UInt8[np.ndarray, "f h w 3"]:
        self._pick(self._stamps.flush())
        self._picker.finish()
        return np.stack(self._picker.images)

    def _end_audio(self) -> Float32[np.ndarray, "s"]:
        return self._window.finish()


def _check_landing(sought: bool, first: float | None, start: float) -> None:
    if sought and first is not None and first > start:
        raise container.SeekMissedError(f"landed at {first:.2f} s, not {start:.2f} s")
