"""What a build used and left out, added up from the outcomes of its shards."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mmssl.data import records, shards


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build used and left out; `build_report.json` holds the same.

    Attributes:
      rows: rows of the source.
      used: rows in the dataset.
      faults: class to rows left out; used + the sum of faults = rows.
      files: class to the files left out (as the source names them), sorted.
      partial: class to rows that are used without something: `audio_<class>`,
        `video_<class>`, `caption` for a caption file that cannot be read, or `text`
        where a file is cut and some of its timed text is in no piece.
      partial_files: the files of `partial`.
      details: file to what was seen, for both kinds.
      splits: name to rows of the dataset: those used, or their pieces where files were
        cut.
      leaks: byte-identical media that lie in more than one split: for each, split to
        ids.
      labels: column to {class: rows}.
      modalities: "video", "audio", "text" to rows that have it.
      duration_seconds: of all used media together.
      bytes: encoded media in the dataset.
      schema_version: see records.SCHEMA_VERSION.
      extra_keys: unknown keys of manifest rows, kept in `meta`, with their counts.
      dataset: what the manifest says of the data set as a whole, such as `coverage`:
        split to clips listed by its authors and clips found.
      shards: files of the dataset's rows.
      kept: how many of them an earlier build had written.
      dropped: clips of the dataset that was updated whose ids the source lacks.
      seconds: how long this build took.
    """

    rows: int
    used: int
    faults: dict[str, int]
    files: dict[str, list[str]]
    partial: dict[str, int]
    partial_files: dict[str, list[str]]
    details: dict[str, list[str]]
    splits: dict[str, int]
    leaks: list[dict[str, list[str]]]
    labels: dict[str, dict[str, int]]
    modalities: dict[str, int]
    duration_seconds: float
    bytes: int
    schema_version: int
    extra_keys: dict[str, int]
    dataset: dict[str, Any]
    shards: int
    kept: int
    dropped: int
    seconds: float


class Tally:
    """Adds up outcomes, shard by shard.

    Args:
      splits: names, in the report's order; those without a row are reported with 0.

    Attributes:
      files: name to {"sha256", "bytes"} of the shards.
      lengths: split to rows of each of its shards.
    """

    def __init__(self, splits: Iterable[str]) -> None:
        self.rows = self.used = 0
        self.files: dict[str, dict[str, Any]] = {}
        self.lengths: dict[str, list[int]] = {}
        self.faults: dict[str, list[str]] = collections.defaultdict(list)
        self.partial: dict[str, list[str]] = collections.defaultdict(list)
        self.details: dict[str, list[str]] = collections.defaultdict(list)
        self.splits = dict.fromkeys(splits, 0)
        self.labels: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.modalities = {"video": 0, "audio": 0, "text": 0}
        self.seconds, self.bytes = 0.0, 0
        self._places: dict[bytes, list[tuple[str, str]]] = {}

    def add(self, outcome: shards.Outcome) -> None:
        """One shard."""
        if file := outcome["file"]:
            self.files[file["name"]] = {k: file[k] for k in ("sha256", "bytes")}
            lengths = self.lengths.setdefault(outcome["split"], [])
            # A number without a file, or not in use: TFDS passes over a length of 0.
            lengths.extend([0] * (outcome["index"] + 1 - len(lengths)))
            lengths[outcome["index"]] = file["rows"]
        for row in outcome["rows"]:
            self.rows += 1
            if fault := row.get("fault"):
                self.faults[fault[0]].append(row["media"])
                self.details[row["media"]].append(": ".join(fault))
            else:
                self._use(row, outcome["split"])

    def _use(self, row: Mapping[str, Any], split: str) -> None:
        self.used += 1
        self.splits[split] += row["records"]
        for name in sorted({name for name, _ in row["partial"]}):
            self.partial[name].append(row["media"])
        for name, detail in row["partial"]:
            self.details[row["media"]].append(f"{name}: {detail}")
        for column, value in row["labels"].items():
            self.labels[column][value] += 1
        for name in row["modalities"]:
            self.modalities[name] += 1
        self.seconds += row["seconds"]
        self.bytes += row["bytes"]
        if row["sha256"]:
            digest = bytes.fromhex(row["sha256"])
            self._places.setdefault(digest, []).append((split, row["id"]))

    def _leaks(self) -> list[dict[str, list[str]]]:
        found = []
        for places in self._places.values():
            ids: dict[str, list[str]] = {}
            for split, id in sorted(places):
                ids.setdefault(split, []).append(id)
            if len(ids) > 1:
                found.append(ids)
        return sorted(found, key=str)

    def fields(self) -> dict[str, Any]:
        """The fields of a report that the outcomes tell."""
        files, partial = _sorted(self.faults), _sorted(self.partial)
        labels = sorted(self.labels.items())
        return {
            "rows": self.rows,
            "used": self.used,
            "faults": {name: len(paths) for name, paths in files.items()},
            "files": files,
            "partial": {name: len(paths) for name, paths in partial.items()},
            "partial_files": partial,
            "details": _sorted(self.details),
            "splits": self.splits,
            "leaks": self._leaks(),
            "labels": {name: dict(sorted(counts.items())) for name, counts in labels},
            "modalities": self.modalities,
            "duration_seconds": self.seconds,
            "bytes": self.bytes,
            "schema_version": records.SCHEMA_VERSION,
        }


def _sorted(lists: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(values) for name, values in sorted(lists.items())}
