"""`write_report`: a workdir to one self-contained HTML file."""

import datetime
import importlib.resources
import os
import pathlib
import tempfile
from collections.abc import Sequence

import mmssl
from mmssl.report import media, sections
from mmssl.report.html import Markup, document, join, tag
from mmssl.report.run import read_run

NAV = ("results", "training", "samples", "retrieval", "data", "config", "sources")


def write_report(
    workdir: str | os.PathLike[str],
    *,
    samples: Sequence[media.Sample] | None = None,
    retrieval: Sequence[media.Query] | None = None,
) -> pathlib.Path:
    """Writes W/report.html, which opens offline and loads nothing.

    Reads W/config.json, metrics.jsonl, events.jsonl, eval.json and data.json; what is
    missing or damaged is said on the page.

    Args:
      workdir: the run's folder.
      samples: clips to show, decoded (`media.Sample`).
      retrieval: ranked examples to show (`media.Query`).

    Returns:
      The path of the page.

    Raises:
      UserError: the workdir is not a folder, or none of the files is in it.
    """
    folder = pathlib.Path(workdir)
    run = read_run(folder)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    links = [tag("a", name.capitalize(), href=f"#{name}") for name in NAV]
    body = [
        sections.header(run),
        tag("nav", links, aria_label="Sections"),
        tag(
            "main",
            sections.results(run),
            sections.training(run),
            sections.samples(samples),
            sections.retrieval(retrieval),
            sections.data(run),
            sections.configuration(run),
        ),
        sections.footer(run, version=mmssl.__version__, made=made),
    ]
    page = document(
        title=f"{run.name} · mmssl report",
        css=_asset("style.css"),
        script=_asset("page.js"),
        body=join(body),
    )
    return _write(folder / "report.html", page)


def _asset(name: str) -> Markup:
    files = importlib.resources.files("mmssl.report")
    return Markup(files.joinpath(name).read_text(encoding="utf-8"))


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
    """Whole or not at all: a reader never sees half a page."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".html")
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
