"""What `mmssl checkpoint` does with the checkpoints of a workdir."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys
from typing import Any

import jax
from etils import epath

from mmssl import files, trees
from mmssl import workdir as workdir_lib
from mmssl.errors import UserError
from mmssl.train import arrays, integrity
from mmssl.train.checkpoint import Checkpointer


@dataclasses.dataclass(frozen=True)
class Verified:
    """What the files of a checkpoint are; `damage` names the one that is wrong."""

    step: int
    files: int
    bytes: int
    damage: str | None


def verify(workdir: str, *, step: int | None = None) -> list[Verified]:
    """Hashes every file of all checkpoints, or of one, ascending.

    Raises:
      UserError: there is none; no permission to read it.
    """
    found = []
    with _open(workdir, step) as checkpointer:
        for one in checkpointer.steps() if step is None else [step]:
            held, damage = {}, None
            try:
                held = checkpointer.manifest(one)["files"]
                checkpointer.verify(one)
            except integrity.DamagedError as error:
                damage = str(error)
            size = sum(size for size, _ in held.values())
            found.append(Verified(one, len(held), size, damage))
    return found


def _open(workdir: str, step: int | None) -> Checkpointer:
    checkpointer = Checkpointer(pathlib.Path(workdir) / "checkpoints")
    steps = checkpointer.steps()
    if not steps or (step is not None and step not in steps):
        checkpointer.close()
        wanted = "checkpoints" if step is None else f"checkpoint {step}"
        raise UserError(
            f"{workdir}: expected a workdir with {wanted}, found {steps or 'none'}; "
            "pass the --workdir of `mmssl train`"
        )
    return checkpointer


@dataclasses.dataclass(frozen=True)
class Opened:
    """One undamaged checkpoint of a workdir."""

    workdir: pathlib.Path
    folder: epath.Path
    manifest: dict[str, Any]

    def specs(self, pattern: str | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Name to shape and dtype of the arrays whose whole name matches; None = all.

        Raises:
          UserError: none does.
        """
        found = arrays.specs(self.manifest)
        try:
            kept = {n: x for n, x in found.items() if re.fullmatch(pattern or ".*", n)}
        except re.error as error:
            raise UserError(
                f"--names {pattern!r} is not a regular expression: {error}"
            ) from error
        if not kept:
            raise UserError(
                f"--names {pattern!r} matches no whole name of the {len(found)} "
                f"arrays, like {next(iter(found))}"
            )
        return kept

    def content_hash(self, pattern: str | None = None) -> str:
        """SHA-256 of the arrays, whatever mesh or layout they were saved from."""
        return arrays.content_hash(arrays.stream(self.folder, self.specs(pattern)))

    def to_safetensors(self, out: str, pattern: str | None = None) -> int:
        """Writes arrays by name, with step and data position; returns how many.

        Raises:
          UserError: `out` exists, or names match nothing.
        """
        import safetensors.numpy

        path = pathlib.Path(out)
        if path.exists():
            raise UserError(f"{out} exists already; choose another file")
        found = dict(arrays.stream(self.folder, self.specs(pattern)))
        facts = ("step", "data_state", "fingerprint")
        told = {key: json.dumps(self.manifest[key]) for key in facts}
        files.write(path, safetensors.numpy.save(found, {"format": "mmssl", **told}))
        return len(found)

    def to_workdir(self, out: str) -> None:
        """Writes a workdir with this checkpoint alone, as one device would save it.

        Raises:
          UserError: `out` exists, or the disk is full.
        """
        step, manifest = self.manifest["step"], self.manifest
        with files.whole_folder(out, marker=workdir_lib.CONFIG) as new:
            for name in (workdir_lib.CONFIG, workdir_lib.DATA):
                if (self.workdir / name).is_file():
                    shutil.copyfile(self.workdir / name, new / name)
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
                for name, x in self.specs().items()
            }
            state = trees.from_named(arrays.read(self.folder, target))
            with Checkpointer(
                new / "checkpoints", fingerprint=manifest["fingerprint"]
            ) as checkpointer:
                checkpointer.save(
                    state,
                    manifest["data_state"],
                    step=step,
                    metrics=manifest.get("metrics"),
                    spent=manifest.get("spent"),
                )


def open_one(workdir: str, *, step: int | None = None) -> Opened:
    """A checkpoint of a workdir, its files verified; None = the newest undamaged.

    Raises:
      UserError: there is none, or it is damaged.
    """
    with _open(workdir, step) as checkpointer:
        manifest, problems = checkpointer.newest(step=step)
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        folder = checkpointer.at(manifest["step"])
    return Opened(pathlib.Path(workdir), folder, manifest)
