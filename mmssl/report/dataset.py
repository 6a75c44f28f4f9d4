"""`write_dataset`: one self-contained page about a dataset and some of its clips."""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import mmssl
from mmssl import files
from mmssl.report import clip as clip_lib
from mmssl.report import histograms, sections, tables
from mmssl.report.build import asset
from mmssl.report.clip import Clip
from mmssl.report.html import Markup, document, join, tag

FILES_SHOWN = 50
"""Of each class of fault; the build's report names all."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One class of fault that the build met.

    Attributes:
      name: `corrupt` of a file left out, `audio_corrupt` of one used in part.
      meaning: in words.
      count: files.
      files: their names, the first of them.
      used: whether what is left of the files is in the dataset.
    """

    name: str
    meaning: str
    count: int
    files: Sequence[str]
    used: bool


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a dataset holds.

    Attributes:
      name: of its folder.
      path: as given.
      rows: in it.
      listed: rows that the build was given.
      used: those of them that are in it, some perhaps cut into several rows.
      hours: of media; None where the build does not say.
      bytes: of encoded media, likewise.
      splits: name to rows.
      modalities: name to rows that have it.
      labels: column to {class: rows}.
      coverage: split to clips `found` and `listed` of a published set.
      faults: of the build.
      details: file to what was seen in it.
      surveyed: rows behind `numbers` and `tallies`, spread evenly over the dataset.
      numbers: title to (unit, one number per row).
      tallies: title to {value: rows}.
    """

    name: str
    path: str
    rows: int
    listed: int
    used: int
    hours: float | None
    bytes: int | None
    splits: Mapping[str, int]
    modalities: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    coverage: Mapping[str, Mapping[str, Any]]
    faults: Sequence[Fault]
    details: Mapping[str, Sequence[str]]
    surveyed: int
    numbers: Mapping[str, tuple[str, Sequence[float]]]
    tallies: Mapping[str, Mapping[str, int]]


def write_dataset(
    out: pathlib.Path, summary: Summary, clips: Sequence[Clip], *, view: str = ""
) -> None:
    """Writes a page that opens offline and loads nothing.

    Args:
      out: the file; replaced if it is there.
      summary: of the dataset.
      clips: to show, in this order.
      view: where the clips' `draw` is from, in whole sentences.
    """
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    names = ("summary", "faults", "samples")
    links = [tag("a", name.capitalize(), href=f"#{name}") for name in names]
    body = [
        _header(summary),
        tag("nav", links, aria_label="Sections"),
        tag(
            "main",
            _summary(summary),
            _faults(summary),
            _samples(summary, clips, view),
        ),
        tag(
            "footer",
            tag(
                "p",
                f"Written by mmssl {mmssl.__version__} on {made}. Everything is in "
                "this file. Pictures, sound and players show what the decoder gives, "
                "upright and mono, as training reads it; they are not the originals.",
            ),
        ),
    ]
    page = document(
        title=f"{summary.name} · mmssl dataset",
        css=Markup(asset("style.css") + asset("dataset.css")),
        script=asset("dataset.js"),
        body=join(body),
    )
    files.write(out, page)


def _header(summary: Summary) -> Markup:
    splits = " · ".join(f"{name} {rows:,}" for name, rows in summary.splits.items())
    facts = [("Clips", f"{summary.rows:,}", splits)]
    if summary.hours is not None:
        mean = 3600 * summary.hours / max(summary.rows, 1)
        facts.append(
            ("Length", sections.duration(3600 * summary.hours), f"{mean:.1f} s a clip")
        )
    if summary.bytes is not None:
        each = summary.bytes / max(summary.rows, 1)
        facts.append(("Media", size(summary.bytes), f"{size(each)} a clip"))
    for name, rows in summary.modalities.items():
        share = rows / max(summary.used, 1)
        facts.append((name.capitalize(), f"{share:.0%}", f"{rows:,} clips"))
    lost = sum(fault.count for fault in summary.faults if not fault.used)
    part = sum(fault.count for fault in summary.faults if fault.used)
    note = f"of {summary.listed:,} files · {part:,} used in part"
    facts.append(("Left out", f"{lost:,}", note))
    listed = [c for c in summary.coverage.values() if c.get("listed")]
    if listed:
        found, total = (sum(int(c[key]) for c in listed) for key in ("found", "listed"))
        note = f"{found:,} of {total:,} clips of the set"
        facts.append(("Coverage", f"{found / max(total, 1):.0%}", note))
    cells = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), tag("small", note)))
        for name, value, note in facts
    ]
    return tag(
        "header",
        tag("p", "mmssl dataset", class_="eyebrow"),
        tag("h1", summary.name, dir="auto"),
        tag("p", tag("code", summary.path, dir="auto"), class_="lead"),
        tag("dl", cells, class_="facts"),
        class_="top",
    )


def size(count: float) -> str:
    """`37.1 MB`."""
    power = 0
    while count >= 999.5 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _summary(summary: Summary) -> Markup:
    drawn = [
        histograms.histogram(values, title=title, unit=unit)
        for title, (unit, values) in summary.numbers.items()
        if len(values)
    ]
    drawn += [
        histograms.tally(counts, title=title, of=summary.surveyed)
        for title, counts in summary.tallies.items()
        if counts
    ]
    drawn += [
        histograms.tally(counts, title=f"Label: {column}", of=summary.used)
        for column, counts in summary.labels.items()
        if counts
    ]
    of = "all" if summary.surveyed == summary.rows else f"{summary.surveyed:,} of the"
    note = (
        f"Histograms and shares are of {of} {summary.rows:,} clips"
        f"{'' if of == 'all' else ', evenly spread'}; labels are of all clips."
    )
    coverage = [
        (split, counts.get("found", ""), _or_dash(counts.get("listed")))
        for split, counts in summary.coverage.items()
    ]
    return sections.section(
        "summary",
        "Summary",
        (),
        tag("p", note, class_="note"),
        tables.plain_table(("coverage: split", "found", "listed"), coverage)
        if coverage
        else None,
        tag("div", drawn, class_="charts"),
    )


def _or_dash(value: Any) -> Any:
    return "–" if value is None else value


def _faults(summary: Summary) -> Markup:
    if not summary.faults:
        text = "The build met no fault: every file decoded from begin to end."
        return sections.section("faults", "Faults", (), tag("p", text))
    return sections.section(
        "faults",
        "Faults",
        (),
        [
            tag(
                "details",
                tag(
                    "summary",
                    tag("b", f"{fault.count:,}"),
                    tag("code", fault.name),
                    tag("span", "used in part" if fault.used else "left out"),
                    tag("span", fault.meaning, class_="meaning"),
                ),
                _fault_files(fault, summary.details),
                class_="fault",
            )
            for fault in sorted(summary.faults, key=lambda f: (f.used, -f.count))
        ],
    )


def _fault_files(fault: Fault, details: Mapping[str, Sequence[str]]) -> list[Markup]:
    shown = fault.files[:FILES_SHOWN]
    rows = [(name, "; ".join(details.get(name, ()))[:300]) for name in shown]
    parts = [tables.plain_table(("file", "what was seen"), rows)]
    if fault.count > len(shown):
        more = f"and {fault.count - len(shown):,} more: build_report.json"
        parts.append(tag("p", more, class_="note"))
    return parts


def _samples(summary: Summary, clips: Sequence[Clip], view: str) -> Markup:
    note = (
        f"{len(clips):,} of {summary.rows:,} clips, evenly spread; those with faults "
        f"come first. {view}"
    )
    return tag(
        "section",
        tag("div", tag("h2", "Samples"), tag("p", note, class_="note")),
        _filters(clips),
        tag("div", [clip_lib.card(clip) for clip in clips], class_="clips"),
        id="samples",
        class_="wide",
    )


def _filters(clips: Sequence[Clip]) -> Markup:
    """Native controls, shown by the script that they need."""
    faults = sorted({name for clip in clips for name in clip.fault_names})
    missing = sorted({name for clip in clips for name in clip.missing})
    choices = [("any", "", "")]
    choices += [("a fault", "fault", "")] if faults else []
    choices += [(name, "fault", name) for name in faults]
    choices += [(f"no {name}", "missing", name) for name in missing]
    choices += [("none", "none", "")] if faults or missing else []
    controls = [_select("Fault", "fault", choices)]
    columns = list(dict.fromkeys(k for clip in clips for k in clip.labels))
    for column in columns:
        values = sorted({clip.labels.get(column, "") for clip in clips} - {""})
        options = [("any", "", ""), *((value, "label", value) for value in values)]
        controls.append(_select(column, "label", options, column=column))
    search = tag("input", type="search", placeholder="id or text", name="text")
    controls.append(tag("label", tag("span", "Search"), search))
    return tag(
        "form",
        controls,
        tag("output", f"{len(clips)} clips"),
        tag("button", "Clear", type="reset"),
        tag(
            "p",
            tag("kbd", "j"),
            tag("kbd", "k"),
            " next and previous clip, ",
            tag("kbd", "p"),
            " play",
            class_="keys",
        ),
        class_="filters",
        hidden="",
        aria_label="Filter the clips",
    )


def _select(
    title: str,
    kind: str,
    options: Sequence[tuple[str, str, str]],
    *,
    column: str | None = None,
) -> Markup:
    """`options` are (shown, kind of choice, value)."""
    return tag(
        "label",
        tag("span", title, dir="auto"),
        tag(
            "select",
            [
                tag("option", shown[:60], data_kind=chosen, data_value=value)
                for shown, chosen, value in options
            ],
            data_filter=kind,
            data_column=column,
        ),
    )
