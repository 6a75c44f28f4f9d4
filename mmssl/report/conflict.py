"""The section on gradient conflict: how the losses pull at each sample."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmssl.report import curves as curves_lib
from mmssl.report import media, sections, tables
from mmssl.report.html import Markup, tag
from mmssl.report.plots import Series, heat_map, number
from mmssl.report.run import Run

SHOWN = 3
"""Clips at each end of each pair."""

_COSINE = "conflict/cos_"


def ids(run: Run) -> list[str]:
    """Ids of the clips that the section would like to show."""
    found = [
        entry["id"]
        for pair in _last_pairs(run).values()
        for end in ("most", "least")
        for entry in _entries(pair, end)
    ]
    return list(dict.fromkeys(found))


def conflict(run: Run, clips: Mapping[str, media.Sample]) -> Markup | None:
    """Curves, heat maps and extremes; None where no step compared gradients.

    Args:
      run: the workdir.
      clips: decoded clips by id, of `ids`; those that are not there are named only.
    """
    charts = {
        title: series
        for title, series in curves_lib.charts(run.metrics).items()
        if series[0].name.startswith(curves_lib.CONFLICT)
        and not series[0].name.startswith(_COSINE)
    }
    cosines = _cosines(run)
    maps = [_heat(run, pair) for pair in _names(run)]
    if not (charts or cosines or maps):
        return None
    marks = curves_lib.marks(run.events, run.metrics)
    drawn = [
        curves_lib.chart_figure(title, series, marks)
        for title, series in [*cosines.items(), *charts.items()]
    ]
    note = run.missing("conflict.jsonl")
    return sections.section(
        "conflict",
        "Gradient conflict",
        ("metrics.jsonl", "conflict.jsonl"),
        sections.gap(f"{note}.") if note else None,
        tag("p", _summary(run)),
        tag("div", maps, drawn, class_="curves"),
        [_extremes(name, pair, run, clips) for name, pair in _last_pairs(run).items()],
    )


def _summary(run: Run) -> str:
    """What was compared, and what was made of it, in words."""
    entry = run.config.get("harmonizer")
    entry = entry if isinstance(entry, Mapping) else {}
    said = [f"weighting {_name(entry.get('weighting', 'sum'))}"]
    said.append(f"engine {_name(entry.get('engine', 'subset'))}")
    curriculum = entry.get("curriculum")
    if isinstance(curriculum, Mapping):
        said.append(f"curriculum {curriculum.get('rule', 'threshold')}")
    group = entry.get("group", 1)
    of = {1: "each sample", 0: "the whole batch"}.get(group, f"groups of {group}")
    return (
        f"The gradients that two losses give {of} are compared: below 0 they conflict. "
        f"Harmonizer: {', '.join(said)}. Shares are of the samples that both losses "
        "reach."
    )


def _name(value: Any) -> str:
    return str(value.get("kind", "?") if isinstance(value, Mapping) else value)


def _cosines(run: Run) -> dict[str, list[Series]]:
    """Per pair the mean in its band from the 10% to the 90% quantile."""
    columns = {
        one.name: one
        for series in curves_lib.charts(run.metrics).values()
        for one in series
        if one.name.startswith(_COSINE)
    }
    found = {}
    for name, mean in columns.items():
        if not name.startswith(f"{_COSINE}mean/"):
            continue
        pair = name.removeprefix(f"{_COSINE}mean/")
        low, middle, high = (columns.get(f"{_COSINE}q{q}/{pair}") for q in (10, 50, 90))
        series = [
            Series(
                "mean",
                "c-va",
                mean.steps,
                mean.values,
                low.values if low and high else None,
                high.values if low and high else None,
            )
        ]
        if middle:
            series.append(Series("median", "c-ink dashed", middle.steps, middle.values))
        found[f"Cosine {pair}, 10% to 90%"] = series
    return found


def _pairs(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Label -> a pair of a row of conflict.jsonl; damaged ones are left out."""
    pairs = row.get("pairs")
    if not isinstance(pairs, Mapping):
        return {}
    return {
        str(name): pair
        for name, pair in pairs.items()
        if isinstance(pair, Mapping) and _counts(pair) is not None
    }


def _counts(pair: Mapping[str, Any]) -> list[int] | None:
    counts = pair.get("counts")
    if not isinstance(counts, list) or not counts or len(counts) % 2:
        return None
    return counts if all(isinstance(n, int) for n in counts) else None


def _entries(pair: Mapping[str, Any], end: str) -> list[dict[str, Any]]:
    entries = pair.get(end)
    return [
        e
        for e in (entries if isinstance(entries, list) else [])
        if isinstance(e, dict)
        and isinstance(e.get("id"), str)
        and isinstance(e.get("cos"), int | float)
    ][:SHOWN]


def _names(run: Run) -> Iterable[str]:
    return dict.fromkeys(name for row in run.conflicts for name in _pairs(row))


def _last_pairs(run: Run) -> dict[str, Mapping[str, Any]]:
    return _pairs(run.conflicts[-1]) if run.conflicts else {}


def _heat(run: Run, name: str) -> Markup:
    rows = [
        (float(row["step"]), _counts(_pairs(row)[name]))
        for row in run.conflicts
        if name in _pairs(row)
    ]
    bins = len(rows[-1][1] or ())
    rows = [(step, counts) for step, counts in rows if len(counts or ()) == bins]
    counts = np.asarray([counts for _, counts in rows], np.float64)
    last = counts[-1]
    against = last[: bins // 2].sum() / last.sum() if last.sum() else math.nan
    legend = tag(
        "span",
        tag("i", class_="key m-skip"),
        "in conflict ",
        tag("b", tables.show(against, share=True)),
        title="share of the last row",
    )
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("span", f"Cosines {name}"),
            tag("span", legend, class_="legend"),
        ),
        heat_map(
            [step for step, _ in rows],
            counts,
            label=f"histograms of the cosines of {name} over training steps",
        ),
        class_="curve",
    )


def _extremes(
    name: str, pair: Mapping[str, Any], run: Run, clips: Mapping[str, media.Sample]
) -> Markup | None:
    """The clips of the last row at both ends."""
    ends = {
        "most conflicting": _entries(pair, "most"),
        "least conflicting": _entries(pair, "least"),
    }
    if not any(ends.values()):
        return None
    columns = [
        tag("div", tag("h4", title), [_clip(entry, clips) for entry in entries])
        for title, entries in ends.items()
    ]
    shown = [entry["id"] for entries in ends.values() for entry in entries]
    note = "as evaluation cuts them; training saw another window of each"
    if not any(id in clips for id in shown):
        note = "the clips themselves were not at hand"
    return tag(
        "div",
        tag("h3", f"{name} at step {number(float(run.conflicts[-1]['step']))}"),
        tag("p", f"In the last logged batch: {note}.", class_="note"),
        tag("div", columns, class_="extremes"),
        class_="direction",
    )


def _clip(entry: Mapping[str, Any], clips: Mapping[str, media.Sample]) -> Markup:
    cos = float(entry["cos"])
    side = "against" if cos < 0 else "along"
    clip = clips.get(entry["id"])
    return tag(
        "div",
        tag("p", f"cosine {cos:+.3f}", class_=f"cosine {side}"),
        media.sample_block(clip) if clip else tag("p", tag("code", entry["id"])),
    )
