"""Parameter trees by path: names, patterns that must cover, sums."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def path_name(path: Sequence[Any]) -> str:
    """`(DictKey('a'), DictKey('b'))` -> `a/b`."""
    return "/".join(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )


def named_leaves(tree: Any) -> dict[str, Any]:
    """Flat `a/b/c` -> leaf, in tree order."""
    return {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def match(tree: Any, table: Sequence[tuple[str, T]], *, what: str) -> Any:
    """A tree of the values of the first pattern that matches each leaf's whole path.

    Args:
      tree: any pytree.
      table: (regular expression, value) rows, first match wins.
      what: the table's purpose, for error messages.

    Raises:
      ValueError: a leaf matches no pattern, or a pattern matches no leaf first.
    """
    rows = map_named(lambda name, _: first_match(name, table, what=what), tree)
    used = set(jax.tree.leaves(rows))
    unused = [pattern for i, (pattern, _) in enumerate(table) if i not in used]
    if unused:
        raise ValueError(f"{what}: patterns that match nothing (first): {unused}")
    return jax.tree.map(lambda i: table[i][1], rows)


def first_match(name: str, table: Sequence[tuple[str, Any]], *, what: str) -> int:
    """The row of the first pattern that matches the whole name.

    Raises:
      ValueError: there is none.
    """
    for i, (pattern, _) in enumerate(table):
        if re.fullmatch(pattern, name):
            return i
    raise ValueError(f"{what}: no pattern matches {name!r}; add one to the table")


def size(tree: Any) -> int:
    """Number of scalars in all leaves."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Bytes of all leaves; works on abstract arrays too."""
    return sum(int(x.size) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves, in float32."""
    # Multiply-and-sum: vdot loses accuracy over long vectors on some CPU releases.
    total = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(tree):
        wide = leaf.astype(jnp.float32)
        total = total + (wide * wide).sum()
    return jnp.sqrt(total)


def select(keep_new: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the scalar is True, else `old`, leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(keep_new, n, o), new, old)


def from_named(leaves: Mapping[str, T]) -> dict[str, Any]:
    """Nested dicts from `a/b/c` names: the inverse of `named_leaves` for dicts."""
    root: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = root
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return root


def map_named(f: Callable[[str, Any], T], tree: Any) -> Any:
    """Maps `f(path name, leaf)` over the tree."""
    return jax.tree_util.tree_map_with_path(lambda p, x: f(path_name(p), x), tree)
