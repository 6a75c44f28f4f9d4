"""Media encoded anew at build: smaller, cut, quick to decode. Runs in the workers.

One pass decodes a file, describes it, and encodes what is stored. What comes out are
plain files: upright frames of square pixels, mono sound, time 0 at the first of both.
"""

import contextlib
import gc
import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from mmssl.data import container, media
from mmssl.data.faults import Limits, MediaFault
from mmssl.data.media import Probe, Source
from mmssl.data.pictures import FORMS, Pictures
from mmssl.data.storage import AAC_RATES, Piece, Storage
from mmssl.data.timeline import MonoStream

_TICKS = 90_000
_EPS = 1e-6


def transcode(
    src: Source, storage: Storage, *, limits: Limits | None = None
) -> tuple[Probe, list[Piece]]:
    """Decodes all of a file once; encodes it as `storage` says.

    A last piece shorter than a second and than half a segment is left out, unless it is
    the only one.

    Returns:
      What the file holds, and its pieces; one where `storage` does not cut.

    Raises:
      MediaFault: as a full probe; too_large: what is stored exceeds `output_mb`.
    """
    limits = limits or Limits()
    with container.opened(src, limits) as streams:
        cutter = _Cutter(streams, storage, limits)
        probe = media.full_probe(streams, limits, cutter)
        parts = list(cutter.finish())
    length = storage.segment or probe.duration
    pieces = []
    for number, data in parts:
        found = media.probe(data, limits=limits)
        # To the cut, not to the last frame: no time, and no text, is between pieces.
        start, end = number * length, min((number + 1) * length, probe.duration)
        pieces.append(Piece(start, end, data, found))
    if len(pieces) > 1 and pieces[-1].end - pieces[-1].start < min(1.0, length / 2):
        pieces.pop()
    return probe, pieces


class _Track:
    """One stream of one piece, in a file of its own.

    Attributes:
      media: the file's bytes, once no frame follows.
    """

    def __init__(self, format: str, codec: str, **settings: Any) -> None:
        self._out = io.BytesIO()
        self._box: Any = _writer(self._out, format)
        options, rate = settings.pop("options", {}), settings.pop("rate")
        self._stream: Any = self._box.add_stream(codec, rate=rate, options=options)
        for name, value in settings.items():
            setattr(self._stream.codec_context, name, value)
        self.media = b""

    def encode(self, frame: Any) -> int:
        """Takes the next frame; None: no frame follows. Returns bytes written."""
        packets = self._stream.encode(frame)
        size = sum(packet.size for packet in packets)
        self._box.mux(packets)
        if frame is None:
            self._box.close()
            self.media = self._out.getvalue()
            self._box = self._stream = None
            # PyAV's objects refer to each other, so an encoder stays until a
            # collection; by their number, a few, that would be long from now.
            gc.collect()
        return size


def _writer(out: io.BytesIO, format: str) -> Any:
    import av

    # Matroska would have a random number in it.
    return av.open(out, "w", format=format, options={"fflags": "+bitexact"})


class _Cutter:
    """Encodes what a full probe decodes, piece by piece."""

    def __init__(
        self, streams: container.Streams, storage: Storage, limits: Limits
    ) -> None:
        self._form = FORMS[storage.kind]
        self._room = limits.output_mb * 2**20
        rate = streams.video and streams.video.average_rate
        self._fps = Fraction(storage.fps or rate or 25).limit_denominator(1000)
        self._pictures = Pictures(streams, storage, float(1 / self._fps))
        self._sound = _Sound(storage, limits)
        self._tracks: dict[str, dict[int, _Track]] = {"video": {}, "audio": {}}

    def picture(self, time: float, frame: Any, seconds: float) -> None:
        for shown in self._pictures.push(time, frame, seconds):
            self._show(*shown)

    def sound(self, time: float | None, frame: Any) -> None:
        for heard in self._sound.push(time, frame):
            self._play(*heard)

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """The number and the bytes of each piece that has anything in it."""
        for shown in self._pictures.flush():
            self._show(*shown)
        for heard in self._sound.flush():
            self._play(*heard)
        video, audio = self._tracks["video"], self._tracks["audio"]
        for tracks in (video, audio):
            if tracks:
                self._encode(tracks[max(tracks)], None)
        for number in sorted(video.keys() | audio.keys()):
            parts = [video[number].media] if number in video else []
            # What was filled in is no sound.
            parts += [audio[number].media] if number in self._sound.heard else []
            if parts:
                yield number, _joined(self._form.format, parts)

    def _encode(self, track: _Track, frame: Any) -> None:
        self._room -= track.encode(frame)
        if self._room < 0:
            raise MediaFault("too_large", "what would be stored of it")

    def _track(self, kind: str, number: int, **settings: Any) -> _Track:
        tracks = self._tracks[kind]
        if number not in tracks:
            if tracks:
                self._encode(tracks[max(tracks)], None)
            codec = getattr(self._form, kind)
            tracks[number] = _Track(self._form.format, codec, **settings)
        return tracks[number]

    def _show(self, number: int, time: float, image: Any) -> None:
        settings: dict[str, Any] = {
            "width": image.width,
            "height": image.height,
            "pix_fmt": self._form.pixels,
            "time_base": Fraction(1, _TICKS),
        }
        if self._form.video == "libx264":
            settings["gop_size"] = max(1, round(self._fps))  # a second: seeks are cheap
            # Without no-mbtree=1:threads=1 x264 gives other bytes at every run.
            settings["options"] = {
                "preset": "veryfast",
                "crf": "23",
                "x264-params": "no-mbtree=1:threads=1",
            }
        else:
            settings["qmin"] = settings["qmax"] = 3
        track = self._track("video", number, rate=self._fps, **settings)
        image.pts, image.time_base = round(time * _TICKS), Fraction(1, _TICKS)
        self._encode(track, image)

    def _play(self, number: int, at: int, wave: np.ndarray) -> None:
        import av

        rate = self._sound.rate
        settings: dict[str, Any] = {"layout": "mono", "rate": rate}
        if self._form.audio == "aac":
            settings["bit_rate"] = min(96_000, 4 * rate)
        track = self._track("audio", number, **settings)
        frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        self._encode(track, frame)


