"""How numbers and names are distributed: inline SVG histograms and tallies."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmssl.report.html import Markup, tag
from mmssl.report.plots import number, ticks

WIDTH, HEIGHT, BASE, TOP = 360, 124, 102, 20
BINS = 30

_LONG_TAIL = 30.0


def histogram(values: Sequence[float], *, title: str, unit: str = "") -> Markup:
    """A figure with the distribution of finite numbers, their median and extremes.

    A long tail gets bins of equal ratio. Numbers that are all the same are said in
    words.

    Args:
      values: at least one.
      title: of the figure.
      unit: behind every number, such as "s".
    """
    data = np.sort(np.asarray(values, np.float64))
    low, high = float(data[0]), float(data[-1])
    middle = float(np.median(data))

    def say(value: float) -> str:
        return f"{number(float(f'{value:.3g}'))} {unit}".strip()

    name = tag("span", title)
    if low == high:
        same = tag("p", f"all {say(low)}", class_="same")
        return tag("figure", tag("figcaption", name), same, class_="hist")
    log = low > 0 and high / middle > _LONG_TAIL
    edges = _edges(data, log=log)
    counts, _ = np.histogram(data, edges)
    scale = np.log(edges) if log else edges
    x0, x1 = float(scale[0]), float(scale[-1])

    def place(value: float) -> float:
        at = math.log(value) if log else value
        return round(2 + (at - x0) / (x1 - x0) * (WIDTH - 4), 1)

    parts: list[Markup] = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if not count:
            continue
        a, b = place(float(left)), place(float(right))
        tall = round(max(1.5, (BASE - TOP) * float(count) / float(counts.max())), 1)
        words = f"{say(float(left))} to {say(float(right))}: {int(count):,}"
        parts.append(
            tag(
                "rect",
                tag("title", words),
                x=a,
                y=round(BASE - tall, 1),
                width=round(max(1.0, b - a - 1), 1),
                height=tall,
            )
        )
    at = place(middle)
    parts.append(tag("line", x1=at, x2=at, y1=TOP - 6, y2=BASE, class_="median"))
    marks = (
        [low, math.sqrt(low * high), high] if log else ticks(float(edges[0]), high, 4)
    )
    for mark in marks:
        x = place(mark)
        anchor = "start" if x < 12 else "end" if x > WIDTH - 24 else "middle"
        text = number(float(f"{mark:.3g}"))
        parts.append(tag("text", text, x=x, y=HEIGHT - 6, text_anchor=anchor))
    label = f"{title}: {len(data):,} values from {say(low)} to {say(high)}"
    drawing = tag(
        "svg",
        tag("title", label),
        tag("line", x1=0, x2=WIDTH, y1=BASE, y2=BASE, class_="base"),
        parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )
    head = tag("figcaption", name, tag("small", f"median {say(middle)}"))
    return tag("figure", head, drawing, class_="hist")


def _edges(data: np.ndarray, *, log: bool) -> np.ndarray:
    low, high = float(data[0]), float(data[-1])
    if log:
        return np.geomspace(low, high, BINS + 1)
    whole = bool((data == np.round(data)).all())
    if whole and high - low < BINS:
        return np.arange(low - 0.5, high + 1)  # a bin for each whole number
    return np.linspace(low, high, BINS + 1)


def tally(
    counts: Mapping[str, int], *, title: str, of: int | None = None, most: int = 8
) -> Markup:
    """A figure with names and their counts, most frequent first, as bars.

    Args:
      counts: name to count.
      title: of the figure.
      of: what a full bar stands for; None: the largest count.
      most: rows; the rest are one row.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ranked[:most], ranked[most:]
    full = max(of or ranked[0][1], 1)
    rows = [_bar(name, count, full, of) for name, count in shown]
    if rest:
        total = sum(count for _, count in rest)
        rows.append(_bar(f"{len(rest):,} more", total, full, of))
    return tag(
        "figure",
        tag("figcaption", tag("span", title)),
        tag("ul", rows),
        class_="tally",
    )


def _bar(name: str, count: int, full: int, of: int | None) -> Markup:
    share = f" · {100 * count / of:.0f}%" if of else ""
    width = min(100.0, 100 * count / full)
    return tag(
        "li",
        tag("span", name, class_="name", dir="auto", title=name),
        tag("b", f"{count:,}", tag("small", share)),
        tag("span", tag("i", style=f"width:{width:.1f}%"), class_="track"),
    )
