"""Leaves, what reached them in one backward per loss, and what follows from that.

A site is a leaf of the encoder (`types.Leaf`) with its inputs and, per loss, the
cotangents of its output. `compare` makes Gramians of sites, `gradient` the weighted
gradient. Per parameter and shape the cheapest of two ways:

  keep    per-sample gradients X^T Delta^k are formed, compared, and their weighted sum
          is the parameter's gradient: nothing is computed twice. Memory k g |p|.
  tokens  the Gramian through X X^T (few tokens), the gradient by the leaf's backward
          of the weighted cotangents (`products.replayed`).

Parameters that are not compared are only replayed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmssl import trees
from mmssl.errors import UserError
from mmssl.gradients import products
from mmssl.gradients.cotangents import Cotangents
from mmssl.gradients.products import Use
from mmssl.types import Leaf, Params, Recorded

Names = Mapping[str, frozenset[str]]
"""Leaf path -> names of some of its parameters."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A leaf with everything that its gradients need.

    Attributes:
      leaf: its form.
      params: its parameters, by name.
      uses: one per tower that has it.
    """

    leaf: Leaf
    params: Mapping[str, jax.Array]
    uses: tuple[Use, ...]

    @property
    def losses(self) -> frozenset[int]:
        """Indices of the losses that reach it."""
        return frozenset(k for use in self.uses for k in use.deltas)

    def each_layer(self, f: Callable[..., Any], *args: Any) -> Any:
        """f(*args); for a stacked leaf once per layer, results stacked."""
        return (jax.vmap(f) if self.leaf.stacked else f)(*args)

    def with_rows(self, take: Callable[[jax.Array], jax.Array]) -> "Site":
        """The same with other rows: `take` sees arrays that lead with rows."""
        each = jax.vmap(take) if self.leaf.stacked else take
        return dataclasses.replace(self, uses=jax.tree.map(each, self.uses))

    def some(self, names: Any) -> dict[str, jax.Array]:
        """Its parameters of these names."""
        return {n: p for n, p in self.params.items() if n in names}


Sites = Mapping[str, Site]


def make_sites(
    recorded: Mapping[str, Recorded], params: Params, c: Cotangents
) -> dict[str, Site]:
    """Pulls every loss back to the leaves of the towers that it reads.

    Raises:
      UserError: a parameter that belongs to no leaf.
    """
    leaves: dict[str, Leaf] = {}
    uses: dict[str, list[Use]] = {}
    for tower, record in recorded.items():
        leaves.update(record.leaves)
        pulled = {k: record.pullback(c.row(tower, k))[0] for k in c.reaching(tower)}
        for path, x in record.inputs.items():
            deltas = {k: outputs[path] for k, outputs in pulled.items()}
            uses.setdefault(path, []).append(Use(x, deltas))
    own: dict[str, dict[str, jax.Array]] = {}
    for full, value in trees.named_leaves(params).items():
        path, _, name = full.rpartition("/")
        own.setdefault(path, {})[name] = value
    for path in own:
        if path not in leaves:
            raise UserError(
                f"parameters under {path!r} belong to no leaf that was recorded, so "
                "this engine cannot reach their gradients: give them a leaf class in "
                "models/layers.py and a row in models/record.py, or use engine 'vmap'"
            )
    return {
        path: Site(leaves[path], values, tuple(uses[path]))
        for path, values in own.items()
    }


def compare(
    sites: Sites, names: Names, groups: int, losses: int, *, sketch: int | None = None
) -> tuple[Float[Array, "g k k"], dict[str, Any]]:
    """The Gramian over some parameters, and the gradients that were kept for it.

    Args:
      sites: their rows are those of `groups` groups.
      names: what is compared.
      groups: g.
      losses: k.
      sketch: see kernels through that many random directions of their output only.

    Returns:
      (Gramian, leaf path -> loss index -> per-sample gradients by name).
    """
    total = jnp.zeros((groups, losses, losses))
    kept: dict[str, Any] = {}

    def add(site: Site, f: Callable[..., jax.Array], argument: Any) -> jax.Array:
        gram = site.each_layer(f, argument)
        return total + (gram.sum(0) if site.leaf.stacked else gram)

    for path, wanted in names.items():
        site = sites[path]
        table = wanted & {"kernel", "embedding"}
        # A small leaf's gradients come all at once.
        keep = frozenset(site.params) if site.leaf.kind == "small" else wanted
        if sketch and table and site.leaf.kind == "dense":
            keep -= table
            total = add(site, _sketched(site, groups, losses, sketch), site.uses)
        elif table and site.leaf.kind != "small" and _few_tokens(site, groups):
            keep -= table
            total = add(
                site,
                lambda uses, leaf=site.leaf: products.token_gram(
                    leaf, uses, losses, groups
                ),
                site.uses,
            )
        if keep:
            kept[path] = site.each_layer(
                lambda p, uses, leaf=site.leaf: products.per_sample(
                    leaf, p, uses, groups
                ),
                site.some(keep),
                site.uses,
            )
            seen = {
                k: {n: g for n, g in by_name.items() if n in wanted}
                for k, by_name in kept[path].items()
            }
            total = add(site, lambda g: products.gram_of(g, losses), seen)
    return total, kept


def _few_tokens(site: Site, groups: int) -> bool:
    uses = site.uses
    if site.leaf.stacked:
        uses = jax.eval_shape(lambda u: jax.tree.map(lambda x: x[0], u), uses)
    return products.prefers_tokens(site.leaf, uses, groups)


def _sketched(
    site: Site, groups: int, losses: int, size: int
) -> Callable[[Any], jax.Array]:
    def gram(uses: tuple[Use, ...]) -> jax.Array:
        some = next(d for use in uses for d in use.deltas.values())
        # E[R R^T] = 1, and the same directions for all samples and losses.
        signs = jax.random.rademacher(
            jax.random.key(0), (some.shape[-1], size), some.dtype
        ) * (size**-0.5)
        uses = tuple(
            dataclasses.replace(u, deltas={k: d @ signs for k, d in u.deltas.items()})
            for u in uses
        )
        kernel = {"kernel": site.params["kernel"]}
        return products.gram_of(
            products.per_sample(site.leaf, kernel, uses, groups), losses
        )

    return gram


def kept_gradient(
    sites: Sites, kept: Mapping[str, Any], weights: Float[Array, "g k"]
) -> dict[str, jax.Array]:
    """Parameter name -> weighted gradient, of what `compare` kept."""
    grads = {}
    for path, per_loss in kept.items():
        own = sites[path].each_layer(lambda g: products.combined(g, weights), per_loss)
        grads |= {f"{path}/{name}": g for name, g in own.items()}
    return grads


def replayed_gradient(
    sites: Sites, weights: Float[Array, "b k"], skip: Any = ()
) -> dict[str, jax.Array]:
    """Parameter name -> weighted gradient, by each leaf's backward."""
    grads = {}
    for path, site in sites.items():
        names = [n for n in site.params if f"{path}/{n}" not in skip]
        if not names:
            continue
        own = site.each_layer(
            lambda p, uses, leaf=site.leaf: products.replayed(leaf, p, uses, weights),
            site.some(names),
            site.uses,
        )
        grads |= {f"{path}/{name}": g for name, g in own.items()}
    return grads


