"""Starting a run from parameters that are there: fine-tuning, another recipe's heads.

The source is the workdir of a run, the folder of an export, or a safetensors file of
`mmssl checkpoint convert`. Parameters, heads and their statistics are taken by name;
the optimizer, the step and the position in the data begin afresh.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmssl import config as config_lib
from mmssl import trees
from mmssl.errors import UserError
from mmssl.export import manifest as export_manifest
from mmssl.export import weights
from mmssl.train import arrays as arrays_lib
from mmssl.train.checkpoint import Checkpointer

ROOTS = ("params", "heads", "extras")
"""Fields of the train state that may be taken over."""

SHOWN = 20
"""Names of each kind that are printed."""

Specs = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Source:
    """What there is to start from.

    Attributes:
      where: in words.
      arrays: names as in the train state.
      read: names to `jax.ShapeDtypeStruct`s with shardings -> arrays like them.
    """

    where: str
    arrays: Specs
    read: Callable[[Specs], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run takes from a source.

    Attributes:
      source: from where.
      taken: names that are there with the shape they have here.
      missing: names that are not there: they start afresh.
      unexpected: names there that are not here: they are left out.
      excluded: names on both sides that the patterns leave out, and start afresh.
    """

    source: Source
    taken: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    excluded: Sequence[str]

    def apply(self, state: Any) -> Any:
        """The state with what is taken in place, sharded as it is."""
        leaves = trees.named_leaves(state)
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in leaves.items()
            if name in self.taken
        }
        arrays = self.source.read(target)
        # A running average begins at the parameters; donated, it needs its own memory.
        arrays |= {
            f"ema/{name}": jnp.copy(array)
            for name, array in arrays.items()
            if f"ema/{name}" in leaves
        }
        return trees.map_named(lambda name, x: arrays.get(name, x), state)

    def lines(self) -> list[str]:
        """For people: what is taken, and every kind of difference by name."""
        kinds = {
            "missing there, start afresh": self.missing,
            "unexpected, left out": self.unexpected,
            "excluded, start afresh": self.excluded,
        }
        return [
            f"init_from {self.source.where}: {len(self.taken)} arrays taken",
            *(f"  {kind}: {_some(names)}" for kind, names in kinds.items() if names),
        ]


def planned(config: Mapping[str, Any], like: Any, saved: Checkpointer) -> Plan | None:
    """By a config's `init_from`; None for a run that resumes, or starts afresh.

    Raises:
      UserError: see `plan`.
    """
    if not config.get("init_from") or saved.latest() is not None:
        return None
    return config_lib.build(plan, "init_from", like=like, **config["init_from"])


def plan(
    like: Any,
    *,
    path: str,
    step: int | None = None,
    include: Sequence[str] = (".*",),
    exclude: Sequence[str] = (),
) -> Plan:
    """Compares a fresh state with a source; `init_from` of a config.

    Args:
      like: the state, abstract or concrete.
      path: a workdir, an export's folder, or a safetensors file.
      step: of a workdir; None = its newest undamaged checkpoint.
      include: regular expressions over whole names, like `params/.*`; what none of
        them matches starts afresh.
      exclude: likewise; what one of them matches starts afresh.

    Raises:
      UserError: nothing to start from there; damage; layers of another layout
        (`model.scan`); an array of another shape that is not excluded; a pattern that
        matches nothing; nothing to take.
    """
    source = _open(pathlib.Path(path), step)
    ours, theirs = _takeable(trees.named_leaves(like)), source.arrays
    scan = _stacked(theirs)
    if {scan, _stacked(ours)} == {True, False}:
        raise UserError(
            f"init_from {source.where}: its layers are "
            f"{'stacked' if scan else 'one by one'}, those of this run are not, and "
            f"none of them would be taken; set model.scan={scan}, as there"
        )
    wanted = _selected([*ours, *theirs], include, exclude)
    both = [name for name in ours if name in theirs]
    reshaped = [n for n in both if ours[n].shape != theirs[n].shape and n in wanted]
    if reshaped:
        rows = [
            f"{n}: {tuple(theirs[n].shape)} there, {tuple(ours[n].shape)} here"
            for n in reshaped
        ]
        raise UserError(
            f"init_from {source.where}: other shapes ({len(rows)}): {_some(rows)}\n"
            "Nothing was loaded. Set the model's sizes to theirs, or name these arrays "
            "in init_from.exclude (regular expressions): they then start afresh"
        )
    taken = [name for name in both if name in wanted]
    if not taken:
        raise UserError(
            f"init_from {source.where}: nothing to take: it holds {_some(theirs)}; "
            f"this run has {_some(ours)}"
        )
    return Plan(
        source=source,
        taken=taken,
        missing=[n for n in ours if n not in theirs],
        unexpected=[n for n in theirs if n not in ours],
        excluded=[n for n in both if n not in wanted],
    )


