"""Is a folder still what was written? SHA-256 of every file, in `manifest.json`."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mmssl import files as files_lib
from mmssl.errors import UserError

NAME = "manifest.json"


class DamagedError(Exception):
    """A folder is not what was sealed; the message names file and fault."""


def seal(folder: epath.Path, meta: Mapping[str, Any]) -> None:
    """Writes the manifest: `meta` (JSON), size and hash of every file, its own hash.

    It appears whole or not at all, and last, so a folder with a manifest is complete.
    """
    files = {
        str((parent / name).relative_to(folder)): _content(parent / name)
        for parent, _, names in folder.walk()
        for name in names
    }
    manifest = {**meta, "files": files}
    manifest["sha256"] = _self_hash(manifest)
    partial = folder / f"{NAME}.partial"
    partial.write_text(json.dumps(manifest, indent=1))
    partial.replace(folder / NAME)


def is_sealed(folder: epath.Path) -> bool:
    return (folder / NAME).exists()


def unseal(folder: epath.Path) -> None:
    """From here on the folder does not count, whatever interrupts its removal."""
    (folder / NAME).unlink(missing_ok=True)


def verify(folder: epath.Path) -> dict[str, Any]:
    """Hashes every file of a sealed folder; returns `meta` and `files`.

    Raises:
      DamagedError: a file is missing, cut, or holds other bytes than were sealed.
      UserError: no permission to read a file: it may well be whole.
    """
    found = manifest(folder)
    with _explained(folder):
        for name, (size, digest) in found["files"].items():
            path = folder / name
            if not path.exists():
                raise DamagedError(f"{path} is missing")
            found_size, found_digest = _content(path)
            if found_size != size:
                raise DamagedError(
                    f"{path} has {found_size} bytes, {size} were written"
                )
            if found_digest != digest:
                raise DamagedError(f"{path} does not match its SHA-256: bytes changed")
    return found


def manifest(folder: epath.Path) -> dict[str, Any]:
    """`meta` and `files` of a sealed folder, whose other files are not read.

    Raises:
      DamagedError: the manifest is not what was sealed.
      UserError: no permission to read it.
    """
    with _explained(folder):
        try:
            found = json.loads((folder / NAME).read_bytes())
            claimed = found.pop("sha256")
        except (ValueError, KeyError, AttributeError) as error:
            raise DamagedError(f"{folder / NAME} cannot be read: {error}") from error
    if claimed != _self_hash(found):
        raise DamagedError(f"{folder / NAME} does not match its own SHA-256")
    return found


@contextlib.contextmanager
def _explained(folder: epath.Path) -> Iterator[None]:
    """What the system says of a file, as damage or as a lack of permission."""
    try:
        yield
    except PermissionError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read: {error.strerror}; give "
            "yourself access to it, then run the same command again"
        ) from error
    except OSError as error:
        where = error.filename or folder
        raise DamagedError(f"{where} cannot be read: {error.strerror}") from error


def _content(path: epath.Path) -> list[Any]:
    """[bytes, SHA-256] of a file."""
    # Not `epath.Path.stat`: it fails for an owner without a name, as in a container.
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size += len(chunk)
            digest.update(chunk)
    return [size, digest.hexdigest()]


def _self_hash(manifest: Mapping[str, Any]) -> str:
    return files_lib.sha256_of_json(manifest)
