"""Decoded frames and samples laid on the media's time line, by timestamps alone."""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from mmssl.data.audio import mono_gains
from mmssl.data.container import Streams, frame_seconds
from mmssl.data.faults import MediaFault

if TYPE_CHECKING:
    from mmssl.data.clips import AudioRequest

# Timestamps within this are equal: they come from rounding of rational numbers.
_EPS = 1e-6
# Permuted stamps (B-frames packed in AVI) are put in order over so many frames.
_DEPTH = 4
# Media may be this much shorter than asked for before a window counts as ended.
_GRACE = 1.0

# PyAV reads past the planes of so many channels, and may crash.
_MANY = 8


class Stamps:
    """Gives video frames, which come in display order, ascending timestamps.

    Stamps may be permuted among neighbours (sorted back), repeated or jumping
    backwards (held), or missing (continued at the stream's frame rate).
    """

    def __init__(self, streams: Streams) -> None:
        rate = streams.video.average_rate or streams.video.guessed_rate
        self._step = 1.0 / float(rate) if rate else 0.0
        self._tick = float(streams.video.time_base)
        self._origin = streams.origin
        self._frames: deque[Any] = deque()
        self._times: list[float] = []
        self._known: float | None = None
        self._last = float("-inf")

    def seconds(self, frame: Any) -> float:
        """How long a frame is shown: its own duration, else one frame period."""
        return frame.duration * self._tick if frame.duration else self._step

    def push(self, frame: Any) -> list[tuple[float, Any]]:
        """(media time, frame) of the frames whose time is settled now.

        Raises:
          MediaFault: no_times.
        """
        time = frame_seconds(frame)
        if time is not None:
            time -= self._origin
        elif self._known is None:
            time = 0.0
        elif self._step > 0:
            time = self._known + self._step
        else:
            raise MediaFault("no_times", "a frame without a timestamp")
        self._known = time
        heapq.heappush(self._times, time)
        self._frames.append(frame)
        return [self._pop()] if len(self._frames) > _DEPTH else []

    def flush(self) -> list[tuple[float, Any]]:
        """The frames that are left."""
        return [self._pop() for _ in range(len(self._frames))]

    def _pop(self) -> tuple[float, Any]:
        self._last = max(self._last, heapq.heappop(self._times))
        return self._last, self._frames.popleft()


class FramePicker:
    """For each wanted time, the frame on screen then: the last with stamp <= time.

    The first frame also stands for the time before it, the last for the time after.
    """

    def __init__(self, times: Sequence[float], render: Any) -> None:
        self._wanted = times
        self._render = render
        self._shown: tuple[float, Any] | None = None
        self._image: np.ndarray | None = None
        self._period = _GRACE
        self.start = times[0]
        self.images: list[np.ndarray] = []
        self.first: float | None = None

    @property
    def done(self) -> bool:
        return len(self.images) == len(self._wanted)

    def push(self, time: float, frame: Any, seconds: float) -> None:
        """Takes the next frame in time order; `seconds` is how long it lasts."""
        if self.first is None:
            self.first = time
        while not self.done and self._wanted[len(self.images)] < time - _EPS:
            self._take(frame if self._shown is None else self._shown[1])
        if self._shown is None or self._shown[1] is not frame:
            self._image = None
        self._shown = (time, frame)
        self._period = max(seconds, _GRACE)

    def finish(self) -> None:
        """No frame follows.

        Raises:
          MediaFault: no_frames, ended.
        """
        if self._shown is None:
            raise MediaFault("no_frames")
        time, frame = self._shown
        if not self.images and self._wanted[0] > time + self._period + _EPS:
            raise MediaFault(
                "ended", f"last frame at {time:.2f} s, asked from {self._wanted[0]:.2f}"
            )
        while not self.done:
            self._take(frame)

    def _take(self, frame: Any) -> None:
        image = self._render(frame) if self._image is None else self._image
        self._image = image
        self.images.append(image)


def _packed(frame: Any) -> list[Any]:
    import av

    form = frame.format.packed.name
    return av.AudioResampler(form, frame.layout, frame.sample_rate).resample(frame)


def _gains(layout: Any) -> np.ndarray:
    if layout.name.endswith("channels"):  # "6 channels": no positions
        return np.full(layout.nb_channels, 1 / layout.nb_channels)
    return mono_gains([channel.name for channel in layout.channels])


