"""Numbers and nested JSON as tables."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmssl.report.html import Markup, tag
from mmssl.report.plots import number

ARMS = ("trained", "random", "chance")
"""What every evaluated number is shown beside."""

_ARM_WORDS = {
    "trained": "trained",
    "random": "random",
    "random_init": "random",
    "random_initialisation": "random",
    "random_initialization": "random",
    "init": "random",
    "untrained": "random",
    "chance": "chance",
}
_GROUPS = ("retrieval", "probe", "knn")
_COUNTS = ("median_rank", "mean_rank", "medr", "rank", "candidates", "queries")


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluated number under its arms: `group`/`row`/`metric`, arm -> value."""

    group: str
    row: str
    metric: str
    values: Mapping[str, float]

    @property
    def is_share(self) -> bool:
        """Whether it lives in [0, 1] and is shown in percent."""
        if any(word in self.metric.lower() for word in _COUNTS):
            return False
        return all(0 <= v <= 1 for v in self.values.values() if math.isfinite(v))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple, Any]]:
    """(path, leaf) of nested JSON; lists of objects count as objects by index."""
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        value = {str(i): child for i, child in enumerate(value)}
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from leaves(child, (*path, str(key)))
    else:
        yield path, value


def results(evaluation: Mapping[str, Any]) -> tuple[list[Result], dict[str, Any]]:
    """Pivots an evaluation on its arms, wherever in the nesting they stand.

    Args:
      evaluation: the object of eval.json: numbers below a key `trained`, `random` or
        `chance`; other leaves describe the evaluation.

    Returns:
      The results in file order, and the remaining leaves by dotted path.
    """
    found: dict[tuple[str, ...], dict[str, float]] = {}
    rest: dict[str, Any] = {}
    for path, value in leaves(evaluation):
        at = [i for i, part in enumerate(path) if part in _ARM_WORDS]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not at or not is_number:
            rest[".".join(path)] = value
            continue
        key = tuple(part for i, part in enumerate(path) if i != at[0])
        found.setdefault(key, {})[_ARM_WORDS[path[at[0]]]] = float(value)
    out = []
    for key, values in found.items():
        group, row, metric = _split(key)
        out.append(Result(group, row, metric, values))
    return out, rest


def _split(key: tuple[str, ...]) -> tuple[str, str, str]:
    at = next((i for i, part in enumerate(key) if part in _GROUPS), 0)
    key = key[at:]
    if len(key) == 0:
        return "results", "", "value"
    if len(key) == 1:
        return "results", "", key[0]
    if len(key) == 2:
        return key[0], "", key[1]
    return key[0], " / ".join(key[1:-1]), key[-1]


def show(value: float | None, *, share: bool) -> str:
    """A number for a table cell."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{100 * value:.1f}%" if share else number(value)


def title(text: str) -> str:
    """`video_to_audio` -> `video → audio`."""
    words = text.replace("_to_", " → ").replace("->", " → ").replace("→", " → ")
    return " ".join(words.replace("_", " ").split())


def _cell(result: Result | None) -> Markup:
    if result is None:
        return tag("td", tag("span", "–", class_="none"))
    share = result.is_share
    main = result.values.get("trained")
    parts = [tag("b", show(main, share=share))]
    if share and main is not None and math.isfinite(main):
        bar = [tag("i", style=f"width:{100 * main:.1f}%", class_="fill")]
        for arm in ("random", "chance"):
            value = result.values.get(arm)
            if value is not None and math.isfinite(value):
                bar.append(tag("i", style=f"left:{100 * value:.1f}%", class_=arm))
        parts.append(tag("span", bar, class_="bar"))
    others = [
        tag("span", show(result.values.get(arm), share=share), class_=f"arm {arm}")
        for arm in ARMS[1:]
    ]
    return tag("td", parts, tag("small", others))


def result_table(rows: Sequence[Result], *, caption: str) -> Markup:
    """One group of results: a row per case, a column per metric."""
    metrics = list(dict.fromkeys(r.metric for r in rows))
    if len(metrics) == 1 and all(" / " in r.row for r in rows):
        # modality / label column under one metric: a column per modality instead.
        caption = f"{caption}: {metrics[0]}"
        split = [r.row.split(" / ", 1) for r in rows]
        rows = [
            dataclasses.replace(r, row=column, metric=modality)
            for r, (modality, column) in zip(rows, split, strict=True)
        ]
        metrics = list(dict.fromkeys(r.metric for r in rows))
    cases = list(dict.fromkeys(r.row for r in rows))
    cells = {(r.row, r.metric): r for r in rows}
    head = tag("tr", tag("th", ""), [tag("th", title(m), scope="col") for m in metrics])
    body = [
        tag(
            "tr",
            tag("th", title(case) or "all", scope="row"),
            [_cell(cells.get((case, metric))) for metric in metrics],
        )
        for case in cases
    ]
    table = tag("table", tag("thead", head), tag("tbody", body), class_="results")
    return tag(
        "figure", tag("figcaption", title(caption)), tag("div", table, class_="scroll")
    )


def coverage(found: Any) -> str:
    """`9,123 of 10,000 clips found (91%)`; "" where nothing is known."""
    if not isinstance(found, Mapping):
        return ""
    have, listed = found.get("found"), found.get("listed")
    if not isinstance(have, int):
        return ""
    if not isinstance(listed, int) or listed < 1:
        return f"{have:,} clips found"
    return f"{have:,} of {listed:,} clips found ({have / listed:.0%})"


def scalar(value: Any) -> str:
    """A JSON leaf as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number(value)
    return json.dumps(value, ensure_ascii=False)


def settings(value: Mapping[str, Any]) -> Markup:
    """Nested JSON as dotted keys and values, grouped by the first key."""
    groups: dict[str, list[Markup]] = {}
    for path, leaf in leaves(value):
        key = ".".join(path[1:]) or path[0]
        row = tag("div", tag("dt", key), tag("dd", scalar(leaf)))
        groups.setdefault(path[0] if len(path) > 1 else "", []).append(row)
    blocks = [
        tag("section", tag("h4", name or "top level"), tag("dl", rows))
        for name, rows in groups.items()
    ]
    return tag("div", blocks, class_="settings")


def plain_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """A small table; numbers go right."""
    body = [
        tag(
            "tr",
            [
                tag(
                    "td",
                    cell if isinstance(cell, Markup) else scalar(cell),
                    class_="n" if isinstance(cell, int | float) else None,
                )
                for cell in row
            ],
        )
        for row in rows
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", [tag("th", h, scope="col") for h in head])),
        tag("tbody", body),
        class_="plain",
    )
    return tag("div", table, class_="scroll")
