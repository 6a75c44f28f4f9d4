"""The parts of the page, top to bottom; each says what it lacks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmssl.report import curves as curves_lib
from mmssl.report import media, tables
from mmssl.report.html import Markup, tag
from mmssl.report.plots import number
from mmssl.report.run import FILES, Run


def _source(*names: str) -> Markup:
    links = [tag("a", name, href=name, class_="source") for name in names]
    return tag("p", "from ", links, class_="from")


def gap(text: str) -> Markup:
    """A line that says what is not there."""
    return tag("p", text, class_="gap")


def section(anchor: str, title: str, sources: Sequence[str], *body: Any) -> Markup:
    """Title and sources beside the body."""
    side = tag("div", tag("h2", title), _source(*sources) if sources else None)
    return tag("section", side, tag("div", body, class_="body"), id=anchor)


def _faulty(run: Run) -> int:
    """Files that the builds of all datasets left out."""
    return sum(
        leaf
        for path, leaf in tables.leaves(run.data)
        if "faults" in path[:-1] and isinstance(leaf, int)
    )


def _first_path(config: Mapping[str, Any]) -> str | None:
    """The first path under `data`, alone or in a mixture."""
    for path, leaf in tables.leaves(config.get("data")):
        if path and path[-1] == "path" and isinstance(leaf, str) and leaf:
            return leaf
    return None


def duration(seconds: float) -> str:
    """`4 min 10 s`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def _last(run: Run, name: str) -> float | None:
    for record in reversed(run.metrics):
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def _first(run: Run, name: str) -> float | None:
    for record in run.metrics:
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def spent(run: Run) -> float | None:
    """Seconds of training by the log's time stamps, stops between restarts left out."""
    # A session begins with its start, or with what going back to a checkpoint wrote.
    opening = ("start", "resume", "warning")
    stamps = sorted(
        (float(record["time"]), curves_lib.event_kind(record) in opening)
        for record in (*run.events, *run.metrics)
        if isinstance(record.get("time"), int | float)
    )
    if len(stamps) < 2:
        return None
    pairs = itertools.pairwise(stamps)
    return sum(late - early for (early, _), (late, fresh) in pairs if not fresh)


def hardware(run: Run) -> str | None:
    """What the run says of its machine, in a line."""
    for source in (run.data, *run.events, run.config, run.eval):
        for key in ("hardware", "machine", "devices", "device", "platform"):
            value = source.get(key)
            if isinstance(value, Mapping):
                return ", ".join(f"{k} {tables.scalar(v)}" for k, v in value.items())
            if isinstance(value, list):
                return ", ".join(tables.scalar(v) for v in value)
            if value:
                return tables.scalar(value)
    return None


def headline(run: Run) -> tables.Result | None:
    """The first R@10 of the file, else its first share: fixed, not the best one."""
    shares = [
        r
        for r in tables.results(run.eval)[0]
        if r.is_share
        and math.isfinite(r.values.get("trained", math.nan))
        and len(r.values) > 1
    ]
    recalls = [r for r in shares if r.metric.lower() == "r@10"]
    return next(iter([*recalls, *shares]), None)


def _summary(run: Run) -> str:
    model = run.config.get("model")
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    size = model.get("size") if isinstance(model, Mapping) else None
    words = ["Self-supervised pretraining"]
    if isinstance(backbone, str):
        words.append(f"of a {backbone} backbone")
        if isinstance(size, str):
            words.append(f"({size})")
    path = _first_path(run.config)
    if path is not None:
        words.append(f"on {path.rstrip('/').rsplit('/', 1)[-1]}")
    batch, seed = run.config.get("batch"), run.config.get("seed")
    if isinstance(batch, int):
        words.append(f"at batch {batch}")
    text = " ".join(words)
    return f"{text}, seed {seed}." if isinstance(seed, int) else f"{text}."


