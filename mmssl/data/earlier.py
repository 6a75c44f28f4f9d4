"""What a build of a grown manifest keeps of the dataset that is there."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmssl.data import records, shards, stores
from mmssl.data.rows import Rows, mark
from mmssl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Earlier:
    """Shards that stay as they are.

    Attributes:
      outcomes: names of their outcomes files.
      marks: `rows.mark` of their rows.
      taken: split to shard numbers that no new shard may have.
      dropped: rows of the dataset whose ids the new manifest lacks.
    """

    outcomes: Sequence[str] = ()
    marks: Collection[str] = ()
    taken: Mapping[str, Collection[int]] = dataclasses.field(default_factory=dict)
    dropped: int = 0


def _check(
    out: stores.Path, metadata: Mapping[str, Any], settings: shards.Settings
) -> None:
    found = metadata.get("settings")
    if found == settings.key():
        return
    storage = dataclasses.asdict(settings.storage)
    columns = list(settings.label_columns)
    if found is None:
        reason = "by a release that kept no outcomes"
    elif metadata["storage"] != storage:
        before, now = _options(metadata["storage"]), _options(storage)
        reason = f"with other storage ({before}) than this build ({now})"
    elif metadata["label_columns"] != columns:
        before = ", ".join(metadata["label_columns"]) or "none"
        now = ", ".join(columns) or "none"
        reason = f"with other label columns ({before}) than this build ({now})"
    else:
        reason = "with other limits than this build"
    raise UserError(
        f"{out}: was built {reason}, so it cannot be updated; build it anew with "
        "--overwrite, or into another folder"
    )


def _options(storage: Mapping[str, Any]) -> str:
    """As the command takes them."""
    given = {"store": storage["kind"], **storage}
    del given["kind"]
    return " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in given.items()
        if value is not None
    )


def _dropped(out: stores.Path, rows: Rows, ids: Collection[str], used: int) -> int:
    """How many of these ids of the dataset `out` the new manifest lacks."""
    gone = set(ids)
    if gone:
        gone.difference_update(row.id for row in rows)
    if used and len(gone) == used:
        raise UserError(
            f"{out}: --update expects a manifest that still has the dataset's clips; "
            f"found none of its {used} ids, such as {min(gone)!r}. A clip that is not "
            "in the manifest is dropped: give the old rows too, or start over with "
            "--overwrite"
        )
    return len(gone)


def _link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target, follow_symlinks=False)


def _take_over(out: stores.Path, root: stores.Path, name: str) -> None:
    """A file or folder of the dataset `out` into the folder that will replace it."""
    if out == root or (root / name).is_file():
        return
    source, target = pathlib.Path(out / name), pathlib.Path(root / name)
    if source.is_symlink() or not source.is_dir():
        target.unlink(missing_ok=True)
        _link(source, target)
        return
    shutil.rmtree(target, ignore_errors=True)  # half of it, of a build that was killed
    shutil.copytree(source, target, symlinks=True, copy_function=_link)


def keep(
    out: stores.Path,
    root: stores.Path,
    rows: Rows,
    by_split: Mapping[str, Sequence[int]],
    *,
    settings: shards.Settings,
) -> Earlier:
    """Takes over the whole shards of `out` whose rows are all wanted, unchanged.

    Rows that were left out for a fault are not kept: their media may be there now.
    Files and folders beside the dataset, such as a tokenizer, stay too.

    Args:
      out: a dataset.
      root: the folder that will replace it; `out` itself in a bucket.
      rows: of the new manifest.
      by_split: split to the numbers of its rows.

    Raises:
      UserError: `out` was built with other settings, or by an older release, or the
        manifest has none of its rows.
    """
    metadata = records.read_metadata(out)
    _check(out, metadata, settings)
    wanted = {
        mark(rows.lines[number]): split
        for split, numbers in by_split.items()
        for number in numbers
    }
    names, marks, others, count = [], set(), set(), 0
    taken: dict[str, set[int]] = {}
    listed = sorted(stores.names(out / records.OUTCOMES))
    own = [name for name in listed if _file(name) in metadata["files"]]
    there = stores.names(out)
    for name, outcome in zip(own, shards.outcomes(out, own), strict=True):
        split, index = _place(name)
        taken.setdefault(split, set()).add(index)
        used = [row for row in outcome["rows"] if "fault" not in row]
        count += len(used)
        others |= {row["id"] for row in used if row["row"] not in wanted}
        same = all(wanted.get(row["row"]) == split for row in used)
        if same and _file(name) in there and _whole(out, name, outcome):
            names.append(name)
            marks.update(row["row"] for row in used)
            _take_over(out, root, _file(name))
            text = json.dumps(outcome | {"rows": used})
            stores.write(root / records.OUTCOMES / name, text)
    dropped = _dropped(out, rows, others, count)
    own_files = {records.METADATA_FILE, records.REPORT_FILE, records.OUTCOMES}
    ours = own_files | metadata["files"].keys()
    if isinstance(out, pathlib.Path):
        for path in out.iterdir():
            if path.name not in ours:
                _take_over(out, root, path.name)
    return Earlier(names, marks, taken, dropped)


def _place(outcome: str) -> tuple[str, int]:
    """Split and number of the shard whose outcomes file has this name."""
    found = re.fullmatch(r"(.+)-(\d+)-[0-9a-f]+\.json", outcome)
    return (found[1], int(found[2])) if found else ("", 0)


def _file(outcome: str) -> str:
    return shards.file_name(*_place(outcome))


def _whole(out: stores.Path, name: str, outcome: shards.Outcome) -> bool:
    """Whether a shard is what its outcomes file, of this name, says."""
    file = outcome["file"]
    stated = (outcome["split"], outcome["index"], file["name"])
    if stated != (*_place(name), _file(name)):
        return False
    # An object of a bucket is whole or absent.
    local = isinstance(out, pathlib.Path)
    return not local or (out / _file(name)).stat().st_size == file["bytes"]
