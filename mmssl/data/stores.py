"""Paths on this machine or in a bucket: `gs://`, `s3://`, `az://`, `hf://`.

A plain path is a `pathlib.Path`. A URL is an `etils.epath.Path` over fsspec, whose
driver the user installs (gcsfs, s3fs, ...). An object of a bucket appears when its
writer is closed, so in both a file is whole or absent.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import fsspec
import fsspec.config
from etils import epath

from mmssl import files
from mmssl.errors import UserError

Path = pathlib.Path | epath.Path

_DRIVERS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}

PARTIAL = ".partial-"
"""How names of unfinished local files begin."""

for _scheme in _DRIVERS:  # a listing that is remembered hides what others write
    _settings = fsspec.config.conf.setdefault(_scheme, {})
    _settings.setdefault("use_listings_cache", False)


def is_url(path: object) -> bool:
    """Whether it names something in a bucket."""
    return "://" in str(path)


def path(name: str) -> Path:
    """A path on this machine, or in a bucket."""
    return epath.Path(name) if is_url(name) else pathlib.Path(name)


def place(path: str | os.PathLike[str]) -> Path:
    """As `path`, for a name that a user gave.

    Raises:
      UserError: an unknown scheme, or one whose driver is not installed.
    """
    if not is_url(path):
        return pathlib.Path(path)
    if reason := _unreachable(os.fspath(path).partition("://")[0]):
        raise UserError(f"{path}: {reason}")
    return epath.Path(path)


def _unreachable(scheme: str) -> str:
    """Why no URL of a scheme can be read; "" where they can."""
    if scheme not in _DRIVERS:
        known = ", ".join(f"{name}://" for name in _DRIVERS)
        return (
            f"unknown storage {scheme!r}; expected one of {known}, or a path on this "
            "machine: download it first"
        )
    try:  # what is installed is loaded once
        fsspec.get_filesystem_class(scheme)
    except ImportError as e:
        return (
            f"needs a package that is not installed ({e}); run "
            f"`pip install {_DRIVERS[scheme]}`"
        )
    return ""


def beside(file: Path, name: str) -> Path:
    """What `file` means by `name`: a URL, or a path from the folder it lies in.

    Raises:
      UserError: as `place`.
    """
    return place(name) if is_url(name) else file.parent / name


def absolute(path: Path) -> str:
    """A name that holds in any process of this machine."""
    # ".." stays: after a link it is not what stands before it.
    return os.fspath(path if isinstance(path, epath.Path) else path.absolute())


def names(folder: Path) -> set[str]:
    """Of what is in a folder; empty where there is none."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def write(path: Path, text: str) -> None:
    """Writes a file whole."""
    if isinstance(path, pathlib.Path):
        files.write(path, text)
    else:
        path.write_text(text)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if isinstance(path, epath.Path):
        path.rmtree()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[pathlib.Path]:
    """A local file to write; where it is there after the block, it becomes `path`."""
    local = isinstance(path, pathlib.Path)
    scratch = tempfile.TemporaryDirectory(
        dir=path.parent if local else None, prefix=PARTIAL
    )
    with scratch as folder:
        written = pathlib.Path(folder) / path.name
        yield written
        if not written.exists():
            return
        with written.open("rb") as source:
            if isinstance(path, pathlib.Path):
                os.fsync(source.fileno())
                written.replace(path)
            else:
                with path.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**24)
