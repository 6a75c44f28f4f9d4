"""How parameters are split: names -> logical axes -> mesh axes, each in one table.

At rest every array of the state is split by these tables; what the optimizer or an
average keeps of a parameter is split like it. In use a parameter is whole along `fsdp`:
each layer gathers its own just before it multiplies (fully sharded data parallelism,
arXiv 1910.02054). Along `tensor` it stays split, columns first and rows next
(arXiv 1909.08053).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mmssl import trees
from mmssl.errors import UserError

RULES: Mapping[str, str] = {
    "embed": "fsdp",
    "vocab": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
}
"""Logical axis -> mesh axis. `embed` is the encoder's width, `heads` its attention
heads side by side, `mlp` the hidden units of a block."""

OPTIONAL = ("vocab",)
"""Axes that stay whole where they do not divide: vocabularies come in any size."""

PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Small, and the losses read them: whole everywhere.
    (r"(.*/)?heads/.*", ()),
    (r"(.*/)?attention/(query|key|value)/kernel", ("embed", "heads")),
    (r"(.*/)?attention/(query|key|value)/bias", ("heads",)),
    (r"(.*/)?attention/output/kernel", ("heads", "embed")),
    (r"(.*/)?mlp_in/kernel", ("embed", "mlp")),
    (r"(.*/)?mlp_in/bias", ("mlp",)),
    (r"(.*/)?mlp_out/kernel", ("mlp", "embed")),
    (r"(.*/)?(patch|pre|project)/kernel", (None, "embed")),
    (r"(.*/)?post/kernel", ("embed", None)),
    (r"(.*/)?word/embedding", ("vocab", None)),
    # Small, or read along both axes: whole everywhere.
    (r"(.*/)?relative_position/embedding", ()),
    (r"(.*/)?(bias|scale|table|token)", ()),
)
"""Pattern of a name -> logical axes of the last dimensions: a leading one of stacked
layers is never split. First match wins; a name without one is an error."""

FOLLOW = ("params", "heads", "opt_state", "ema")
"""Fields of a train state that hold parameters, or arrays named and shaped so."""

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

S = TypeVar("S", bound="State")


class State(Protocol):
    """A dataclass and a pytree, with the fields `FOLLOW`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, *, in_use: bool = False
) -> PartitionSpec:
    """How one parameter, or what an optimizer keeps of it, is split.

    Args:
      name: its path; a prefix, as in an optimizer's state, changes nothing.
      shape: its own.
      mesh: only its axis sizes are read.
      in_use: whole along `fsdp`.

    Raises:
      ValueError: no pattern matches the name.
      UserError: a dimension does not divide over its mesh axis.
    """
    if not shape:
        return PartitionSpec()  # an optimizer's counters
    logical = PARAMETERS[trees.first_match(name, PARAMETERS, what="sharding")][1]
    leading = len(shape) - len(logical)
    if logical and leading not in (0, 1):
        raise ValueError(f"sharding: {name} {shape} does not have the axes {logical}")

    def split(axis: str | None, size: int) -> str | None:
        if axis is None or (in_use and RULES[axis] == "fsdp"):
            return None
        if axis in OPTIONAL and size % mesh.shape[RULES[axis]]:
            return None
        check(axis, size, mesh, what=f"parameter {name} {list(shape)}")
        return RULES[axis]

    rest = map(split, logical, shape[leading:])
    return PartitionSpec(*[None] * leading, *rest)


def check(axis: str, size: int, mesh: Mesh, *, what: str) -> None:
    """Raises UserError where a logical axis does not divide over its mesh axis."""
    split = RULES[axis]
    shards = mesh.shape[split]
    if size % shards:
        raise UserError(
            f"mesh.{split} {shards}: {what} has {size} along {axis!r}, which does not "
            f"divide; {split} must divide {size} (largest that does: "
            f"{math.gcd(size, shards)})"
        )


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """At rest: a tree of `NamedSharding` for parameters or what follows them.

    Raises:
      ValueError, UserError: see `spec`.
    """
    return trees.map_named(
        lambda name, x: NamedSharding(mesh, spec(name, x.shape, mesh)), tree
    )


def state_shardings(state: S, mesh: jax.sharding.Mesh) -> S:
    """At rest, for a whole train state, abstract or concrete; the rest of it is whole.

    Raises:
      ValueError, UserError: see `spec`.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    follow = {name: getattr(state, name) for name in FOLLOW}
    return dataclasses.replace(
        jax.tree.map(lambda _: whole, state), **shardings(follow, mesh)
    )


def at_rest(tree: Any) -> Any:
    """Gradients as their parameters are at rest, so that sums end in scattered shards.

    Reads the ambient mesh; without one, or where nothing is split, `tree` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _splits(mesh, set(RULES.values())):
        return tree
    return trees.map_named(
        lambda name, x: jax.lax.with_sharding_constraint(x, spec(name, x.shape, mesh)),
        tree,
    )


def in_use(name: str, x: jax.Array) -> jax.Array:
    """A parameter gathered along `fsdp`, for the layer that is about to read it.

    Reads the ambient mesh; without one, or with nothing to gather, `x` itself.

    Args:
      name: its path in the encoder.
      x: the parameter, in the precision that it is gathered in.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _splits(mesh, {"fsdp"}):
        return x
    whole = spec(name, x.shape, mesh, in_use=True)
    return jax.lax.with_sharding_constraint(x, whole)


def _splits(mesh: Mesh, axes: set[str]) -> bool:
    return any(mesh.shape.get(axis, 1) > 1 for axis in axes)
