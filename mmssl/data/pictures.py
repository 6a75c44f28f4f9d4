"""Decoded frames as they are stored: at which times, upright, and of what size."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mmssl.data import container
from mmssl.data.render import graph
from mmssl.data.storage import Storage

_EPS = 1e-6
_TURNS = {1: ("transpose=cclock",), 2: ("hflip=", "vflip="), 3: ("transpose=clock",)}


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to encode."""

    format: str
    video: str
    audio: str
    pixels: str
    range: str


FORMS = {
    "h264": Form("mp4", "libx264", "aac", "yuv420p", "tv"),
    "jpeg": Form("matroska", "mjpeg", "flac", "yuvj420p", "pc"),
}


class Pictures:
    """Decoded frames to those that are stored: (piece, seconds in it, frame).

    Args:
      streams: of the media.
      storage: how they are stored.
      period: seconds for which the last frame of a stored file is shown.
    """

    def __init__(
        self, streams: container.Streams, storage: Storage, period: float
    ) -> None:
        self._period = period
        self._step = 1 / storage.fps if storage.fps else None
        self._length = storage.segment or float("inf")
        self._scale = _Scale(streams, storage)
        self._shown: tuple[float, Any] | None = None
        self._end = self._next = 0.0
        self._number = 0

    def push(
        self, time: float, frame: Any, seconds: float
    ) -> Iterator[tuple[int, float, Any]]:
        """What is stored before this frame is shown."""
        if self._shown is not None:
            yield from self._until(time)
        else:
            # As in decoding, the first frame stands for the time before it.
            self._number = max(0, int((time + _EPS) // self._length))
            time = self._next = self._start()
        if self._step is None:
            self._next = max(time, self._next)
        self._shown, self._end = (time, frame), time + max(seconds, 2 * _EPS)

    def flush(self) -> Iterator[tuple[int, float, Any]]:
        """The frames that are left."""
        if self._shown is not None:
            yield from self._until(self._end, last=True)

    def _start(self) -> float:
        return self._number * self._length if self._number else 0.0

    def _until(
        self, stop: float, last: bool = False
    ) -> Iterator[tuple[int, float, Any]]:
        assert self._shown is not None
        image = None
        while self._next < stop - _EPS:
            image = self._scale(self._shown[1]) if image is None else image
            while self._next >= (self._number + 1) * self._length - _EPS:
                self._number += 1
            yield self._number, max(0.0, self._next - self._start()), image
            # Its next time: on the grid of the piece, or where the next piece begins.
            then = (self._number + 1) * self._length
            if self._step is not None:
                count = round((self._next - self._start()) / self._step) + 1
                then = min(then, self._start() + count * self._step)
            held = min(then, stop) - self._next
            ends = last or then <= stop + _EPS
            if self._step is None and ends and held > 1.5 * self._period:
                # A file ends one period after its last frame, so this one comes again.
                again = self._next + held - self._period
                yield self._number, again - self._start(), image
            self._next = then
            if self._step is None and then >= stop - _EPS:
                self._next = stop
                return


class _Scale:
    """Frames upright, of square pixels, of one size, progressive, without alpha."""

    def __init__(self, streams: container.Streams, storage: Storage) -> None:
        video = streams.video
        self._aspect = float(video.sample_aspect_ratio or 1) if video else 1.0
        self._short = storage.short_side
        self._form = FORMS[storage.kind]
        self._size: tuple[int, int] | None = None
        self._key: tuple[Any, ...] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> Any:
        turns = container.quarter_turns(frame)
        form, woven = frame.format.name, frame.interlaced_frame
        key = (frame.width, frame.height, form, turns, woven)
        if key != self._key:
            wide, tall = self._fit(frame, turns)
            if turns % 2:
                wide, tall = tall, wide
            sized = f"w={wide}:h={tall}:flags=bicubic:threads=1"
            colour = f"out_range={self._form.range}:out_color_matrix=smpte170m"
            self._graph = graph(
                frame,
                f"scale={sized}:{colour}",
                f"format=pix_fmts={self._form.pixels}",
                *_TURNS.get(turns, ()),
            )
            self._key = key
        frame.pts = None
        self._graph.push(frame)
        return self._graph.pull()

    def _fit(self, frame: Any, turns: int) -> tuple[int, int]:
        """(width, height) of all frames: those of the first."""
        if self._size is None:
            wide, tall = frame.width * self._aspect, float(frame.height)
            if turns % 2:
                wide, tall = tall, wide
            part = min(1.0, self._short / min(wide, tall)) if self._short else 1.0
            # Chroma has half the resolution, so both are even.
            even = [max(2, 2 * round(side * part / 2)) for side in (wide, tall)]
            self._size = even[0], even[1]
        return self._size
