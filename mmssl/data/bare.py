"""The decode limit: PyAV alone on the same windows, in as many processes.

No loader can be faster with this decoder: what a window needs is decoded and turned to
arrays, and nothing is cropped, changed, checked or passed on.
"""

import contextlib
import io
import multiprocessing
import time as clock
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmssl.data.clips import ClipRequest
from mmssl.data.container import SEEK_AFTER
from mmssl.errors import UserError

Job = tuple[bytes, ClipRequest]
"""Encoded media, and what of it is wanted."""

_given: list[tuple[Callable[[Job], Any], Job]] = []  # of a decoding process


def decode(job: Job) -> int:
    """Frames and samples of one window as arrays, which are dropped.

    Every frame up to the window's end is decoded; those that are wanted become RGB of
    the wanted size, by bilinear scaling of the whole frame. Sound stays at its own rate
    and layout.

    Returns:
      Arrays made.
    """
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    data, request = job
    video, audio = request.video, request.audio
    scaler, made, wanted = VideoReformatter(), 0, 0
    box: Any
    with av.open(io.BytesIO(data)) as box:
        ends: dict[int, float] = {}
        if video is not None and box.streams.video:
            ends[box.streams.video[0].index] = video.times[-1]
        if audio is not None and box.streams.audio:
            ends[box.streams.audio[0].index] = audio.start + audio.seconds
        streams: list[Any] = [box.streams[index] for index in ends]
        for stream in streams:
            stream.codec_context.thread_count = 1
        start = min(video.times[0] if video else 1e9, audio.start if audio else 1e9)
        if start > SEEK_AFTER:
            box.seek(int(start * 1e6))
        for packet in box.demux(streams):
            index = packet.stream.index
            for frame in packet.decode() if index in ends else ():
                time = frame.time or 0.0
                if isinstance(frame, av.AudioFrame):
                    frame.to_ndarray()
                    made += 1
                elif video is not None and time >= video.times[wanted]:
                    high, wide = video.size or (frame.height, frame.width)
                    shown = scaler.reformat(
                        frame, wide, high, "rgb24", interpolation=Interpolation.BILINEAR
                    )
                    shown.to_ndarray()
                    made, wanted = made + 1, min(wanted + 1, len(video.times) - 1)
                if time >= ends.get(index, 0.0):
                    ends.pop(index, None)
            if not ends:
                break
    return made


def _take(work: Callable[[Job], Any], jobs: Sequence[Job]) -> None:
    _given[:] = [(work, job) for job in jobs]


def _run(index: int) -> float:
    begin = clock.process_time()
    work, job = _given[index]
    work(job)
    return clock.process_time() - begin


class Decoders:
    """Processes that decode jobs they were given, and nothing else."""

    def __init__(self, processes: Any, jobs: int) -> None:
        self._processes = processes
        self._jobs = jobs

    def seconds(self, *, timeout: float) -> tuple[float, float]:
        """How long all jobs take: on the clock, and of CPU.

        Raises:
          UserError: longer than `timeout` seconds, or a job failed.
        """
        begin = clock.perf_counter()
        try:
            work = self._processes.map_async(_run, range(self._jobs), chunksize=1)
            spent = sum(work.get(timeout=timeout))
        except Exception as error:
            raise UserError(
                f"the clips do not decode without the loader's protection: {error!r}; "
                "look at them with `mmssl data validate`"
            ) from error
        return clock.perf_counter() - begin, spent


@contextlib.contextmanager
def decoders(
    jobs: Sequence[Job], processes: int, *, work: Callable[[Job], Any] = decode
) -> Iterator[Decoders]:
    """Starts so many processes; media is trusted: a crash is not survived.

    Args:
      jobs: done by every call of `Decoders.seconds`.
      processes: that share them.
      work: done with each: a function of a module.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _take, (work, list(jobs))) as pool:
        found = Decoders(pool, len(jobs))
        found.seconds(timeout=300)  # imports the decoder in every process
        yield found
