"""Untrusted containers: opened without network or side files, streams, packets.

Only worker processes may call this on media that is not known to be good.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any

from mmssl.data.faults import Limits, MediaFault

FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,"
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,m4v,mjpeg,mp3,mpeg,mpegts,mpegvideo,mxf,"
    "nut,obu,ogg,rm,vc1,w64,wav,wtv,wv,y4m,yuv4mpegpipe,"
    "bmp_pipe,jpeg_pipe,png_pipe,webp_pipe"
)
"""Stills (video of one frame), and containers that hold their own data. Playlists (hls,
dash, concat, sdp) do not."""

# A window that starts later than this is sought; earlier ones cost less to decode.
SEEK_AFTER = 4.0
_SEEK_EARLIER = 0.1
# Interleaving may be loose; a stream silent for this long after the window is over.
_SLACK = 5.0
_MAX_ERRORS = 1000


class SeekMissedError(Exception):
    """The container's index led past the window; decode from the start instead."""


@dataclasses.dataclass
class Streams:
    """The streams in use, the time they share, and what went wrong with each.

    Attributes:
      container: PyAV's, open.
      video: the first video stream that is not cover art.
      audio: the first audio stream.
      origin: timestamp in seconds that is time 0 of the media.
      faults: modality to fault class, for streams that exist.
      errors: modality to number of packets that did not decode.
    """

    container: Any
    video: Any = None
    audio: Any = None
    origin: float = 0.0
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, int] = dataclasses.field(default_factory=dict)


def _fault(error: Exception) -> MediaFault:
    import av.error

    if isinstance(error, MediaFault):
        return error
    if isinstance(error, (MemoryError, av.error.MemoryError)):
        return MediaFault("memory", str(error))
    return MediaFault("unreadable", f"{type(error).__name__}: {error}")


def _source(src: bytes | str | os.PathLike[str]) -> io.BufferedIOBase:
    if isinstance(src, bytes):
        if not src:
            raise MediaFault("empty")
        return io.BytesIO(src)
    try:
        file = open(src, "rb")  # noqa: SIM115  closed by `opened`
    except OSError as error:
        raise MediaFault("missing", str(error)) from error
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise MediaFault("empty", str(src))
    return file


@contextlib.contextmanager
def opened(src: bytes | str | os.PathLike[str], limits: Limits) -> Iterator[Streams]:
    """Opens media through Python's own reader, so that no URL is ever resolved.

    Raises:
      MediaFault: missing, empty, unreadable, forbidden, no_streams, too_large,
        too_long, memory.
    """
    import av
    import av.error

    file = _source(src)
    with contextlib.closing(file):
        try:
            container = av.open(
                file,
                **_metadata(av),
                options={
                    # Nothing but the bytes already in hand: an empty list would mean
                    # "everything", and no demuxer needs a protocol to read them.
                    "protocol_whitelist": "none",
                    "format_whitelist": FORMATS,
                    # One more than allowed: some demuxers leave out what is beyond.
                    "max_streams": str(limits.streams + 1),
                },
            )
        except av.error.ArgumentError as error:
            raise MediaFault("forbidden", str(error)) from error
        except (av.error.FFmpegError, MemoryError, ValueError) as error:
            raise _fault(error) from error
        with contextlib.closing(container):
            yield _select(container, limits)


def _metadata(av: Any) -> dict[str, Any]:
    """Tags in a wrong encoding are no reason to refuse media: av 18 must be told so."""
    return {"metadata_errors": "replace"} if int(av.__version__[:2]) < 19 else {}


def _select(container: Any, limits: Limits) -> Streams:
    streams = Streams(container)
    found = list(container.streams)
    if len(found) > limits.streams:
        raise MediaFault("too_large", f"more than {limits.streams} streams")
    start = (container.start_time or 0) / 1e6
    # A slightly negative start is codec priming, before the media's own time 0.
    streams.origin = 0.0 if -0.5 < start < 0 else start
    seconds = (container.duration or 0) / 1e6
    if seconds > limits.duration:
        raise MediaFault("too_long", f"{seconds:.0f} s > {limits.duration:.0f} s")
    for kind in ("video", "audio"):
        chosen = next((s for s in found if s.type == kind and not _cover(s)), None)
        if chosen is None:
            continue
        if chosen.codec_context is None:
            streams.faults[kind] = "no_decoder"
            continue
        # One process per core already; decoder threads would only compete.
        chosen.codec_context.thread_count = 1
        streams.errors[kind] = 0
        setattr(streams, kind, chosen)
    if streams.video is None and streams.audio is None:
        cause = next(iter(streams.faults.values()), "no_streams")
        raise MediaFault(cause, f"streams: {[s.type for s in found]}")
    if streams.video is not None:
        context = streams.video.codec_context
        check_pixels(context.width, context.height, limits)
    return streams


def _cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raises MediaFault("too_large") for frames beyond the limit."""
    if width * height > limits.pixels:
        raise MediaFault(
            "too_large", f"{width}x{height} frames > {limits.pixels} pixels"
        )


def frames(
    streams: Streams,
    *,
    wanted: set[str],
    until: float | None = None,
    seek: float | None = None,
) -> Iterator[tuple[str, Any]]:
    """(modality, decoded frame) in container order; bad packets are counted.

    Args:
      streams: as `opened` gives.
      wanted: modalities still to decode; the caller may remove some on the way, and
        iteration ends when none is left.
      until: media time in seconds after which packets no longer matter.
      seek: media time to start from: at the keyframe before it.
    """
    import av.error

    kinds = {
        getattr(streams, kind).index: kind
        for kind in ("video", "audio")
        if kind in wanted and getattr(streams, kind) is not None
    }
    if not kinds:
        return
    if seek is not None:
        try:
            target = int((streams.origin + seek - _SEEK_EARLIER) * 1e6)
            streams.container.seek(max(target, 0))
        except av.error.FFmpegError as error:
            raise SeekMissedError(str(error)) from error
    ticks = {k: float(getattr(streams, k).time_base) for k in kinds.values()}
    packets = streams.container.demux([getattr(streams, k) for k in kinds.values()])
    while wanted:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, MemoryError) as error:
            if isinstance(error, (MemoryError, av.error.MemoryError)):
                raise _fault(error) from error
            for kind in kinds.values():
                streams.errors[kind] += 1
            return
        if packet is None:
            return
        kind = kinds[packet.stream.index]
        if kind not in wanted:
            continue
        if until is not None and packet.dts is not None:
            time = packet.dts * ticks[kind] - streams.origin
            if time > until + _SLACK:
                return
        try:
            decoded = packet.decode()
        except (av.error.FFmpegError, MemoryError) as error:
            if isinstance(error, (MemoryError, av.error.MemoryError)):
                raise _fault(error) from error
            streams.errors[kind] += 1
            if streams.errors[kind] > _MAX_ERRORS:
                return
            continue
        for frame in decoded:
            yield kind, frame


def quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that bring a decoded frame upright."""
    return round(frame.rotation / 90) % 4


def frame_seconds(frame: Any) -> float | None:
    """Timestamp of a decoded frame in seconds, or None."""
    return frame.time
