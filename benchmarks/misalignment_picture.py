"""The picture of docs/misalignment.md, from the results of the benchmark.

    python benchmarks/misalignment_picture.py benchmarks/results/misalignment.json \\
        docs/images/misalignment.svg
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import misalignment_summary as summary_lib

SCORES = {
    "now/loss/pair": "loss of the pair",
    "now/loss/all": "loss, sum of both",
    "now/similarity/pair": "similarity of the pair",
    "now/norm/vmap/1/pair": "length of its gradient",
    "now/conflict/own/1/va_vt": "cosine, own loss terms",
    "now/conflict/vmap/1/va_vt": "cosine (the paper's)",
}
ARMS = {
    "trim_realign": "trim + realign",
    "trim": "trim",
    "oracle_pair": "oracle, per pair",
    "realign": "realign",
    "curriculum": "curriculum",
    "both": "realign + curriculum",
    "longer": "plain for longer",
    "plain": "plain",
    "fixed": "fixed weights",
    "norm_balanced": "equal norms",
    "loss_ramp": "drop high losses, early",
    "random_ramp": "drop any, early",
    "loss": "drop high losses",
    "random": "drop any",
}
COLOURS = {"ours": "#1f7a8c", "oracle": "#b58900", "other": "#667085"}
ROW, LABEL, PLOT, GAP = 26, 190, 230, 40
WIDTH = 2 * (LEFT := LABEL + PLOT) + 3 * GAP
TOP, BOTTOM = 64, 40

Rows = Sequence[tuple[str, str, Sequence[float]]]
"""(label, colour, values)."""


def panel(
    x: float,
    title: str,
    rows: Rows,
    low: float,
    high: float,
    ticks: Sequence[float],
    form: str,
) -> str:
    """A dot per seed and a bar at their mean, row by row."""
    foot = TOP + ROW * len(rows)

    def at(value: float) -> float:
        return x + LABEL + PLOT * (min(max(value, low), high) - low) / (high - low)

    drawn = [f'<text x="{x}" y="34" font-weight="bold">{escape(title)}</text>']
    for tick in ticks:
        drawn.append(
            f'<path d="M{at(tick):.1f} {TOP - 8}V{foot}" stroke="#d5dbe3"/>'
            f'<text x="{at(tick):.1f}" y="{foot + 18}" text-anchor="middle" '
            f'fill="#667085">{form.format(tick)}</text>'
        )
    for i, (label, colour, values) in enumerate(rows):
        y = TOP + ROW * i + ROW / 2 - 4
        mean = statistics.fmean(values)
        drawn.append(
            f'<text x="{x + LABEL - 10}" y="{y + 5}" text-anchor="end">'
            f"{escape(label)}</text>"
            f'<path d="M{at(mean):.1f} {y - 9}v18" stroke="{colour}" '
            'stroke-width="3"/>'
        )
        drawn += [
            f'<circle cx="{at(value):.1f}" cy="{y}" r="4" fill="{colour}" '
            'fill-opacity="0.45"/>'
            for value in values
        ]
    return "\n".join(drawn)


def picture(results: Mapping[str, Any]) -> str:
    """Both panels as one SVG."""
    plain = [
        r for r in results["detection"] if r["run"]["fraction"] == summary_lib.MAIN
    ]
    areas = [summary_lib.by_role(r) for r in plain]
    detection = [
        (
            label,
            COLOURS["ours" if "/vmap/" in name or "/own/" in name else "other"],
            values,
        )
        for name, label in SCORES.items()
        if (values := [own[name] for own in areas if name in own])
    ]
    recall = summary_lib.recalls(results["use"])
    arms = [
        (ARMS[arm], COLOURS[_kind(arm)], list(values.values()))
        for arm, values in sorted(
            recall.items(), key=lambda item: -statistics.fmean(item[1].values())
        )
    ]
    high = 0.05 * (1 + max(max(values) for *_, values in arms) // 0.05)
    height = TOP + BOTTOM + ROW * max(len(detection), len(arms))
    panels = [
        panel(
            GAP / 2,
            "Who finds the swapped clips? AUROC",
            detection,
            0.5,
            1.0,
            (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            "{:.1f}",
        ),
        panel(
            GAP * 2 + LEFT,
            "Who trains best among them? R@10, clean clips",
            arms,
            0.0,
            high,
            [0.05 * i for i in range(round(high / 0.05) + 1)],
            "{:.0%}",
        ),
    ]
    body = "\n".join(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'role="img" font-family="Helvetica, Arial, sans-serif" font-size="13">\n'
        "<title>Finding misaligned clips, and training among them</title>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff"/>\n'
        f"{body}\n</svg>\n"
    )


def _kind(arm: str) -> str:
    if arm.startswith("oracle"):
        return "oracle"
    return "ours" if arm in summary_lib.HARMONIZED else "other"


if __name__ == "__main__":
    source, out = map(pathlib.Path, sys.argv[1:])
    out.write_text(picture(json.loads(source.read_text())))