def header(run: Run) -> Markup:
    """Title, one sentence, the figures that matter."""
    facts: list[tuple[str, str, str]] = []
    if run.metrics:
        done = int(run.metrics[-1]["step"])
        total = run.config.get("steps")
        note = f"of {total:,}" if isinstance(total, int) else "last logged"
        facts.append(("Steps", f"{done:,}", note))
    loss, start = _last(run, "loss"), _first(run, "loss")
    if loss is not None and start is not None:
        facts.append(("Loss", number(loss), f"from {number(start)}"))
    first = headline(run)
    if first is not None:
        others = " · ".join(
            f"{arm} {tables.show(first.values[arm], share=True)}"
            for arm in ("random", "chance")
            if arm in first.values
        )
        where = " ".join(
            tables.title(x) for x in (first.row or first.group, first.metric)
        )
        shown = tables.show(first.values["trained"], share=True)
        facts.append((where, shown, others))
    used = [
        leaf
        for path, leaf in tables.leaves(run.data)
        if path and path[-1] == "used" and isinstance(leaf, int)
    ]
    if used:
        count = f"{_faulty(run):,} files with faults"
        facts.append(("Clips", f"{sum(used):,}", count))
    seconds = spent(run)
    if seconds is not None:
        steps = _last(run, "goodput/step")
        note = f"{steps:.0%} of it in steps" if steps else "logged by the run"
        facts.append(("Time", duration(seconds), note))
    cells = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), tag("small", note)))
        for name, value, note in facts
    ]
    machine = hardware(run)
    lacking = [s.note for s in run.sources.values() if s.note]
    return tag(
        "header",
        tag("p", "mmssl report", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", _summary(run), class_="lead"),
        tag("p", f"Hardware: {machine or 'not recorded by the run'}.", class_="lead"),
        tag("dl", cells, class_="facts") if cells else None,
        tag("ul", [tag("li", note) for note in lacking], class_="gap")
        if lacking
        else None,
        class_="top",
    )


def results(run: Run) -> Markup:
    """Tables of eval.json, each number beside random initialisation and chance."""
    sources = ("eval.json",)
    note = run.missing("eval.json")
    if note:
        text = f"{note}; `mmssl eval --workdir …` writes it."
        return section("results", "Results", sources, gap(text))
    found, rest = tables.results({k: v for k, v in run.eval.items() if k != "examples"})
    groups: dict[str, list[tables.Result]] = {}
    for result in found:
        groups.setdefault(result.group, []).append(result)
    counts = run.eval.get("coverage")
    there = tables.coverage(counts)
    if there and counts and (part := counts.get("slice")):
        there = f"the slice {part} of {there}"
    key = tag(
        "p",
        tag("b", "Bold: trained. "),
        tag("span", "random initialisation", class_="arm random"),
        tag("span", "chance", class_="arm chance"),
        f"Judged on {there}." if there else None,
        class_="key-line",
    )
    body = [tables.result_table(rows, caption=name) for name, rows in groups.items()]
    about = tag(
        "details", tag("summary", "How it was evaluated"), tables.settings(_nest(rest))
    )
    return section(
        "results",
        "Results",
        sources,
        [key, *body] if body else gap("eval.json holds no trained/random/chance."),
        about if rest else None,
    )


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key or "value": value for key, value in flat.items()}


def training(run: Run) -> Markup:
    """Curves with events on them, and the events in words."""
    sources = ("metrics.jsonl", "events.jsonl")
    marks = curves_lib.marks(run.events, run.metrics)
    drawn = [
        curves_lib.chart_figure(title, series, marks)
        for title, series in curves_lib.charts(run.metrics).items()
        if not series[0].name.startswith(curves_lib.CONFLICT)
    ]
    notes = [run.missing(name) for name in sources if run.missing(name)]
    if run.replayed:
        notes.append(
            f"{run.replayed} logged steps were repeated after a restart; "
            "the later value is drawn"
        )
    return section(
        "training",
        "Training",
        sources,
        [gap(f"{note}.") for note in notes],
        tag("div", drawn, class_="curves") if drawn else gap("No curve to draw."),
        _events(run),
    )


def _events(run: Run) -> Markup | None:
    if run.missing("events.jsonl") and not run.events:
        return None
    rows = [
        (
            curves_lib.event_kind(event),
            "" if event.get("step") is None else event["step"],
            curves_lib.event_text(event),
        )
        for event in run.events
    ]
    if not rows:
        return gap("No events.")
    table = tables.plain_table(("event", "step", "what"), rows)
    words = "1 event" if len(rows) == 1 else f"{len(rows):,} events"
    return tag(
        "details", tag("summary", words), table, open="" if len(rows) < 9 else None
    )


def samples(clips: Sequence[media.Sample] | None) -> Markup:
    """A few clips as the model sees them."""
    if not clips:
        return section("samples", "Samples", (), gap("No sample clips were given."))
    blocks = [media.sample_block(clip) for clip in clips]
    return section("samples", "Samples", (), tag("div", blocks, class_="samples"))


def retrieval(queries: Sequence[media.Query] | None) -> Markup:
    """Queries with their top five, the right ones marked."""
    if not queries:
        text = "No retrieval examples were given."
        return section("retrieval", "Retrieval", (), gap(text))
    blocks: list[Markup] = []
    for direction, group in media.query_groups(queries):
        hits = media.count_correct(group)
        blocks.append(
            tag(
                "div",
                tag("h3", tables.title(direction)),
                tag("p", f"{hits} of these {len(group)} found first", class_="note"),
                [media.query_block(query) for query in group],
                class_="direction",
            )
        )
    return section("retrieval", "Retrieval", (), blocks)


def configuration(run: Run) -> Markup:
    """The resolved configuration, folded."""
    note = run.missing("config.json")
    if note:
        return section("config", "Configuration", ("config.json",), gap(f"{note}."))
    count = sum(1 for _ in tables.leaves(run.config))
    folded = tag(
        "details",
        tag("summary", f"{count} settings, resolved"),
        tables.settings(run.config),
    )
    return section("config", "Configuration", ("config.json",), folded)


def footer(run: Run, *, version: str, made: str) -> Markup:
    """Every file behind the page, with its hash."""
    rows = []
    for name in FILES:
        source = run.sources[name]
        link = name if source.size is None else tag("a", name, href=name)
        size = "absent" if source.size is None else f"{source.size:,} B"
        digest = (source.sha256 or "")[:16]
        rows.append((link, source.what, size, tag("code", digest), source.note))
    table = tables.plain_table(("file", "holds", "size", "sha256", "note"), rows)
    text = (
        f"Written by mmssl {version} on {made}. Samples and retrieval examples were "
        "decoded and ranked by the command that wrote this page; every other number "
        "is read from these files, which lie beside it."
    )
    return tag("footer", tag("h2", "Sources"), table, tag("p", text), id="sources")
