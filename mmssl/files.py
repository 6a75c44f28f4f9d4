"""Files and folders that appear whole or not at all, and their hashes."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from mmssl.errors import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file system or a limit refuses files of this size",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
    errno.EROFS: "the file system is read-only",
}


def sha256(path: pathlib.Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Of a JSON-able value, in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) whole; a failure or a kill leaves the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _reason(error: BaseException) -> str | None:
    """Why a write failed, if the disk is to blame; looks into wrapped errors."""
    link: BaseException | None = error
    while link is not None:
        for code, reason in _REASONS.items():
            native = isinstance(
                link, (RuntimeError, OSError)
            )  # C++ writers raise these
            if getattr(link, "errno", None) == code or (
                native and os.strerror(code) in str(link)
            ):
                return reason
        link = link.__cause__
    return None


def _check_target(out: pathlib.Path, overwrite: bool, marker: str) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise UserError(
            f"{out}: expected a folder to write, found a file; choose another"
        )
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{out}: already there and not empty; choose another folder, or pass "
            "--overwrite to replace it"
        )
    if not (out / marker).is_file():
        raise UserError(
            f"{out}: asked to overwrite, but the folder has no {marker}, so mmssl did "
            "not write it; choose another folder, or remove it by hand"
        )


def free_bytes(out: pathlib.Path) -> int:
    """Free space of the file system on which `out` is or would be."""
    while not out.exists():
        out = out.parent
    return shutil.disk_usage(out).free


def _sync(folder: pathlib.Path) -> None:
    """Its files are on the disk before its name is."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _clean(partial: pathlib.Path, *, keep: pathlib.Path | None) -> None:
    if keep is None or not keep.is_dir() or not any(keep.iterdir()):
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(
    out: str | os.PathLike[str],
    *,
    marker: str,
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[pathlib.Path]:
    """A temporary sibling that becomes `out` when the block ends without an error.

    After an error, or an interrupt, nothing is left; after a kill, a hidden
    `.NAME.partial`, which the next call removes.

    Args:
      out: the folder to write; may exist if it is empty.
      marker: a file that every such folder has at its root.
      overwrite: replace an existing folder, if it has the marker.
      resume: what a block leaves in the temporary folder is kept, whatever ends it,
        and the next call starts with it.

    Raises:
      UserError: `out` exists, another process is writing it, or the disk is full or
        not writable.
    """
    out = pathlib.Path(os.path.abspath(out))
    partial = out.with_name(f".{out.name}.partial")
    try:
        with contextlib.ExitStack() as stack:
            partial.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((partial / "lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{out}: another process is writing it now; wait for it, or choose "
                    "another folder"
                ) from None
            new, old = partial / "new", partial / "old"
            stack.callback(_clean, partial, keep=new if resume else None)
            if old.is_dir() and not os.path.lexists(out):
                old.rename(out)  # a writer was killed between its two renames
            _check_target(out, overwrite, marker)
            if not resume:
                shutil.rmtree(new, ignore_errors=True)  # of a writer that was killed
            shutil.rmtree(old, ignore_errors=True)
            new.mkdir(exist_ok=resume)
            yield new
            _sync(new)
            if out.is_dir():
                out.rename(old)
            new.rename(out)
    except (OSError, RuntimeError) as e:
        if (reason := _reason(e)) is None:
            raise
        free = free_bytes(out) / 2**20
        left = "nothing half-written was left"
        if partial.exists():
            left = f"what was finished is kept in {partial}: the same command goes on"
        raise UserError(
            f"{out}: could not be written: {reason} ({free:.0f} MiB free now); {left}. "
            "Make room, or choose another folder"
        ) from e
