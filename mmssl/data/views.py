"""From one record to one example: a window in time, its media, its text.

Owns what is sampled; knows nothing of batches, order or devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmssl.data import audio as audio_lib
from mmssl.data import text as text_lib
from mmssl.data import video as video_lib
from mmssl.data.clips import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.faults import MediaFault
from mmssl.data.pool import DecodePool
from mmssl.data.records import Record, example_id

Example = dict[str, Any]
"""One sample; see `View.__call__`."""


@dataclasses.dataclass(frozen=True)
class VideoView:
    """Frames of a window, evenly spaced. Augmentation: the same for all frames.

    Attributes:
      frames: f; the frame rate is f / seconds.
      size: (h, w).
      region: the part of the frame that is used, (top, left, height, width) as
        fractions, for example where the mouth is; crops are taken inside it.
      fit: without random crop: "crop" (largest centred box) or "resize" (all of the
        frame, aspect not kept).
      crop_area: range of the random crop's share of the frame; None: no random crop.
      crop_aspect: range of its aspect, relative to that of `size`.
      flip: probability of mirroring.
      colour: probability of colour jitter.
      brightness, contrast, saturation, hue: strengths of the jitter (VATT B6).
    """

    frames: int = 32
    size: tuple[int, int] = (224, 224)
    region: video_lib.Box = video_lib.WHOLE
    fit: str = "crop"
    crop_area: tuple[float, float] | None = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.8
    brightness: float = 32 / 255
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self.size) < 1 or len(self.size) != 2:
            raise ValueError(f"frames {self.frames}, size {self.size}: expected >= 1")
        if self.fit not in ("crop", "resize"):
            raise ValueError(f"fit must be 'crop' or 'resize', found {self.fit!r}")
        video_lib.check_region(self.region)


@dataclasses.dataclass(frozen=True)
class AudioView:
    """Mono samples of a window.

    Attributes:
      rate: samples per second.
      noise: standard deviation of added Gaussian noise, as a share of the peak.
    """

    rate: int = 48000
    noise: float = 0.01

    def __post_init__(self) -> None:
        if self.rate < 1 or self.noise < 0:
            raise ValueError(
                f"rate must be at least 1 Hz and noise not negative; found rate "
                f"{self.rate}, noise {self.noise}"
            )


@dataclasses.dataclass(frozen=True)
class TextView:
    """Text candidates of a window.

    Attributes:
      length: tokens per candidate t.
      candidates: n.
      source: "segments" (nearest in time first) or "words" (those spoken in the window,
        as one text).
    """

    length: int = 16
    candidates: int = 5
    source: str = "segments"

    def __post_init__(self) -> None:
        if self.length < 1 or self.candidates < 1:
            raise ValueError(
                f"length and candidates must be at least 1; found length "
                f"{self.length}, candidates {self.candidates}"
            )
        if self.source not in ("segments", "words"):
            raise ValueError(
                f"source must be 'segments' or 'words', found {self.source!r}"
            )


PARTS = {"video": VideoView, "audio": AudioView, "text": TextView}


class View:
    """A pure function of (record, generator) in training, (record, window) otherwise.

    Args:
      pool: decodes the media.
      seconds: length of the window.
      video: keyword arguments of `VideoView`, or None: no video.
      audio: keyword arguments of `AudioView`, or None.
      text: keyword arguments of `TextView`, or None.
      tokenizer: needed with text.
      train: random window and augmentation; otherwise neither.
      windows: in evaluation, windows per record: the centre one, or evenly spaced ones.
    """

    def __init__(
        self,
        pool: DecodePool,
        *,
        seconds: float = 3.2,
        video: Mapping[str, Any] | None = None,
        audio: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        tokenizer: text_lib.Tokenizer | None = None,
        train: bool,
        windows: int = 1,
    ) -> None:
        if text is not None and tokenizer is None:
            raise ValueError("a view with text needs a tokenizer")
        if windows < 1 or (train and windows != 1):
            raise ValueError(f"windows must be 1 in training, >= 1 else: {windows}")
        if seconds <= 0:
            raise ValueError(f"seconds must be positive, found {seconds}")
        self.pool = pool
        self.seconds = seconds
        self.train = train
        self.windows = windows
        self.tokenizer = tokenizer
        self.video = None if video is None else VideoView(**video)
        self.audio = None if audio is None else AudioView(**audio)
        self.text = None if text is None else TextView(**text)

    @property
    def samples(self) -> int:
        """Audio samples s per example."""
        return 0 if self.audio is None else round(self.seconds * self.audio.rate)

    def empty(self) -> Example:
        """An example with nothing in it: zeros, present False; `info` is None."""
        media: dict[str, np.ndarray] = {}
        if self.video is not None:
            shape = (self.video.frames, *self.video.size, 3)
            media["video"] = np.zeros(shape, np.uint8)
        if self.audio is not None:
            media["audio"] = np.zeros(self.samples, np.float32)
        if self.text is not None:
            shape = (self.text.candidates, self.text.length)
            media["text"] = np.zeros(shape, np.int32)
        present = dict.fromkeys(media, False)
        if self.train and self.video is not None and self.video.colour > 0:
            media["colour"] = np.array(video_lib.SAME_COLOUR, np.float32)
        return {**media, "present": present, "example_id": np.uint32(0), "info": None}

    def faulty(self, name: str, fault: str, *, window: int = 0) -> Example:
        """As `empty`, but a sample: one of which nothing is known but its fault."""
        info = {"id": name, "labels": {}, "classes": [], "start": 0.0, "window": window}
        return {
            **self.empty(),
            "example_id": np.uint32(example_id(name)),
            "info": {**info, "faults": [fault], "texts": []},
        }

    def __call__(
        self,
        record: Record,
        rng: np.random.Generator | None = None,
        *,
        window: int = 0,
    ) -> Example:
        """One example.

        Args:
          record: media, text, labels.
          rng: needed in training, unused otherwise.
          window: in evaluation, which of `windows`.

        Returns:
          The configured ones of `video` [f, h, w, 3] uint8, `audio` [s] float32 and
          `text` [n, t] int32 (zeros where absent); `colour` [4] float32, where the
          video's is to be changed (on the device: `models.colour`); `present`
          {modality: bool}; `example_id` uint32; `info`: id, labels, classes (those of
          `meta`, where a clip has several), start (seconds), window, faults (fault
          classes met), texts (the candidates).
        """
        if self.train and rng is None:
            raise ValueError("a training view needs a random generator")
        if not self.train:
            rng = None
        example = self.empty()
        present, faults = example["present"], []
        probe, start = {}, 0.0
        if record.media and (self.video or self.audio):
            try:
                probe = self._probe(record)
                start = self._start(probe, rng, window)
                self._decode(record, probe, start, rng, example, faults)
            except MediaFault as fault:
                faults.append(fault.fault_class)
        else:
            start = self._start(self._known_probe(record), rng, window)
        texts = self._texts(record, start)
        if self.text is not None and self.tokenizer is not None and texts:
            example["text"] = text_lib.encode_candidates(
                self.tokenizer,
                texts,
                count=self.text.candidates,
                length=self.text.length,
            )
            present["text"] = bool(example["text"].any())
        example["example_id"] = np.uint32(example_id(record.id))
        example["info"] = {
            "id": record.id,
            "labels": dict(record.labels),
            "classes": _classes(record.meta.get("classes")),
            "start": start,
            "window": window,
            "faults": faults,
            "texts": texts,
        }
        return example

    @staticmethod
    def _known_probe(record: Record) -> Mapping[str, Any]:
        # Of a text-only row, `meta` is all the user's.
        return (record.meta.get("probe") or {}) if record.media else {}

    def _probe(self, record: Record) -> Mapping[str, Any]:
        known = self._known_probe(record)
        if known:
            return known
        return dataclasses.asdict(self.pool.probe(record.media, full=True))

    def _start(
        self, probe: Mapping[str, Any], rng: np.random.Generator | None, window: int
    ) -> float:
        """Seconds at which the window starts."""
        low, high = _extent(probe)
        free = max(0.0, high - low - self.seconds)
        if rng is not None:
            return low + free * float(rng.uniform())
        if self.windows == 1:
            return low + free / 2
        return low + free * window / (self.windows - 1)

    def _decode(
        self,
        record: Record,
        probe: Mapping[str, Any],
        start: float,
        rng: np.random.Generator | None,
        example: Example,
        faults: list[str],
    ) -> None:
        request = ClipRequest(
            video=self._video_request(start, rng) if probe.get("video") else None,
            audio=self._audio_request(start) if probe.get("audio") else None,
        )
        if request.video is None and request.audio is None:
            return
        colour = self._colour(rng) if request.video is not None else None
        clip = self.pool.clip(record.media, request)
        faults.extend(clip.faults.values())
        if clip.video is not None:
            example["video"] = clip.video
            example["present"]["video"] = True
            if colour is not None:
                example["colour"] = np.array(colour, np.float32)
        if clip.audio is not None and self.audio is not None:
            wave = clip.audio
            if rng is not None and self.audio.noise > 0:
                wave = audio_lib.add_noise(wave, rng, strength=self.audio.noise)
            example["audio"] = wave
            example["present"]["audio"] = True

    def _video_request(
        self, start: float, rng: np.random.Generator | None
    ) -> VideoRequest | None:
        view = self.video
        if view is None:
            return None
        step = self.seconds / view.frames
        times = tuple(start + i * step for i in range(view.frames))
        plain = VideoRequest(times, size=view.size, region=view.region, fit=view.fit)
        if rng is None:
            return plain
        flip = float(rng.uniform()) < view.flip
        attempts = ()
        if view.crop_area is not None:
            attempts = video_lib.draw_attempts(
                rng, area=view.crop_area, aspect=view.crop_aspect
            )
        return dataclasses.replace(plain, attempts=attempts, flip=flip)

    def _colour(
        self, rng: np.random.Generator | None
    ) -> tuple[float, float, float, float] | None:
        """Draws for `models.colour.jitter`, or None: as it is."""
        view = self.video
        if view is None or rng is None or float(rng.uniform()) >= view.colour:
            return None
        return video_lib.draw_colour(
            rng,
            brightness=view.brightness,
            contrast=view.contrast,
            saturation=view.saturation,
            hue=view.hue,
        )

    def _audio_request(self, start: float) -> AudioRequest | None:
        if self.audio is None:
            return None
        return AudioRequest(start, self.samples, self.audio.rate)

    def _texts(self, record: Record, start: float) -> list[str]:
        if self.text is None:
            return []
        if self.text.source == "words":
            end = start + self.seconds
            return text_lib.words_within(record.words, start=start, end=end)
        return text_lib.nearest_segments(
            record.segments,
            centre=start + self.seconds / 2,
            count=self.text.candidates,
        )


def _extent(probe: Mapping[str, Any]) -> tuple[float, float]:
    """(from, to) seconds in which every stream of the media has content."""
    spans: list[tuple[float, float]] = []
    video, audio = probe.get("video"), probe.get("audio")
    if video and video["frames"] > 1 and video["fps"] > 0:
        begin = video["start"]
        spans.append((begin, begin + video["frames"] / video["fps"]))
    if audio and audio["samples"] and audio["rate"]:
        begin = audio["start"]
        spans.append((begin, begin + audio["samples"] / audio["rate"]))
    low = max((0.0, *(span[0] for span in spans)))
    high = min((probe.get("duration", 0.0), *(span[1] for span in spans)))
    return (low, high) if low < high else (0.0, probe.get("duration", 0.0))


def _classes(value: Any) -> tuple[str, ...]:
    """`meta` is the user's: what is no list of names says nothing of classes."""
    named = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return tuple(value) if named else ()
