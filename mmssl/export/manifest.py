"""What an export folder must hold: the hash of every file, checked before reading."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mmssl import files as files_lib
from mmssl.errors import UserError
from mmssl.export import weights

FORMAT = "mmssl-encoder"
FORMAT_VERSION = 1
NAME = "manifest.json"
_SELF = "manifest_sha256"


def _own_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != _SELF}
    return files_lib.sha256_of_json(rest)


def seal(folder: pathlib.Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Writes manifest.json over all files of `folder`, and returns it.

    Args:
      folder: the finished export.
      fields: what else the manifest says.
    """
    files = {
        path.name: {"sha256": files_lib.sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != NAME
    }
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": files,
        **fields,
    }
    manifest = json.loads(json.dumps(manifest, allow_nan=False))
    manifest[_SELF] = _own_hash(manifest)
    (folder / NAME).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def own_file(folder: pathlib.Path, name: str, *, entry: str) -> pathlib.Path:
    """The file of an export that an entry of one of its JSON files names.

    Raises:
      UserError: the name is a path, or a link that leads out of the folder.
    """
    path = folder / name
    plain = name == pathlib.PurePath(name).name
    if not plain or path.resolve().parent != folder.resolve():
        raise UserError(
            f"{folder}, {entry}: expected the name of a file in the folder, found "
            f"{name!r}, which leads to {path.resolve()}; do not use this export, or "
            "copy it with its links followed (cp -rL) if you made them"
        )
    return path


def verify(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest and checks every file against it.

    Raises:
      UserError: not an export, another format version, a file that is missing,
        differs or is not in the folder; named.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; pass one that `mmssl export` has written"
        )
    path = folder / NAME
    if not path.is_file():
        raise UserError(
            f"{folder} has no {NAME}, so it is not an export; `mmssl export "
            "--workdir W --out DIR` writes one"
        )
    again = "copy the export again, or export anew"
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {again}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of an {FORMAT}; {again}")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder}: export format {version}, this mmssl reads {FORMAT_VERSION}; "
            "export it again with this version, or install the one that wrote it "
            f"({manifest.get('mmssl_version', 'unknown')})"
        )
    if manifest.get(_SELF) != _own_hash(manifest):
        raise UserError(f"{path} is damaged: its own sha256 differs; {again}")
    for name, entry in manifest["files"].items():
        file = own_file(folder, name, entry=f"{NAME} files")
        if not file.is_file():
            raise UserError(f"{folder}: {name} is missing; {again}")
        if files_lib.sha256(file) != entry["sha256"]:
            where = _damaged(file, manifest) if name == "model.safetensors" else ""
            raise UserError(
                f"{file} is damaged or was changed: sha256 differs from {NAME}"
                f"{where}; {again}"
            )
    return manifest


def _damaged(file: pathlib.Path, manifest: Mapping[str, Any]) -> str:
    """`, in tensor ...` where the file still opens."""
    try:
        found = weights.checksums(weights.read(file))
    except UserError as error:
        return f" ({error})"
    wrong = [n for n, crc in manifest["tensors"].items() if found.get(n) != crc]
    return f", in {', '.join(wrong)}" if wrong else ", in its header"
