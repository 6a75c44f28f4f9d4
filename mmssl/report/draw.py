"""What one draw of a training view makes of a clip: window, crop, tokens."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from mmssl.report import plots
from mmssl.report.html import Markup, tag

_HEIGHT = 96
# Frames side by side may be so much wider than they are tall.
_ASPECT = 9.0


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one draw of a training view makes of a clip.

    Attributes:
      start: of the window, seconds.
      seconds: its length.
      box: what the crop keeps of the frame: (top, left, height, width) as fractions.
      flipped: mirrored after the crop.
      frames: one per step of video tokens in time, as the model gets them.
      spectrum: the log-mel of the window's sound, [t, m].
      kept: modality to its grid of tokens, True for those that the encoder sees:
        [time, row, column], [time, band] or [time]. DropToken hides the others; what
        an objective masks is hidden the same way.
      texts: pieces of each text candidate.
      faults: classes met.
    """

    start: float
    seconds: float
    box: tuple[float, float, float, float] | None = None
    flipped: bool = False
    frames: UInt8[np.ndarray, "f h w 3"] | None = None
    spectrum: Float32[np.ndarray, "t m"] | None = None
    kept: Mapping[str, Bool[np.ndarray, "..."]] = dataclasses.field(
        default_factory=dict
    )
    texts: Sequence[Sequence[str]] = ()
    faults: Sequence[str] = ()


def image(source: str, alt: str) -> Markup:
    """A picture that is decoded when it comes near the screen."""
    return tag("img", src=source, alt=alt, loading="lazy")


def time(seconds: float) -> str:
    """`2.43 s`."""
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.1f} s"


def pieces(texts: Sequence[Sequence[str]]) -> Markup | None:
    """Each text's tokens; "▁" and what begins a word stand apart."""
    if not texts:
        return None
    rows = [
        tag(
            "p",
            [_piece(piece) for piece in text],
            tag("small", f"{len(text)} tokens", dir="ltr"),
            dir="auto",
        )
        for text in texts
    ]
    return tag("div", rows, class_="pieces")


def _piece(piece: str) -> Markup:
    kind = "unknown" if piece == "<unk>" else None
    if piece.startswith("▁"):
        kind = "first"
    return tag("span", piece.removeprefix("▁") or "▁", class_=kind)


def block(draw: Draw) -> Markup:
    """The window as the encoder gets it, hidden tokens covered."""
    said = [f"window {time(draw.start)} to {time(draw.start + draw.seconds)}"]
    if draw.box is not None:
        said.append(f"crop {100 * draw.box[2] * draw.box[3]:.0f}% of the frame")
    if draw.flipped:
        said.append("mirrored")
    said += [
        f"{int(kept.sum()):,} of {kept.size:,} {name} tokens"
        for name, kept in draw.kept.items()
    ]
    said += [f"fault: {fault}" for fault in draw.faults]
    body = []
    if draw.frames is not None:
        count, tall, wide, _ = draw.frames.shape
        rows = math.ceil(count * wide / tall / _ASPECT)
        for part in np.array_split(np.arange(count), min(rows, count)):
            strip = plots.frame_strip(draw.frames[part], height=_HEIGHT)
            picture = image(strip, "the model's frames")
            kept = draw.kept.get("video")
            if kept is not None:
                across = kept[part].transpose(1, 0, 2).reshape(kept.shape[1], -1)
                picture = [picture, _covered(across)]
            width = f"width:{round(_HEIGHT * len(part) * wide / tall)}px"
            body.append(tag("div", picture, class_="strip", style=width))
    if draw.spectrum is not None:
        picture = image(plots.spectrogram(draw.spectrum), "the model's log-mel")
        kept = draw.kept.get("audio")
        if kept is not None:
            picture = [picture, _covered(kept.reshape(len(kept), -1).T[::-1])]
        body.append(tag("div", picture, class_="strip mel"))
    return tag(
        "div",
        tag("h4", "As training sees it"),
        tag("p", " · ".join(said), class_="note"),
        tag("div", body, class_="inputs") if body else None,
        pieces(draw.texts),
        class_="draw",
    )


def _covered(kept: Bool[np.ndarray, "r c"]) -> Markup:
    """A cover over the cells that are not kept, runs of neighbours joined."""
    runs = []
    for y, row in enumerate(~kept):
        edges = np.flatnonzero(np.diff(np.r_[False, row, False].astype(np.int8)))
        runs += [f"M{a} {y}h{b - a}v1H{a}z" for a, b in edges.reshape(-1, 2)]
    return tag(
        "svg",
        tag("path", d="".join(runs), class_="cover"),
        viewBox=f"0 0 {kept.shape[1]} {kept.shape[0]}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