def _stacked(names: Iterable[str]) -> bool | None:
    """Whether layers are scanned, by their names; None without any."""
    found = {m[1] for n in names if (m := re.search(r"/(layers|layer)(/|_\d+/)", n))}
    return "layers" in found if found else None


def _takeable(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {n: x for n, x in leaves.items() if n.partition("/")[0] in ROOTS}


def _selected(
    names: Iterable[str], include: Sequence[str], exclude: Sequence[str]
) -> set[str]:
    """Names that `include` matches and `exclude` does not."""
    names = dict.fromkeys(names)
    hits: dict[str, set[str]] = {"include": set(), "exclude": set()}
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            try:
                found = {n for n in names if re.fullmatch(pattern, n)}
            except re.error as error:
                raise UserError(
                    f"init_from.{key}: {pattern!r} is not a regular expression: {error}"
                ) from error
            if not found:
                raise UserError(
                    f"init_from.{key}: {pattern!r} matches no whole name; there are "
                    f"{_some(names)}"
                )
            hits[key] |= found
    return hits["include"] - hits["exclude"]


def _some(names: Iterable[str]) -> str:
    """The first names, each on a line."""
    names = list(names)
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return "".join(f"\n    {name}" for name in [*names[:SHOWN], *more])


def _open(path: pathlib.Path, step: int | None) -> Source:
    if path.suffix == ".safetensors":
        return _from_arrays(weights.read(path), str(path))
    if (path / "model.safetensors").is_file():
        export_manifest.verify(path)
        return _from_arrays(weights.read(path / "model.safetensors"), str(path))
    if (path / "checkpoints").is_dir():
        return _from_workdir(path, step)
    raise UserError(
        f"init_from.path: {path} is neither a workdir with checkpoints, nor a folder "
        "of `mmssl export`, nor a safetensors file"
    )


def _from_workdir(path: pathlib.Path, step: int | None) -> Source:
    with Checkpointer(path / "checkpoints") as checkpointer:
        manifest, _ = checkpointer.newest(step=step)
    found: int = manifest["step"]
    return Source(
        where=f"{path} (step {found})",
        arrays=_takeable(arrays_lib.specs(manifest)),
        read=lambda target: arrays_lib.read(checkpointer.at(found), target),
    )


def _from_arrays(arrays: Mapping[str, np.ndarray], where: str) -> Source:
    exported = any(name.startswith("model/") for name in arrays)
    named = {_renamed(n) if exported else n: array for n, array in arrays.items()}

    def read(target: Specs) -> dict[str, jax.Array]:
        def put(name: str, spec: jax.ShapeDtypeStruct) -> jax.Array:
            array = named[name].astype(spec.dtype)
            return jax.make_array_from_callback(
                spec.shape, spec.sharding, lambda index: array[index]
            )

        return {name: put(name, spec) for name, spec in target.items()}

    specs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in named.items()}
    return Source(where=where, arrays=_takeable(specs), read=read)


def _renamed(name: str) -> str:
    """From an export's names to the train state's."""
    if name.startswith("model/"):
        return f"params/{name.removeprefix('model/')}"
    found = re.fullmatch(r"heads/([^/]+)/(params|state)/(.+)", name)
    if found:
        objective, part, rest = found.groups()
        return f"{'heads' if part == 'params' else 'extras'}/{objective}/{rest}"
    return name