def in_chunks(
    f: Callable[[Sites, Any, int], tuple[Any, Any]],
    sites: Sites,
    facts: Any,
    groups: int,
    chunk: int,
) -> tuple[Any, Any]:
    """f over `chunk` groups at a time: (per-group results joined, sums added up).

    Chunk j takes every m-th group from j on, so that rows stay on the device that has
    them when a batch is sharded.

    Args:
      f: (sites, facts, groups) -> (leaves [groups, ...], leaves to add up).
      sites: all rows.
      facts: what else f reads, leaves [groups, ...].
      groups: all groups.
      chunk: groups per call; divides `groups`.
    """
    count = groups // chunk

    def body(total: Any, j: jax.Array) -> tuple[Any, Any]:
        def take(x: jax.Array) -> jax.Array:
            split = x.reshape(chunk, count, -1, *x.shape[1:])
            own = jax.lax.dynamic_index_in_dim(split, j, axis=1, keepdims=False)
            return own.reshape(-1, *x.shape[1:])

        own, summed = f(
            {p: s.with_rows(take) for p, s in sites.items()},
            jax.tree.map(take, facts),
            chunk,
        )
        return jax.tree.map(jnp.add, total, summed), own

    def first() -> Any:
        def take(x: jax.Array) -> jax.Array:
            return x[: x.shape[0] // count]

        rows = {p: s.with_rows(take) for p, s in sites.items()}
        return f(rows, jax.tree.map(take, facts), chunk)[1]

    shapes = jax.eval_shape(first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    summed, own = jax.lax.scan(body, zeros, jnp.arange(count))
    joined = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(groups, *x.shape[2:]), own)
    return joined, summed
