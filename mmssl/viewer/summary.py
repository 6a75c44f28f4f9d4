"""A dataset's own words about itself, and a survey of its rows, for the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmssl.data import records, survey
from mmssl.data.faults import FAULTS
from mmssl.report import dataset as page


def summarize(path: str, name: str, found: survey.Survey) -> page.Summary:
    """A dataset's own words about itself, and what a survey of its rows found."""
    metadata, report = records.read_metadata(path), survey.read_report(path)
    numbers, counts = found.numbers, found.counts
    seconds, size = report.get("duration_seconds"), report.get("bytes")
    total = sum(metadata["splits"].values())
    return page.Summary(
        name=name,
        path=path,
        rows=total,
        listed=report.get("rows", total),
        used=report.get("used", total),
        hours=None if seconds is None else seconds / 3600,
        bytes=size,
        splits=metadata["splits"],
        modalities=report.get("modalities", {}),
        labels=report.get("labels", {}),
        coverage=(metadata.get("dataset") or {}).get("coverage", {}),
        faults=faults(report),
        details=report.get("details", {}),
        surveyed=found.rows,
        numbers={
            "Duration": ("s", numbers["duration"]),
            "Shorter side": ("px", numbers["size"]),
            "Frame rate": ("fps", np.round(numbers["fps"], 2).tolist()),
            "Sample rate": ("kHz", [rate / 1000 for rate in numbers["rate"]]),
            "Words of text": ("", numbers["words"]),
            "File size": ("kB", [count / 1000 for count in numbers["bytes"]]),
        },
        tallies={
            "Resolution": counts["resolution"],
            "Sound": counts["audio"],
            "Container": counts["container"],
            "Script of a text": counts["script"],
            "Missing or empty": counts["missing"],
            "Fault": counts["fault"],
        },
    )


def faults(report: Mapping[str, Any]) -> list[page.Fault]:
    """Of a build: files left out, then those used in part."""
    found = []
    for counts, files, used in (
        ("faults", "files", False),
        ("partial", "partial_files", True),
    ):
        for name, count in (report.get(counts) or {}).items():
            names = list((report.get(files) or {}).get(name, ()))
            names = list(dict.fromkeys(names))[: page.FILES_SHOWN]
            found.append(page.Fault(name, meaning(name), count, names, used))
    return found


def meaning(name: str) -> str:
    """Of `corrupt`, `audio_corrupt` or `caption`."""
    modality, _, rest = name.partition("_")
    if name in FAULTS:
        return FAULTS[name]
    if rest in FAULTS:
        return f"{modality}: {FAULTS[rest]}"
    return "the file of its text cannot be read" if name == "caption" else ""
