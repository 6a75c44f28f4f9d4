"""Checkpoints of a run: the only module that touches Orbax.

A checkpoint is the folder `DIR/<step>` with `state/` (Orbax) and `manifest.json`, which
is written last and holds hashes, names and shapes of the arrays, and the position in
the data. Without it the folder does not count: Orbax alone takes an empty folder for a
checkpoint, and restores flipped bytes without an error.
"""

import dataclasses
import json
import threading
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mmssl import trees
from mmssl.errors import UserError
from mmssl.train import integrity

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      state: like the tree given to `restore`, with its shardings.
      data_state: the data iterator's state after the last batch trained on.
      step: steps taken.
      warnings: damaged newer checkpoints that were passed over, with what is wrong.
    """

    state: Any
    data_state: dict[str, Any]
    step: int
    warnings: tuple[str, ...] = ()


class Checkpointer:
    """Saves and restores a state, asynchronously and all or nothing.

    Args:
      directory: where checkpoints are; made by the first save.
      every: `due` is True after every that many steps.
      keep: newest checkpoints that stay; older ones go once a newer one is committed.
      async_: write in the background. A failure then surfaces at the next `save`,
        `wait` or `close`.
      fingerprint: of the run's configuration; stored, and compared by `restore`.

    Raises:
      UserError: `every` or `keep` below 1.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        every: int = 1000,
        keep: int = 3,
        async_: bool = True,
        fingerprint: str = "",
    ):
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise UserError(f"checkpoint.{name} must be at least 1, found {value}")
        self.directory = epath.Path(directory).absolute()
        self.every, self.keep = every, keep
        self._async, self._fingerprint = async_, fingerprint
        # With asynchronous directory creation a failed save hangs process exit.
        self._orbax = ocp.AsyncCheckpointer(
            ocp.StandardCheckpointHandler(),
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._thread: threading.Thread | None = None
        self._failure: tuple[int, Exception] | None = None
        self._damaged: set[int] = set()

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        return sorted(s for s in self._folders() if integrity.is_sealed(self._at(s)))

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def save(self, state: Any, data_state: Mapping[str, Any], *, step: int) -> None:
        """Saves; returns once the state is copied, so that it may be donated.

        Args:
          state: any pytree of arrays.
          data_state: JSON; the data iterator's state after the last batch trained on.
          step: steps taken. An existing checkpoint of that step is replaced.

        Raises:
          UserError: this save, or the one before in the background, failed.
          TypeError: `data_state` is not JSON, or a leaf is not an array.
        """
        self.wait()
        leaves = trees.named_leaves(state)
        _check_arrays(state, leaves)
        manifest = {
            "format": FORMAT,
            "step": step,
            "fingerprint": self._fingerprint,
            "data_state": json.loads(json.dumps(data_state)),
            "arrays": {n: [list(x.shape), str(x.dtype)] for n, x in leaves.items()},
        }
        try:
            self._set_damaged_aside()
            self._remove(step)
            self._at(step).mkdir(parents=True)
            # Nested dicts of strings: no library's classes end up in the format.
            args = ocp.args.StandardSave(trees.from_named(leaves))
            with jax.transfer_guard("allow"):
                self._orbax.save(self._at(step) / "state", args=args)
        except Exception as error:
            self._failure = (step, error)
            self._raise_failure()
        self._thread = threading.Thread(
            target=self._commit, args=(step, manifest), name=f"checkpoint-{step}"
        )
        self._thread.start()
        if not self._async:
            self.wait()

    def wait(self) -> None:
        """Until the save under way is committed.

        Raises:
          UserError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_failure()

    def close(self) -> None:
        """Waits, then lets go of Orbax's threads. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, step: int) -> dict[str, Any]:
        """Hashes every file of a checkpoint; returns its manifest.

        Raises:
          DamagedError: a file is missing, cut, or holds other bytes than were saved.
          UserError: no permission to read it.
        """
        return integrity.verify(self._at(step))

    def restore(self, like: Any, *, step: int | None = None) -> Restored:
        """The newest undamaged checkpoint, or that of `step`.

        Args:
          like: the state, abstract (`jax.ShapeDtypeStruct`) or concrete. Its shardings
            are those of the result, whatever mesh saved; without one, the first device.
          step: this checkpoint only, no falling back.

        Raises:
          UserError: there is none or none undamaged; no permission to read it; it
            belongs to another configuration; its arrays differ from `like`'s in name,
            shape or dtype.
        """
        steps = self.steps() if step is None else [step]
        if not steps or (step is not None and step not in self.steps()):
            wanted = "a checkpoint" if step is None else f"checkpoint {step}"
            raise UserError(
                f"expected {wanted} in {self.directory}, found {self.steps() or 'none'}"
                "; train first, or check the workdir's path"
            )
        problems = []
        for candidate in reversed(steps):
            try:
                manifest = self.verify(candidate)
            except integrity.DamagedError as damage:
                self._damaged.add(candidate)
                problems.append(f"checkpoint {candidate} is damaged: {damage}")
                continue
            self._check(manifest, like)
            return Restored(
                state=self._load(candidate, like),
                data_state=manifest["data_state"],
                step=candidate,
                warnings=tuple(problems),
            )
        raise UserError(
            "no undamaged checkpoint is left:\n  "
            + "\n  ".join(problems)
            + f"\nrestore {self.directory} from a copy, or start in a new workdir"
        )

    def _at(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _folders(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return [int(p.name) for p in self.directory.iterdir() if p.name.isdecimal()]

    def _remove(self, step: int) -> None:
        if self._at(step).exists():
            # Uncommitted first: a kill in between leaves nothing that counts.
            integrity.unseal(self._at(step))
            self._at(step).rmtree()

    def _set_damaged_aside(self) -> None:
        for step in self._damaged & set(self._folders()):
            aside = self.directory / f"{step}.damaged"
            if aside.exists():
                aside.rmtree()
            self._at(step).rename(aside)
        self._damaged.clear()

    def _commit(self, step: int, manifest: dict[str, Any]) -> None:
        try:
            self._orbax.wait_until_finished()
            integrity.seal(self._at(step), manifest)
            committed = self.steps()
            for old in {*self._folders()} - {*committed[-self.keep :], step}:
                self._remove(old)
        except Exception as error:
            self._failure = (step, error)

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        (step, error), self._failure = self._failure, None
        # TensorStore's messages run over pages; the first line says it.
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise UserError(
            f"checkpoint {step} could not be saved in {self.directory}: {reason}; "
            f"free disk space or check access, then run the same command again "
            f"(the last good checkpoint is {self.latest()})"
        ) from error

    def _check(self, manifest: Mapping[str, Any], like: Any) -> None:
        where = f"checkpoint {manifest['step']} in {self.directory}"
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{where} has format {manifest['format']}, expected {FORMAT}; "
                "use the mmssl release that wrote it"
            )
        theirs, ours = manifest["fingerprint"], self._fingerprint
        if theirs and ours and theirs != ours:
            raise UserError(
                f"{where} was written with another configuration (fingerprint "
                f"{theirs}, expected {ours}); use a new workdir, or the configuration "
                "in the workdir's config.json"
            )
        saved = {n: (tuple(s), d) for n, (s, d) in manifest["arrays"].items()}
        leaves = trees.named_leaves(like)
        wanted = {n: (tuple(x.shape), str(x.dtype)) for n, x in leaves.items()}
        differences = [
            *(f"missing {name}" for name in wanted if name not in saved),
            *(f"unexpected {name}" for name in saved if name not in wanted),
            *(
                f"changed {name}: saved {_shape(saved[name])}, expected {_shape(spec)}"
                for name, spec in wanted.items()
                if name in saved and saved[name] != spec
            ),
        ]
        if differences:
            more = len(differences) - 12
            rest = [f"and {more} more"] if more > 0 else []
            raise UserError(
                f"{where} holds other arrays than this model and optimizer:\n  "
                + "\n  ".join(differences[:12] + rest)
                + "\nuse the configuration it was trained with, or a new workdir"
            )

    def _load(self, step: int, like: Any) -> Any:
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            name: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or default
            )
            for name, x in trees.named_leaves(like).items()
        }
        args = ocp.args.StandardRestore(trees.from_named(target))
        loaded = self._orbax.restore(self._at(step) / "state", args=args)
        arrays = trees.named_leaves(loaded)
        return trees.map_named(lambda name, _: arrays[name], like)


def _check_arrays(state: Any, leaves: Mapping[str, Any]) -> None:
    if len(leaves) != len(jax.tree.leaves(state)):
        raise TypeError("two arrays of the state have the same name")
    for name, leaf in leaves.items():
        # Scalars such as np.int64(3) are saved by Orbax but cannot be restored.
        if not isinstance(leaf, jax.Array):
            raise TypeError(f"{name} is a {type(leaf).__name__}, expected a jax.Array")


def _shape(spec: tuple[tuple[int, ...], str]) -> str:
    return f"{spec[1]}{list(spec[0])}"
