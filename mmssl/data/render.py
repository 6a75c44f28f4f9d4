"""A decoded frame to upright RGB pixels of one size: crop, scale, convert, rotate."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from mmssl.data import video
from mmssl.data.container import check_pixels, quarter_turns
from mmssl.data.faults import Limits, MediaFault

if TYPE_CHECKING:
    from mmssl.data.clips import VideoRequest


def _lines(frame: Any) -> int:
    return -(-frame.height // 2) if frame.interlaced_frame else frame.height


def graph(frame: Any, *steps: str) -> Any:
    """A libavfilter graph for frames such as this one, without threads.

    An interlaced frame is two moments woven into one: the graph takes the lines of the
    first, so half the height and no combs.

    Args:
      frame: decoded; the graph takes frames of its size and pixel format.
      *steps: "filter=options", one after the other.
    """
    import av.filter

    made = av.filter.Graph()
    made.threads = 1
    source = made.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base,
    )
    field = ("field=type=top",) if frame.interlaced_frame else ()
    filters = [made.add(*step.split("=", 1)) for step in (*field, *steps)]
    made.link_nodes(source, *filters, made.add("buffersink"))
    made.configure()
    return made


class Renderer:
    """Renders the frames of one clip with one crop.

    `aspect` is the width over the height of a stored pixel.

    The crop, the scaling and the colour conversion are one libavfilter graph: the
    crop is pointer arithmetic, and only the pixels that are kept are converted.
    """

    def __init__(self, request: "VideoRequest", limits: Limits, aspect: float) -> None:
        self._request = request
        self._limits = limits
        self._aspect = aspect
        self._size = request.size
        self._key: tuple[Any, ...] | None = None
        self._graph: Any = None
        self._budget = limits.output_mb * 2**20

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "h w 3"]:
        turns = quarter_turns(frame)
        woven = frame.interlaced_frame
        key = (frame.width, frame.height, frame.format.name, turns, woven)
        if key != self._key:
            self._build(frame, turns)
            self._key = key
        frame.pts = None  # the graph is timeless: stamps were used before this
        self._graph.push(frame)
        image = self._graph.pull().to_ndarray()
        self._budget -= image.nbytes
        if self._budget < 0:
            raise MediaFault("too_large", f"> {self._limits.output_mb} MB of frames")
        return np.rot90(image, turns) if turns else image

    def _build(self, frame: Any, turns: int) -> None:
        check_pixels(frame.width, frame.height, self._limits)
        wide, tall = frame.width, frame.height
        shape = (wide, tall) if turns % 2 else (tall, wide)
        # A clip has one size: that of its first frame, unless one was asked for.
        self._size = self._size or shape
        high, across = float(frame.height), frame.width * self._aspect
        if turns % 2:
            high, across = across, high
        box = video.unrotated(crop_box(self._request, high, across), turns)
        top, height = _span(box[0], box[2], _lines(frame))
        left, width = _span(box[1], box[3], wide)
        out_h, out_w = self._size[::-1] if turns % 2 else self._size
        self._graph = graph(
            frame,
            f"crop=w={width}:h={height}:x={left}:y={top}:exact=1",
            f"scale=w={out_w}:h={out_h}:flags=bilinear:threads=1",
            *(["vflip" if turns % 2 else "hflip"] if self._request.flip else []),
            "format=pix_fmts=rgb24",
        )


class Light:
    """Whether a video ever shows anything: looks at some frames, then two a second.

    A frame is lit if 2% of it is brighter than 10% of the range, as in FFmpeg's filter
    blackdetect.

    Attributes:
      seen: a lit frame was there.
    """

    _FIRST, _EVERY, _LEVEL, _SHARE, _SIDE = 16, 0.5, 26, 0.02, 32

    def __init__(self) -> None:
        self.seen = False
        self._looked = 0
        self._next = float("-inf")
        self._shrink: Any = None

    def look(self, time: float, frame: Any) -> None:
        """Takes the next frame; free once a lit one was seen."""
        if self.seen or time < self._next:
            return
        from av.video.reformatter import VideoReformatter

        self._shrink = self._shrink or VideoReformatter()
        side, self._looked = self._SIDE, self._looked + 1
        self._next = time + (self._EVERY if self._looked >= self._FIRST else 0.0)
        grey = self._shrink.reformat(frame, side, side, "gray", interpolation="POINT")
        self.seen = bool((grey.to_ndarray() > self._LEVEL).mean() >= self._SHARE)


def crop_box(request: "VideoRequest", tall: float, wide: float) -> video.Box:
    """The part of an upright frame that a request keeps.

    Args:
      request: which frames, and the draws of their crop.
      tall: the frame's height, in display units.
      wide: its width, in the same units: non-square pixels count.
    """
    size = request.size
    if size is None:
        return request.region
    tall, wide = tall * request.region[2], wide * request.region[3]
    box = video.WHOLE
    if request.attempts:
        box = video.random_box(request.attempts, tall, wide, size)
    elif request.fit == "crop":
        box = video.centre_box(tall, wide, size)
    return video.within(request.region, box)


def _span(start: float, part: float, total: int) -> tuple[int, int]:
    """First pixel and number of pixels of a fraction; at least one, inside."""
    count = max(1, min(total, round(part * total)))
    return max(0, min(round(start * total), total - count)), count
