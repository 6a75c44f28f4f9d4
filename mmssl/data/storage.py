"""What a build stores of a media file: its bytes as they are, or encoded anew.

Knows no media library; the work is done by transcode.py in worker processes.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmssl.data.records import Segment, Word
from mmssl.errors import UserError

if TYPE_CHECKING:
    from mmssl.data.media import Probe

KINDS = ("original", "h264", "jpeg")

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

_BOUNDS = {
    "short_side": (16, 8192),
    "fps": (0.1, 1000),
    "audio_rate": (4000, 192_000),
    "segment": (0.5, 86_400),
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """How media are stored.

    Attributes:
      kind: "original": the file's own bytes; "h264": H.264 and AAC in MP4; "jpeg":
        JPEG frames and FLAC in Matroska. The latter two are upright, progressive, of
        square pixels, and mono.
      short_side: pixels of the shorter side at most; None: the file's own.
      fps: frames a second; None: each frame at its own time.
      audio_rate: Hz; None: the file's own, or the next that AAC has.
      segment: seconds into which a file is cut; None: whole.

    Raises:
      UserError: options that do not go together, or values that cannot be.
    """

    kind: str = "original"
    short_side: int | None = None
    fps: float | None = None
    audio_rate: int | None = None
    segment: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f"storage {self.kind!r}: expected one of {', '.join(KINDS)}"
            )
        options = dataclasses.asdict(self)
        del options["kind"]
        given = {name: value for name, value in options.items() if value is not None}
        if given and self.kind == "original":
            raise UserError(
                f"storage 'original' keeps a file's bytes, so it has no "
                f"{', '.join(given)}; choose 'h264' or 'jpeg'"
            )
        for name, value in given.items():
            least, most = _BOUNDS[name]
            if not least <= value <= most:  # NaN is not, either
                raise UserError(
                    f"storage {name}: expected {least} to {most}, found {value:g}"
                )
        odd = self.audio_rate is not None and self.audio_rate not in AAC_RATES
        if self.kind == "h264" and odd:
            rates = ", ".join(map(str, AAC_RATES))
            raise UserError(
                f"storage audio_rate {self.audio_rate}: AAC has {rates}; choose one of "
                "these, or 'jpeg', which stores FLAC"
            )


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a media file, encoded anew.

    Attributes:
      start: seconds in the file.
      end: seconds in the file: the next cut, or the file's end.
      media: the bytes of a plain media file.
      probe: of these bytes, from a complete decode.
    """

    start: float
    end: float
    media: bytes
    probe: "Probe"


def within(texts: Sequence[Segment], start: float, end: float) -> tuple[Segment, ...]:
    """The texts of [start, end) seconds, in its own time.

    A timed text belongs to each piece with which it shares at least half of itself or
    half of the piece: a sentence across a cut goes to the side that has more of it, and
    a caption of minutes to every piece it covers. A text of the whole clip belongs to
    all pieces.
    """

    def belongs(text: Segment) -> bool:
        if text.start == text.end:
            return start <= text.start < end
        shared = min(text.end, end) - max(text.start, start)
        return shared > 0 and shared >= min(text.end - text.start, end - start) / 2

    return tuple(
        dataclasses.replace(
            text,
            start=max(text.start - start, 0.0),
            end=min(text.end, end) - start,
        )
        if text.timed
        else text
        for text in texts
        if not text.timed or belongs(text)
    )


def words_within(words: Sequence[Word], start: float, end: float) -> tuple[Word, ...]:
    """The words whose middle is in [start, end) seconds, in its own time."""
    return tuple(
        Word(max(word.start - start, 0.0), min(word.end, end) - start, word.word)
        for word in words
        if start <= (word.start + word.end) / 2 < end
    )


def unplaced(
    texts: Sequence[Segment], words: Sequence[Word], pieces: Sequence[Piece]
) -> int:
    """How many timed texts and words are in no piece."""
    spans = [(piece.start, piece.end) for piece in pieces]
    lost = sum(not any(within([text], *span) for span in spans) for text in texts)
    return lost + len(words) - sum(len(words_within(words, *span)) for span in spans)