def _joined(format: str, tracks: list[bytes]) -> bytes:
    """Files of one stream as one file."""
    import av

    if len(tracks) == 1:
        return tracks[0]
    out = io.BytesIO()
    packets = []
    with contextlib.ExitStack() as stack:
        sources: list[Any] = [
            stack.enter_context(av.open(io.BytesIO(track))) for track in tracks
        ]
        box = stack.enter_context(_writer(out, format))
        for source in sources:
            target = box.add_stream_from_template(source.streams[0])
            for packet in source.demux():
                if packet.size:
                    packet.stream = target
                    packets.append(packet)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            box.mux(packet)
    return out.getvalue()


class _Sound:
    """Decoded sound to what is stored: (piece, samples into it, samples).

    Attributes:
      rate: Hz of what is stored.
      heard: numbers of the pieces in which there was sound.
    """

    _CHUNK = 2**20

    def __init__(self, storage: Storage, limits: Limits) -> None:
        self._storage = storage
        self._limits = limits
        self._mono = MonoStream()
        self._length = storage.segment or float("inf")
        self._resampler: Any = None
        self._read: int | None = None
        self._written = self._number = 0
        self.rate = 0
        self.heard: set[int] = set()

    def push(
        self, time: float | None, frame: Any
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """What is known once these samples are."""
        import soxr

        wave = self._mono(frame)
        source = self._mono.rate
        if not self.rate:
            self.rate = self._storage.audio_rate or self._nearest(source)
            if self.rate != source:
                self._resampler = soxr.ResampleStream(source, self.rate, 1)
        gap = self._mono.gap(time, self._read)
        self._read = self._read or 0
        if (self._read + gap) / source > self._limits.duration:
            raise MediaFault("too_long", "by the timestamps of its sound")
        while gap > 0:
            silence = np.zeros(min(gap, self._CHUNK), np.float32)
            self._read += len(silence)
            gap -= len(silence)
            yield from self._written_of(silence)
        wave = wave[-gap:] if gap < 0 else wave
        if len(wave):
            ends = (self._read / source, (self._read + len(wave) - 1) / source)
            first, last = (int((end + _EPS) // self._length) for end in ends)
            self.heard.update(range(first, last + 1))
            self._read += len(wave)
            yield from self._written_of(wave)

    def flush(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """What the resampler still holds."""
        if self._resampler is not None:
            yield from self._written_of(np.zeros(0, np.float32), last=True)

    def _nearest(self, rate: int) -> int:
        rates = AAC_RATES if self._storage.kind == "h264" else (rate, 48_000)
        return min((r for r in rates if rate <= r <= 192_000), default=48_000)

    def _written_of(
        self, wave: np.ndarray, last: bool = False
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        if self._resampler is not None:
            wave = self._resampler.resample_chunk(wave, last=last)
        wave = np.clip(np.nan_to_num(wave), -1, 1).astype(np.float32, copy=False)
        while len(wave):
            room = len(wave)
            if self._storage.segment is not None:
                while self._written >= self._edge(self._number + 1):
                    self._number += 1
                room = self._edge(self._number + 1) - self._written
            at = self._written - self._edge(self._number)
            yield self._number, at, wave[:room]
            self._written += len(wave[:room])
            wave = wave[room:]

    def _edge(self, number: int) -> int:
        return round(number * self._length * self.rate) if number else 0
