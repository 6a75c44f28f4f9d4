"""Checkpoints of a run, written by Orbax and sealed by us.

A checkpoint is the folder `DIR/<step>` with `state/` (Orbax) and `manifest.json`, which
is written last and holds hashes, names and shapes of the arrays, and the position in
the data. Without it the folder does not count: Orbax alone takes an empty folder for a
checkpoint, and restores flipped bytes without an error.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mmssl import trees
from mmssl.errors import AgainError, UserError
from mmssl.parallel import distributed
from mmssl.train import arrays, integrity
from mmssl.train.metrics import finite
from mmssl.train.retention import Best, Retention

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      state: like the tree given to `restore`, with its shardings.
      data_state: the data iterator's state after the last batch trained on.
      step: steps taken.
      spent: seconds of the run until it was saved, by what they went to.
      time: when it was saved, in seconds since 1970.
      warnings: damaged newer checkpoints that were passed over, with what is wrong.
    """

    state: Any
    data_state: dict[str, Any]
    step: int
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    time: float = 0.0
    warnings: tuple[str, ...] = ()


class Checkpointer:
    """Saves and restores a state, asynchronously and all or nothing.

    With several processes all call its methods together. Each writes its part of the
    arrays; process 0 makes, seals and removes folders, and chooses what to restore.

    Args:
      directory: where checkpoints are; made by the first save.
      every: `due` is True after every that many steps.
      keep: newest checkpoints that stay; older ones go once a newer one is committed.
      keep_every: older ones stay where their step is a multiple of it; 0 = none.
      best: the best by a metric stay, too.
      async_: write in the background. A failure then surfaces at the next `save`,
        `wait` or `close`.
      fingerprint: of the run's configuration; stored, and compared by `restore`.

    Raises:
      UserError: `every` or `keep` below 1, `keep_every` below 0.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        every: int = 1000,
        keep: int = 3,
        keep_every: int = 0,
        best: Best | None = None,
        async_: bool = True,
        fingerprint: str = "",
    ):
        if every < 1:
            raise UserError(f"checkpoint.every must be at least 1, found {every}")
        self.directory = epath.Path(directory).absolute()
        self.every = every
        self.retention = Retention(keep, keep_every, best)
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
        return sorted(s for s in self._folders() if integrity.is_sealed(self.at(s)))

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def save(
        self,
        state: Any,
        data_state: Mapping[str, Any],
        *,
        step: int,
        metrics: Mapping[str, float] | None = None,
        spent: Mapping[str, float] | None = None,
    ) -> None:
        """Saves; returns once the state is copied, so that it may be donated.

        Args:
          state: any pytree of arrays.
          data_state: JSON; the data iterator's state after the last batch trained on.
          step: steps taken. An existing checkpoint of that step is replaced.
          metrics: of the checkpoint, by name; what `best` ranks.
          spent: seconds of the run so far, by what they went to.

        Raises:
          AgainError: this save, or the one before in the background, failed.
          TypeError: `data_state` is not JSON, or a leaf is not an array.
        """
        self.wait()
        leaves = trees.named_leaves(state)
        _check_savable(state, leaves)
        manifest = {
            "format": FORMAT,
            "step": step,
            "fingerprint": self._fingerprint,
            "time": time.time(),
            "data_state": json.loads(json.dumps(data_state)),
            "metrics": finite(metrics or {}),
            "spent": dict(spent or {}),
            "arrays": {n: [list(x.shape), str(x.dtype)] for n, x in leaves.items()},
        }
        try:
            distributed.from_first(lambda: self._make_room(step))
            # Nested dicts of strings: no library's classes end up in the format.
            args = ocp.args.StandardSave(trees.from_named(leaves))
            with jax.transfer_guard("allow"):
                self._orbax.save(self.at(step) / arrays.STATE, args=args)
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
          AgainError: it failed.
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
            # It raises once more what `wait` has told.
            with contextlib.suppress(Exception):
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
        return integrity.verify(self.at(step))

    def manifest(self, step: int) -> dict[str, Any]:
        """What was written beside the arrays, without a look at their bytes.

        Raises:
          DamagedError: the manifest is not what was saved.
          UserError: no permission to read it.
        """
        return integrity.manifest(self.at(step))

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
        manifest, problems = distributed.from_first(lambda: self.newest(step=step))
        self._check(manifest, like)
        return Restored(
            state=self._load(manifest["step"], like),
            data_state=manifest["data_state"],
            step=manifest["step"],
            spent=manifest.get("spent", {}),
            time=manifest.get("time", 0.0),
            warnings=tuple(problems),
        )

    def newest(
        self, *, step: int | None = None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Manifest of the newest undamaged checkpoint, and what was passed over.

        Args:
          step: this checkpoint only, no falling back.

        Raises:
          UserError: there is none or none undamaged; no permission to read it.
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
                return self.verify(candidate), tuple(problems)
            except integrity.DamagedError as damage:
                self._damaged.add(candidate)
                problems.append(f"checkpoint {candidate} is damaged: {damage}")
        raise UserError(
            "no undamaged checkpoint is left:\n  "
            + "\n  ".join(problems)
            + f"\nrestore {self.directory} from a copy, or start in a new workdir"
        )

    def at(self, step: int) -> epath.Path:
        """The folder of a checkpoint, whether there is one or not."""
        return self.directory / str(step)

    def _folders(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return [int(p.name) for p in self.directory.iterdir() if p.name.isdecimal()]

    def _remove(self, step: int) -> None:
        if self.at(step).exists():
            # Uncommitted first: a kill in between leaves nothing that counts.
            integrity.unseal(self.at(step))
            self.at(step).rmtree()

    def _make_room(self, step: int) -> None:
        self._set_damaged_aside()
        self._remove(step)
        self.at(step).mkdir(parents=True)

    def _set_damaged_aside(self) -> None:
        for step in self._damaged & set(self._folders()):
            aside = self.directory / f"{step}.damaged"
            if aside.exists():
                aside.rmtree()
            self.at(step).rename(aside)
        self._damaged.clear()

    def _commit(self, step: int, manifest: dict[str, Any]) -> None:
        try:
            self._orbax.wait_until_finished()  # for all processes
            if jax.process_index() > 0:
                return
            integrity.seal(self.at(step), manifest)
            for old in {*self._folders()} - {*self._kept(), step}:
                self._remove(old)
        except Exception as error:
            self._failure = (step, error)

    def _kept(self) -> set[int]:
        """Committed steps that stay. One whose manifest is damaged is not ranked."""
        metrics = {}
        for step in self.steps():
            try:
                metrics[step] = self.manifest(step).get("metrics", {})
            except integrity.DamagedError:
                metrics[step] = {}
        return self.retention.kept(metrics)

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        (step, error), self._failure = self._failure, None
        # TensorStore's messages run over pages; the first line says it.
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        what = "could not be saved"
        if step in self.steps():
            what = "was saved, but an older one could not be removed,"
        raise AgainError(
            f"checkpoint {step} {what} in {self.directory}: {reason}; "
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
        differences = arrays.differences(manifest, like)
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
        loaded = arrays.read(self.at(step), target)
        return trees.map_named(lambda name, _: loaded[name], like)


def _check_savable(state: Any, leaves: Mapping[str, Any]) -> None:
    if len(leaves) != len(jax.tree.leaves(state)):
        raise TypeError("two arrays of the state have the same name")
    for name, leaf in leaves.items():
        # Scalars such as np.int64(3) are saved by Orbax but cannot be restored.
        if not isinstance(leaf, jax.Array):
            raise TypeError(f"{name} is a {type(leaf).__name__}, expected a jax.Array")