def mono(frame: Any) -> Float32[np.ndarray, "s"]:
    """The samples of a frame of any layout and sample format; see `mono_gains`."""
    count = frame.layout.nb_channels
    if frame.format.is_planar and count >= _MANY:
        (frame,) = _packed(frame)
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, count).T
    wave = data[0] if count == 1 else _gains(frame.layout).astype(np.float32) @ data
    if data.dtype.kind == "f":
        return wave.astype(np.float32, copy=False)
    middle = 128.0 if data.dtype.kind == "u" else 0.0
    full = 2.0 ** (8 * data.dtype.itemsize - 1)
    return ((wave - middle) / full).astype(np.float32)


class MonoStream:
    """Mono samples of one audio stream, at the rate of its first frame.

    Attributes:
      rate: Hz; 0 before the first frame.
    """

    # Stamps are rounded (1 ms in Matroska): smaller steps than this are no gap.
    _JITTER = 0.05

    def __init__(self) -> None:
        self.rate = 0
        self._resampler: Any = None

    def __call__(self, frame: Any) -> Float32[np.ndarray, "s"]:
        """The samples of the next frame, of any rate, layout and sample format."""
        import soxr

        self.rate = self.rate or frame.sample_rate
        wave = mono(frame)
        if frame.sample_rate == self.rate:
            return wave
        rates = (frame.sample_rate, self.rate)
        if self._resampler is None or self._resampler[0] != rates:
            self._resampler = (rates, soxr.ResampleStream(*rates, 1))
        return self._resampler[1].resample_chunk(wave)

    def gap(self, time: float | None, at: int | None) -> int:
        """Samples between `at` and a frame stamped `time`; below 0: they overlap.

        Args:
          time: seconds from where samples are counted; None: no stamp, no gap.
          at: number of the next sample; None: none was there before.
        """
        if time is None:
            return 0
        found = round(time * self.rate) - (at or 0)
        small = at is not None and abs(found) <= self._JITTER * self.rate
        return 0 if small else found


class AudioWindow:
    """Mono samples of [start, start + seconds), placed by timestamps, gaps silent."""

    # Context on both sides, so that the resampler's edges fall outside the window.
    _CONTEXT = 0.05

    def __init__(self, request: "AudioRequest", origin: float) -> None:
        self.start = request.start
        self._samples = request.samples
        self._rate = request.rate
        self._origin = origin
        self._margin = 0.0
        self._buffer = np.zeros(0, np.float32)
        self._next: int | None = None
        self._mono = MonoStream()
        self._end = float("-inf")
        self.first: float | None = None

    @property
    def done(self) -> bool:
        return self._next is not None and self._next >= len(self._buffer)

    def push(self, frame: Any) -> None:
        """Takes a decoded frame of any rate, layout and sample format."""
        wave = self._mono(frame)
        if self._next is None:
            # A whole number of samples at both rates, or the window would be shifted.
            common = math.gcd(self._mono.rate, self._rate)
            self._margin = math.ceil(self._CONTEXT * common) / common
            seconds = self._samples / self._rate + 2 * self._margin
            self._buffer = np.zeros(int(np.ceil(seconds * self._mono.rate)), np.float32)
        stamp = frame_seconds(frame)
        place = None
        if stamp is not None:
            time = stamp - self._origin
            self.first = time if self.first is None else self.first
            place = time - self.start + self._margin
        elif self._next is None:
            place = self._margin - self.start
        at = (self._next or 0) + self._mono.gap(place, self._next)
        low, high = max(at, 0), min(at + len(wave), len(self._buffer))
        if low < high:
            self._buffer[low:high] = wave[low - at : high - at]
        self._next = at + len(wave)
        self._end = max(self._end, self._next / self._mono.rate - self._margin)

    def finish(self) -> Float32[np.ndarray, "s"]:
        """The window at the asked rate, in [-1, 1], zeros where there is no audio.

        Raises:
          MediaFault: no_frames, ended.
        """
        import soxr

        if self._next is None:
            raise MediaFault("no_frames")
        if self._end <= 0:
            raise MediaFault("ended", f"{-self._end:.2f} s before the window")
        wave = np.clip(np.nan_to_num(self._buffer), -1, 1)
        if self._mono.rate != self._rate:
            wave = soxr.resample(wave, self._mono.rate, self._rate, quality="HQ")
        skip = round(self._margin * self._rate)
        out = np.zeros(self._samples, np.float32)
        wave = wave[skip : skip + self._samples]
        out[: len(wave)] = wave
        return np.clip(out, -1, 1, out=out)
