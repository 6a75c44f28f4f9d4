"""The closed set of things that go wrong with media, and the limits that bound it."""

import dataclasses

FAULTS: dict[str, str] = {
    "read": "storage does not give the record, after all attempts",
    "missing": "the file does not exist or cannot be read",
    "empty": "zero bytes",
    "unreadable": "no known container, or a broken header",
    "forbidden": "a playlist or a container that may point outside its own bytes",
    "no_streams": "no audio and no video stream (cover art does not count)",
    "no_decoder": "the stream's codec is unknown",
    "no_frames": "the stream opens and decodes to nothing",
    "no_times": "frames without timestamps and without a frame rate",
    "corrupt": "packets that do not decode; what decodes is used",
    "ended": "the stream ends before the requested window",
    "too_large": "more pixels, streams or output bytes than the limits allow",
    "too_long": "longer than the limits allow",
    "timeout": "took longer than the limits allow; the worker was killed",
    "memory": "needed more memory than the limits allow",
    "crash": "the decoder died, or failed with an error of no other class",
}
"""Fault class to meaning. Every `MediaFault` carries one of these classes."""


class MediaFault(Exception):  # noqa: N818  the noun every room uses
    """One media item cannot be used, for a reason of the closed set `FAULTS`.

    Attributes:
      fault_class: a key of `FAULTS`.
      detail: what was seen, for people.
    """

    def __init__(self, fault_class: str, detail: str = "") -> None:
        if fault_class not in FAULTS:
            raise ValueError(f"unknown fault class {fault_class!r}: {detail}")
        super().__init__(fault_class, detail)
        self.fault_class = fault_class
        self.detail = detail

    def __str__(self) -> str:
        meaning = FAULTS[self.fault_class]
        return f"{self.fault_class} ({meaning})" + (
            f": {self.detail}" if self.detail else ""
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one media item may cost; beyond it, a `MediaFault`.

    Attributes:
      seconds: wall-clock time of one clip or one header probe.
      probe_seconds: wall-clock time of one complete decode: a full probe, or a
        transcoding.
      memory_mb: address space a worker may add to what it needs to start.
      pixels: width x height of a frame.
      duration: seconds of media.
      output_mb: decoded bytes of one clip; encoded bytes of one transcoded file.
      streams: streams in one container.
    """

    seconds: float = 30.0
    probe_seconds: float = 300.0
    memory_mb: int = 2048
    pixels: int = 2**26
    duration: float = 6 * 3600.0
    output_mb: int = 512
    streams: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(
                    f"Limits.{field.name} must be positive, "
                    f"found {getattr(self, field.name)}"
                )
