"""The files of a run's workdir, read with their gaps said."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mmssl.errors import UserError

FILES = {
    "config.json": "the resolved configuration",
    "metrics.jsonl": "one line of training metrics per logged step",
    "conflict.jsonl": "cosines of the losses' gradients, sample by sample",
    "eval.jsonl": "evaluations beside training, by step",
    "events.jsonl": "restarts, skipped steps, faults, warnings",
    "eval.json": "evaluation: trained, random initialisation, chance",
    "data.json": "dataset fingerprint, coverage, fault counts",
}

OPTIONAL = ("conflict.jsonl", "eval.jsonl")
"""Written only by runs that have something to say there."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One file behind the page; `note` says what is missing or damaged in it."""

    name: str
    what: str
    size: int | None
    sha256: str | None
    note: str


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir tells. Absent files leave empty values and a note in `sources`.

    Attributes:
      name: the workdir's last path component.
      config, eval, data: the JSON objects.
      metrics: one mapping per step, ascending; of repeated steps (after a restart
        from an older checkpoint) the last.
      replayed: how many metric lines such repeats replaced.
      conflicts: rows of `train.conflict`, ascending.
      events: in file order.
      sources: every file by name, present or not.
    """

    name: str
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    replayed: int
    conflicts: list[dict[str, Any]]
    events: list[dict[str, Any]]
    eval: Mapping[str, Any]
    data: Mapping[str, Any]
    sources: Mapping[str, Source]

    def missing(self, name: str) -> str:
        """Why a file gave nothing, or an empty string."""
        return self.sources[name].note


def read_run(workdir: pathlib.Path) -> Run:
    """Reads a workdir; damaged or absent parts become notes, not exceptions.

    Raises:
      UserError: the workdir is not a folder or holds none of the files.
    """
    if not workdir.is_dir():
        raise UserError(
            f"report: no such workdir: {workdir}; pass the --workdir of `mmssl train`"
        )
    if not any((workdir / name).is_file() for name in FILES):
        raise UserError(
            f"report: {workdir} holds none of {', '.join(FILES)}; "
            "pass the --workdir of `mmssl train`"
        )
    sources: dict[str, Source] = {}
    objects: dict[str, dict[str, Any]] = {}
    lines: dict[str, list[dict[str, Any]]] = {}
    for name, what in FILES.items():
        path = workdir / name
        if not path.is_file():
            note = "" if name in OPTIONAL else f"{name} is not in the workdir"
            sources[name] = Source(name, what, None, None, note)
            continue
        raw = path.read_bytes()
        text = raw.decode("utf-8", errors="replace")
        note = ""
        if name.endswith(".jsonl"):
            lines[name], bad = _lines(text)
            if bad:
                note = f"{name}: {bad} of {bad + len(lines[name])} lines unreadable"
            elif not lines[name]:
                note = f"{name} is empty"
        else:
            objects[name], note = _object(text, name)
        digest = hashlib.sha256(raw).hexdigest()
        sources[name] = Source(name, what, len(raw), digest, note)
    # Of equal steps the later row's time counts, which is training's.
    both = [*lines.get("eval.jsonl", []), *lines.get("metrics.jsonl", [])]
    logged = [row for row in both if _is_step(row.get("step"))]
    conflicts = {
        int(row["step"]): row
        for row in lines.get("conflict.jsonl", [])
        if _is_step(row.get("step"))
    }
    by_step: dict[int, dict[str, Any]] = {}
    replayed = 0
    for record in logged:
        # Evaluations may log under a step that training logged too: keep both.
        before = by_step.get(int(record["step"]), {})
        replayed += bool(before.keys() & (record.keys() - {"step", "time"}))
        by_step[int(record["step"])] = before | record
    return Run(
        name=workdir.resolve().name,
        config=objects.get("config.json", {}),
        metrics=[by_step[step] for step in sorted(by_step)],
        replayed=replayed,
        conflicts=[conflicts[step] for step in sorted(conflicts)],
        events=lines.get("events.jsonl", []),
        eval=objects.get("eval.json", {}),
        data=objects.get("data.json", {}),
        sources=sources,
    )


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _object(text: str, name: str) -> tuple[dict[str, Any], str]:
    try:
        value = json.loads(text)
    except ValueError as error:
        return {}, f"{name} is not valid JSON ({error})"
    if not isinstance(value, dict):
        return {}, f"{name} holds a {type(value).__name__}, not an object"
    return value, ""


def _lines(text: str) -> tuple[list[dict[str, Any]], int]:
    good: list[dict[str, Any]] = []
    bad = 0
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            bad += 1  # the torn last line of a killed run
            continue
        if isinstance(value, dict):
            good.append(value)
        else:
            bad += 1
    return good, bad
