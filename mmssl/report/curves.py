"""Which metrics share a chart, in which colour, under which words."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmssl.report.html import Markup, tag
from mmssl.report.plots import Mark, Series, curves, number

# First match wins: (pattern of the metric's name, chart). `{0}` is the first group.
CHARTS = (
    (r"(?:train/)?loss(?:/.+)?", "Loss"),
    (r"(?:.*/)?(?:lr|learning_rate)", "Learning rate"),
    (r"(?:.*/)?grad_norm(?:/.+)?", "Gradient norm"),
    (r"(?:.*/)?(?:data_)?wait\w*", "Data wait"),
    (r"(?:.*/)?(?:steps_per_s\w*|clips_per_s\w*|samples_per_s\w*)", "Speed"),
    (r"tokens_per_s\w*", "Tokens a second"),
    (r"flops_per_s\w*", "Model FLOPs a second"),
    (r"mfu", "Model FLOPs utilisation"),
    (r"goodput/.+", "Share of wall time"),
    (r"health/([^/]+)(?:/.+)?", "Health: {0}"),
    (r"conflict/rate/.+", "Share in conflict"),
    (r"conflict/defined/.+", "Share with both gradients"),
    (r"conflict/(?:dropped|realigned)", "Dropped and realigned"),
    (r"conflict/([^/]+)(?:/.+)?", "Conflict: {0}"),
    (r"audit/.+", "Audit"),
    (r"eval/([^/]+)/.+/([^/]+)", "Evaluation, {0}: {1}"),
    (r"([^/]+)/.+", "{0}"),
    (r"(.+)", "{0}"),
)
CONFLICT = ("conflict/", "audit/")
"""Metrics that have a section of their own."""

_SKIP = re.compile(
    r"step|step_seconds|time|finite|(?:.*/)?(?:wall|elapsed|seconds|eta)\w*"
)
_ROUTINE = ("start", "first step", "end", "checkpoint", "save")
_PALETTE = ("c-1", "c-2", "c-3", "c-4", "c-5", "c-6")
# Words of a metric's name that carry one colour everywhere on the page.
_MODALITIES = ("video", "audio", "text")
_PAIRS = {
    "va": "c-va",
    "vt": "c-vt",
    "at": "c-at",
    "audio-video": "c-va",
    "text-video": "c-vt",
    "audio-text": "c-at",
}


def _place(name: str) -> int:
    """The row of `CHARTS` for a metric; the last row takes everything."""
    return next(
        i for i, (pattern, _) in enumerate(CHARTS) if re.fullmatch(pattern, name)
    )


def chart_title(name: str) -> str:
    """The chart a metric belongs to."""
    pattern, title = CHARTS[_place(name)]
    found = re.fullmatch(pattern, name)
    return title.format(*found.groups() if found else ()).replace("_", " ")


def _color(name: str, taken: set[str], *, alone: bool) -> str:
    """CSS classes of a curve: a hue by modality or pair, dashed if the hue is taken."""
    words = name.lower().split("/")
    pairs = ["-".join(sorted(word.split("-"))) for word in words]
    hue = next((f"c-{word}" for word in words if word in _MODALITIES), None)
    # Of video/va the modality tells more apart than the space; of loss/va, the pair.
    hue = hue or next((_PAIRS[pair] for pair in pairs if pair in _PAIRS), None)
    if hue is not None:
        return hue if hue not in taken else f"{hue} dashed"
    if alone or name == "loss":
        return "c-ink"
    return next((c for c in _PALETTE if c not in taken), "c-ink")


def charts(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[Series]]:
    """Numeric metrics by chart, charts in the order of `CHARTS`, none left out."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for record in metrics:
        for name, value in record.items():
            if _SKIP.fullmatch(name) or isinstance(value, bool):
                continue
            if value is not None and not isinstance(value, int | float):
                continue
            steps, values = columns.setdefault(name, ([], []))
            steps.append(float(record["step"]))
            values.append(math.nan if value is None else float(value))
    grouped: dict[str, list[str]] = {}
    for name, (_, values) in columns.items():
        if any(math.isfinite(v) for v in values):
            grouped.setdefault(chart_title(name), []).append(name)
    out: dict[str, list[Series]] = {}
    for title in sorted(grouped, key=lambda title: _place(grouped[title][0])):
        names = grouped[title]
        taken: set[str] = set()
        for name in names:
            color = _color(name, taken, alone=len(names) == 1)
            taken.add(color)
            steps, values = columns[name]
            out.setdefault(title, []).append(Series(name, color, steps, values))
    return out


def marks(
    events: Iterable[Mapping[str, Any]], metrics: Iterable[Mapping[str, Any]]
) -> list[Mark]:
    """Events worth a line on every curve: those that have a step and are not routine,
    and logged steps that were skipped as not finite."""
    found = []
    for event in events:
        step = event.get("step")
        if event_kind(event) in _ROUTINE:
            continue
        if isinstance(step, int | float) and not isinstance(step, bool):
            found.append(Mark(float(step), event_kind(event), event_text(event)))
    known = {mark.step for mark in found if mark.kind in ("nonfinite", "skipped step")}
    for record in metrics:
        finite = record.get("finite")
        if finite is not None and not finite and float(record["step"]) not in known:
            text = "loss or gradient not finite"
            found.append(Mark(float(record["step"]), "skipped step", text))
    return found


def event_kind(event: Mapping[str, Any]) -> str:
    """What happened, in a word."""
    for key in ("kind", "event", "type", "name"):
        if event.get(key):
            return str(event[key]).replace("_", " ")
    return "event"


def event_text(event: Mapping[str, Any]) -> str:
    """The rest of an event, in a line."""
    if event.get("message"):
        return str(event["message"])
    hidden = ("kind", "event", "type", "name", "step", "time", "when")
    parts = [f"{k} {v}" for k, v in event.items() if k not in hidden]
    return ", ".join(parts)


def chart_figure(
    title: str, series: Sequence[Series], events: Sequence[Mark]
) -> Markup:
    """A chart with its title, and a legend with the last values."""
    # The title already says what the names have in common.
    depth = 0
    split = [one.name.split("/") for one in series]
    while len(series) > 1 and all(
        len(parts) > depth + 1 and parts[depth] == split[0][depth] for parts in split
    ):
        depth += 1
    legend = []
    for one, parts in zip(series, split, strict=True):
        finite = [v for v in one.values if math.isfinite(v)]
        label = "total" if one.name == "loss" else "/".join(parts[depth:])
        label = label.removeprefix("loss/")
        legend.append(
            tag(
                "span",
                tag("i", class_=f"key {one.color}"),
                "" if len(series) == 1 else f"{label} ",
                tag("b", number(finite[-1])),
                title=f"{one.name}: last value",
            )
        )
    return tag(
        "figure",
        tag("figcaption", tag("span", title), tag("span", legend, class_="legend")),
        curves(series, marks=events, label=f"{title} over training steps"),
        class_="curve",
    )
