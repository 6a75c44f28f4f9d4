"""The run report's section on data: what was there, what was met, source by source."""

from collections.abc import Mapping
from typing import Any

from mmssl.report import histograms, sections, tables
from mmssl.report.html import Markup, tag
from mmssl.report.run import Run

_OWN = ("datasets",)


def data(run: Run) -> Markup:
    """Coverage, counts and faults of each dataset; the rest of data.json folded."""
    note = run.missing("data.json")
    body: list[Any] = [sections.gap(f"{note}.")] if note else []
    sources = datasets(run)
    body += [_source(source, alone=len(sources) == 1) for source in sources]
    rest = {k: v for k, v in run.data.items() if not sources or k not in _OWN}
    if rest:
        body.append(tables.settings(rest))
    return sections.section("data", "Data", ("data.json",), body)


def datasets(run: Run) -> list[Mapping[str, Any]]:
    """The entries of data.json; damaged ones are left out."""
    found = run.data.get("datasets")
    return (
        [d for d in found if isinstance(d, Mapping)] if isinstance(found, list) else []
    )


def _mapping(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    return value if isinstance(value, Mapping) else {}


def _counts(source: Mapping[str, Any], name: str) -> dict[str, int]:
    items = _mapping(source, name).items()
    return {str(k): v for k, v in items if isinstance(v, int)}


def _source(source: Mapping[str, Any], *, alone: bool) -> Markup:
    said = []
    if not alone and "weight" in source:
        said.append(f"weight {source['weight']}")
    if isinstance(source.get("used"), int):
        said.append(f"{source['used']:,} clips")
    if isinstance(source.get("hours"), int | float):
        said.append(sections.duration(3600 * source["hours"]))
    splits = _counts(source, "splits")
    said += [f"{name} {rows:,}" for name, rows in splits.items()]
    if isinstance(source.get("fingerprint"), str):
        said.append(f"fingerprint {source['fingerprint'][:16]}")
    shares = _counts(source, "modalities")
    figures = []
    if shares and isinstance(source.get("used"), int):
        whole = source["used"]
        figures.append(histograms.tally(shares, title="Clips with", of=whole))
    return tag(
        "div",
        tag("h3", tag("code", str(source.get("path", "dataset")), dir="auto")),
        tag("p", " · ".join(said), class_="note") if said else None,
        _coverage(source),
        tag("div", figures, class_="charts") if figures else None,
        _faults(source),
        class_="dataset",
    )


def _coverage(source: Mapping[str, Any]) -> Markup | None:
    rows = [
        (split, tables.coverage(found))
        for split, found in _mapping(source, "coverage").items()
        if tables.coverage(found)
    ]
    return tables.plain_table(("split", "of the published set"), rows) if rows else None


def _faults(source: Mapping[str, Any]) -> Markup:
    """By class: at the build and in training, with some of the files."""
    rows: list[tuple[Any, ...]] = []
    files = _mapping(source, "fault_files")
    kinds = {"faults": "left out by the build", "partial": "used in part"}
    for kind, when in kinds.items():
        for name, count in _counts(source, kind).items():
            if count:
                rows.append((name, when, count, _listed(files.get(name))))
    met = _mapping(source, "faults_met")
    for name, entry in met.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("samples"), int):
            shown = _listed(entry.get("files"))
            rows.append((name, "met in training", entry["samples"], shown))
    if not rows:
        trained = ", and training met none" if "faults_met" in source else ""
        return tag("p", f"No media faults at the build{trained}.", class_="note")
    table = tables.plain_table(("fault", "where", "count", "such as"), rows)
    if "faults_met" in source and not met:
        return tag("div", table, tag("p", "Training met none.", class_="note"))
    return table


def _listed(files: Any) -> str:
    return ", ".join(map(str, files)) if isinstance(files, list) else ""
