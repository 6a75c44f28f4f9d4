"""`write_report`: a workdir to one self-contained HTML file."""

import datetime
import importlib.resources
import os
import pathlib
from collections.abc import Mapping, Sequence

import mmssl
from mmssl import files
from mmssl.report import conflict, data, media, sections
from mmssl.report.html import Markup, document, join, tag
from mmssl.report.run import read_run

NAV = (
    "results",
    "training",
    "conflict",
    "samples",
    "retrieval",
    "data",
    "config",
    "sources",
)


def write_report(
    workdir: str | os.PathLike[str],
    *,
    samples: Sequence[media.Sample] | None = None,
    retrieval: Sequence[media.Query] | None = None,
    clips: Mapping[str, media.Sample] | None = None,
) -> pathlib.Path:
    """Writes W/report.html, which opens offline and loads nothing.

    Reads W/config.json, metrics.jsonl, conflict.jsonl, events.jsonl, eval.json and
    data.json; what is missing or damaged is said on the page.

    Args:
      workdir: the run's folder.
      samples: clips to show, decoded (`media.Sample`).
      retrieval: ranked examples to show (`media.Query`).
      clips: by id, those that conflict most and least (`conflict.ids`).

    Returns:
      The path of the page.

    Raises:
      UserError: the workdir is not a folder, or none of the files is in it.
    """
    folder = pathlib.Path(workdir)
    run = read_run(folder)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    conflicts = conflict.conflict(run, clips or {})
    names = [name for name in NAV if name != "conflict" or conflicts]
    links = [tag("a", name.capitalize(), href=f"#{name}") for name in names]
    body = [
        sections.header(run),
        tag("nav", links, aria_label="Sections"),
        tag(
            "main",
            sections.results(run),
            sections.training(run),
            conflicts,
            sections.samples(samples),
            sections.retrieval(retrieval),
            data.data(run),
            sections.configuration(run),
        ),
        sections.footer(run, version=mmssl.__version__, made=made),
    ]
    page = document(
        title=f"{run.name} · mmssl report",
        css=asset("style.css"),
        script=asset("page.js"),
        body=join(body),
    )
    path = folder / "report.html"
    files.write(path, page)
    return path


def asset(name: str) -> Markup:
    """A stylesheet or script of this package."""
    file = importlib.resources.files("mmssl.report").joinpath(name)
    return Markup(file.read_text(encoding="utf-8"))
