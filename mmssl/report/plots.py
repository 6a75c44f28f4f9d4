"""Inline SVG curves and waveforms, and base64 frame strips.

Colours are CSS classes, so one drawing serves the light and the dark page.
"""

import base64
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from mmssl.report.html import Markup, tag

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 16, 24
BUCKETS = 180
COLUMNS, LEVELS = 80, 8


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: `color` is a CSS class such as `c-va`; non-finite values are gaps.

    `low` and `high` are a band around it; None = the extremes of points drawn as one.
    """

    name: str
    color: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Mark:
    """A vertical line: something that happened at `step`."""

    step: float
    kind: str
    text: str


def number(value: float) -> str:
    """A short decimal for axes and tables, about four significant digits."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if float(value).is_integer():
        return f"{int(value):,}"
    digits = max(0, 3 - math.floor(math.log10(size)))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """At most about `count` round numbers inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclasses.dataclass(frozen=True)
class _Buckets:
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _bucket(series: Series) -> _Buckets:
    """Mean and band in at most `BUCKETS` runs of neighbouring points.

    The band is from minimum to maximum, or the mean of the series' own.
    """
    steps, values = (np.asarray(x, np.float64) for x in (series.steps, series.values))
    own = series.low is not None and series.high is not None
    low, high = (
        np.asarray(x if own else values, np.float64) for x in (series.low, series.high)
    )
    if len(steps) <= BUCKETS:
        return _Buckets(steps, values, low, high)
    parts = [p for p in np.array_split(np.arange(len(steps)), BUCKETS) if len(p)]
    least, most = (np.mean, np.mean) if own else (np.min, np.max)
    kept = np.full((len(parts), 4), math.nan)
    for row, part in zip(kept, parts, strict=True):
        row[0] = steps[part].mean()
        good = part[np.isfinite(values[part]) & np.isfinite(low[part] + high[part])]
        if len(good):
            row[1:] = values[good].mean(), least(low[good]), most(high[good])
    return _Buckets(*kept.T)


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
    """SVG path data; a non-finite y lifts the pen."""
    out, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            out.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(out)


_Place = Callable[[np.ndarray | float], np.ndarray]


def _axes(
    xs: tuple[float, float], ys: tuple[float, float]
) -> tuple[_Place, _Place, list[Markup]]:
    """Data to pixels, across and down, and the labelled grid."""
    (x0, x1), (y0, y1) = xs, ys

    def px(x: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(x, np.float64) - x0) / (x1 - x0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def py(y: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(y, np.float64) - y0) / (y1 - y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts: list[Markup] = []
    for tick in ticks(y0, y1):
        y = round(float(py(tick)), 1)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(
            tag("text", number(tick), x=LEFT - 6, y=y + 3.5, text_anchor="end")
        )
    for tick in ticks(x0, x1):
        x = round(float(px(tick)), 1)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(tag("text", number(tick), x=x, y=HEIGHT - 7, text_anchor=anchor))
    return px, py, parts


def curves(
    series: Sequence[Series], *, marks: Sequence[Mark] = (), label: str
) -> Markup:
    """A line chart over steps.

    Long curves are drawn as bucket means inside a band from minimum to maximum, so
    noise stays visible and nothing is smoothed.

    Args:
      series: curves that share both axes; they must hold a finite value somewhere.
      marks: events, drawn as dashed lines.
      label: what a screen reader says.
    """
    boxes = [_bucket(s) for s in series]
    steps = np.concatenate([b.steps for b in boxes])
    spread = np.concatenate([np.r_[b.low, b.high] for b in boxes])
    spread = spread[np.isfinite(spread)]
    x0, x1 = float(steps.min()), float(steps.max())
    x1 = x1 if x1 > x0 else x0 + 1
    y0, y1 = float(spread.min()), float(spread.max())
    if y0 > 0 and y0 < 0.35 * y1:
        y0 = 0.0  # show the zero when it is near
    pad = 0.05 * (y1 - y0) or max(abs(y1) * 0.1, 1e-12)
    y0, y1 = (y0 if y0 == 0 else y0 - pad), y1 + pad

    px, py, parts = _axes((x0, x1), (y0, y1))
    for mark in marks:
        if not x0 <= mark.step <= x1:
            continue
        x = round(float(px(mark.step)), 1)
        line = tag("line", x1=x, x2=x, y1=TOP - 4, y2=HEIGHT - BOTTOM)
        flag = tag("circle", cx=x, cy=TOP - 7, r=3.5)
        title = tag("title", f"step {number(mark.step)}: {mark.kind}. {mark.text}")
        parts.append(tag("g", title, line, flag, class_=f"mark {_kind(mark.kind)}"))
    for one, box in zip(series, boxes, strict=True):
        xs = px(box.steps)
        if len(one.steps) > BUCKETS or one.low is not None:
            good = np.isfinite(box.mean) & np.isfinite(box.low + box.high)
            outline = _path(
                np.r_[xs[good], xs[good][::-1]],
                np.r_[py(box.high[good]), py(box.low[good])[::-1]],
            )
            parts.append(tag("path", d=outline + "Z", class_=f"band {one.color}"))
        finite = np.isfinite(box.mean)
        if finite.sum() == 1:
            parts.append(
                tag(
                    "circle",
                    cx=round(float(xs[finite][0]), 1),
                    cy=round(float(py(box.mean[finite])[0]), 1),
                    r=3,
                    class_=f"dot {one.color}",
                )
            )
        parts.append(tag("path", d=_path(xs, py(box.mean)), class_=f"line {one.color}"))
    points = [
        {
            "name": one.name,
            "color": one.color,
            "x": [round(float(v), 1) for v in px(box.steps)],
            "y": [round(float(v), 1) if np.isfinite(v) else None for v in py(box.mean)],
            "step": [int(v) for v in box.steps],
            "text": [number(float(v)) for v in box.mean],
        }
        for one, box in zip(series, boxes, strict=True)
    ]
    return tag(
        "svg",
        tag("title", label),
        parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        data_points=json.dumps(points, separators=(",", ":")),
    )


def heat_map(steps: Sequence[float], counts: np.ndarray, *, label: str) -> Markup:
    """Histograms over [-1, 1] as columns over steps; the lower half in another hue.

    Args:
      steps: n ascending steps.
      counts: [n, bins]; each column is drawn as shares of its own sum. More than
        `COLUMNS` are added up by neighbours.
      label: what a screen reader says.
    """
    groups = np.array_split(np.arange(len(steps)), min(len(steps), COLUMNS))
    bins = counts.shape[1]
    summed = np.stack([counts[group].sum(0) for group in groups])
    shares = summed / np.maximum(summed.sum(1, keepdims=True), 1)
    level = np.ceil(LEVELS * shares / max(float(shares.max()), 1e-9)).astype(int)
    first, last = float(steps[0]), float(steps[-1])
    starts = [float(steps[group[0]]) for group in groups]
    width = (last - first) / max(len(steps) - 1, 1) or 1.0
    ends = [*starts[1:], last + width]
    px, py, grid = _axes((first, ends[-1]), (-1.0, 1.0))
    tall = float(py(0) - py(2 / bins))
    parts: list[Markup] = []
    for half, color in (("against", "m-skip"), ("along", "c-va")):
        for shade in range(1, LEVELS + 1):
            drawn = []
            for (column, y), own in np.ndenumerate(level):
                if own != shade or (y < bins // 2) != (half == "against"):
                    continue
                x, end = float(px(starts[column])), float(px(ends[column]))
                top = float(py(2 * (y + 1) / bins - 1))
                drawn.append(f"M{x:.1f} {top:.2f}H{end:.1f}v{tall:.2f}H{x:.1f}z")
            if drawn:
                opacity = round(0.08 + 0.92 * shade / LEVELS, 2)
                parts.append(
                    tag(
                        "path",
                        d="".join(drawn),
                        class_=f"heat {color}",
                        style=f"opacity:{opacity}",
                    )
                )
    zero = round(float(py(0)), 1)
    parts.append(
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=zero, y2=zero, class_="zero")
    )
    return tag(
        "svg",
        tag("title", label),
        grid,
        parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        data_points="[]",
    )


def _kind(kind: str) -> str:
    lowered = kind.lower()
    if any(word in lowered for word in ("skip", "nonfinite")):
        return "m-skip"
    if any(word in lowered for word in ("restart", "resume", "interrupt")):
        return "m-restart"
    if any(word in lowered for word in ("warn", "collapse", "fault")):
        return "m-warn"
    return "m-other"


def waveform(samples: np.ndarray, *, columns: int = 240) -> Markup:
    """Minimum-to-maximum envelope of [s] samples, scaled to their peak."""
    wave = np.nan_to_num(np.asarray(samples, np.float64).reshape(-1))
    pieces = np.array_split(wave, min(columns, max(len(wave), 1)))
    peak = max(float(np.abs(wave).max(initial=0.0)), 1e-9)
    bars = []
    for i, piece in enumerate(pieces):
        top = float(piece.max(initial=0.0)) / peak
        low = float(piece.min(initial=0.0)) / peak
        bars.append(
            f"M{i + 0.5:.1f} {20 - 18 * top - 0.4:.1f}V{20 - 18 * low + 0.4:.1f}"
        )
    return tag(
        "svg",
        tag("title", "waveform"),
        tag("path", d="".join(bars)),
        viewBox=f"0 0 {len(pieces)} 40",
        preserveAspectRatio="none",
        class_="wave",
        role="img",
    )


def frame_strip(frames: np.ndarray, *, height: int = 128) -> str:
    """uint8 [f, h, w, 3] side by side, at most `height` pixels high, as a data URI."""
    from matplotlib import image  # about 0.3 s to import, and only reports draw

    video = np.asarray(frames)
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 [f, h, w, 3], got {video.dtype} {video.shape}"
        )
    height = min(height, video.shape[1])
    width = max(1, round(height * video.shape[2] / video.shape[1]))
    rows = np.linspace(0, video.shape[1] - 1, height).round().astype(int)
    columns = np.linspace(0, video.shape[2] - 1, width).round().astype(int)
    strip = np.concatenate(list(video[:, rows][:, :, columns]), axis=1)
    buffer = io.BytesIO()
    image.imsave(buffer, strip, format="jpg", pil_kwargs={"quality": 85})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def spectrogram(log_mel: np.ndarray, *, columns: int = 600) -> str:
    """A log-mel [t, m] as a data URI, low bands at the bottom; at most `columns` wide.

    Colours run over the picture's own range, from its 2% quantile up.
    """
    from matplotlib import image

    values = np.nan_to_num(np.asarray(log_mel, np.float32))
    pieces = np.array_split(values, min(columns, len(values)))
    shown = np.stack([piece.max(axis=0) for piece in pieces], axis=1)[::-1]
    low, high = float(np.quantile(shown, 0.02)), float(shown.max())
    buffer = io.BytesIO()
    image.imsave(
        buffer,
        shown,
        vmin=low,
        vmax=max(high, low + 1.0),
        cmap="magma",
        format="jpg",
        pil_kwargs={"quality": 85},
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def sound(samples: np.ndarray, rate: int, *, most: int = 16000) -> str:
    """[s] float samples as a 16-bit mono FLAC data URI, at `most` Hz or less."""
    import soundfile
    import soxr

    wave = np.nan_to_num(np.asarray(samples, np.float32).reshape(-1))
    if rate > most:
        wave, rate = np.asarray(soxr.resample(wave, rate, most), np.float32), most
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()
