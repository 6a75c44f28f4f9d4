"""Engines: from cotangents at the encoder's output to per-sample Gramians.

All have one signature, that of `jax.vjp` for many cotangents and a rule:

    encoded, pullback = engine.vjp(towers, params, rows)
    pulled = pullback(cotangents, weigh, state, step)

`weigh` turns a Gramian [g, k, k] into weights [g, k]; `pulled.grads` is
sum_i sum_k w_i^k g_i^k. `Vmap` is the definition that all others are tested against.
"""

import abc
import collections
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmssl import trees
from mmssl.errors import UserError
from mmssl.gradients.cotangents import Cotangents, combine, compared, reach
from mmssl.gradients.products import gram_of
from mmssl.types import Params, Recorded

ENCODER = r"(shared|\w+_encoder)/.*"
"""Default scope: Transformer blocks and their norms, what several losses share."""

Weigh = Callable[[Float[Array, "g k k"]], Float[Array, "g k"]]


@dataclasses.dataclass(frozen=True)
class Tower:
    """One row-wise part of the encoder.

    Attributes:
      encode: (params, rows) -> encoded, leaves [b, ...]; row i reads row i only.
      record: the same, as `types.Recorded`; only engines that look inside need it.
    """

    encode: Callable[[Params, Any], Any]
    record: Callable[[Params, Any], Recorded] | None = None


@dataclasses.dataclass(frozen=True)
class Pulled:
    """What a pullback gives.

    Attributes:
      grads: sum over samples and losses of the weighted gradients.
      gram: [g, k, k]; None from `Plain`.
      weights: [g, k].
      state: the engine's next state.
      metrics: what the engine says of itself, name to scalar; empty for most.
    """

    grads: Params
    gram: Float[Array, "g k k"] | None
    weights: Float[Array, "g k"]
    state: Any
    metrics: Mapping[str, jax.Array]


Pullback = Callable[[Cotangents, Weigh, Any, Any], Pulled]
"""(cotangents, weigh, engine state, step) -> Pulled."""


class Engine(Protocol):
    """See the module's text; subclass it for the defaults.

    Attributes:
      chunk: groups whose gradients are held at once; 0 = all.
    """

    chunk: int = 0

    def init(self) -> Any:
        """State before the first step."""
        return {}

    @abc.abstractmethod
    def vjp(
        self, towers: Mapping[str, Tower], params: Params, rows: Any, *, group: int
    ) -> tuple[dict[str, Any], Pullback]:
        """Encoded, and its pullback.

        Args:
          towers: by name.
          params: of all towers.
          rows: what the towers read.
          group: samples whose gradients are summed before they are compared.
        """
        ...

    def compared(self, params: Params) -> list[str]:
        """Names of the parameters whose gradients it may compare; default none."""
        del params
        return []

    def held(self, params: Params, groups: int) -> int:
        """Numbers per loss that it holds beside a plain backward, at most."""
        named = trees.named_leaves(params)
        size = sum(named[n].size for n in self.compared(params))
        return min(self.chunk or groups, groups) * size


def in_scope(params: Params, scope: str) -> list[str]:
    """Names of the parameters whose whole path `scope` matches.

    Raises:
      UserError: it matches none.
    """
    names = [n for n in trees.named_leaves(params) if re.fullmatch(scope, n)]
    if not names:
        raise UserError(
            f"harmonizer.engine.scope {scope!r} matches none of the encoder's "
            f"parameters, which look like {list(trees.named_leaves(params))[:3]}"
        )
    return names


def plain_vjp(
    towers: Mapping[str, Tower], params: Params, rows: Any
) -> tuple[dict[str, Any], Callable[[Any], Params]]:
    """One ordinary forward and its pullback."""
    encoded, pullback = jax.vjp(
        lambda p: {name: tower.encode(p, rows) for name, tower in towers.items()},
        params,
    )
    return encoded, lambda cotangent: pullback(cotangent)[0]


@dataclasses.dataclass(frozen=True)
class Vmap(Engine):
    """The definition: per-sample gradients by vmapped VJPs, discarded after use.

    Needs nothing of the encoder but row-wise functions. A second forward and one
    backward per loss, in micro-batches of `chunk` groups.

    Attributes:
      scope: pattern of the parameters (whole path) whose gradients are compared. Those
        that only one loss reaches are left out: nothing conflicts there.
      chunk: groups whose gradients are held at once.
    """

    scope: str = ENCODER
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise UserError(
                f"harmonizer.engine.chunk: expected 1 or more, found {self.chunk}"
            )

    def vjp(
        self, towers: Mapping[str, Tower], params: Params, rows: Any, *, group: int
    ) -> tuple[dict[str, Any], Pullback]:
        encoded, pull = plain_vjp(towers, params, rows)
        names = set(self.compared(params))

        def pullback(c: Cotangents, weigh: Weigh, state: Any, step: Any) -> Pulled:
            del step
            present = c.grouped(group)
            inside = names & _shared(towers, params, rows, c)
            gram = self._gram(towers, params, rows, c, group, inside)
            gram = compared(gram, present)
            weights = weigh(gram)
            grads = pull(combine(c.encoded, weights))
            return Pulled(grads, gram, weights, state, {})

        return encoded, pullback

    def compared(self, params: Params) -> list[str]:
        return in_scope(params, self.scope)

    def _gram(
        self,
        towers: Mapping[str, Tower],
        params: Params,
        rows: Any,
        c: Cotangents,
        group: int,
        names: set[str],
    ) -> Float[Array, "g k k"]:
        named = trees.named_leaves(params)
        rest = {n: p for n, p in named.items() if n not in names}
        inside = {n: p for n, p in named.items() if n in names}
        if not inside:
            return jnp.zeros((len(c.present) // group, len(c.names), len(c.names)))

        def grouped(x: jax.Array) -> jax.Array:
            return x.reshape(-1, group, *x.shape[1:])

        def of_group(args: tuple[Any, Any]) -> Float[Array, "k k"]:
            own, cotangents = args
            total: dict[int, Any] = {}
            for name, tower in towers.items():
                _, pull = jax.vjp(
                    lambda p, tower=tower: tower.encode(
                        trees.from_named({**rest, **p}), own
                    ),
                    inside,
                )
                for k in c.reaching(name):
                    g = pull(jax.tree.map(lambda x, k=k: x[k], cotangents[name]))[0]
                    total[k] = jax.tree.map(jnp.add, total[k], g) if k in total else g
            wide = jax.tree.map(lambda g: g[None].astype(jnp.float32), total)
            return gram_of(wide, len(c.names))[0]

        by_group = jax.tree.map(
            lambda x: jnp.moveaxis(
                x.reshape(x.shape[0], -1, group, *x.shape[2:]), 1, 0
            ),
            c.encoded,
        )
        return jax.lax.map(
            of_group, (jax.tree.map(grouped, rows), by_group), batch_size=self.chunk
        )


def _shared(
    towers: Mapping[str, Tower], params: Params, rows: Any, c: Cotangents
) -> set[str]:
    """Names of the parameters that two losses or more reach."""
    named = trees.named_leaves(params)
    read = {
        name: frozenset().union(
            *reach(
                lambda p, tower=tower: jax.tree.leaves(
                    tower.encode(trees.from_named(p), rows)
                ),
                named,
            )
        )
        for name, tower in towers.items()
    }
    times = collections.Counter(
        n for own in c.reads for n in frozenset().union(*(read[t] for t in own))
    )
    return {name for name, count in times.items() if count > 1}


@dataclasses.dataclass(frozen=True)
class Embedding(Engine):
    """A proxy: products of the cotangents themselves, no gradient of any parameter.

    Costs nothing beside a plain step. Its cosines rank samples for a curriculum; its
    norms are not those of parameter gradients, so no weighting may use them.
    """

    def init(self) -> Any:
        return {}

    def vjp(
        self, towers: Mapping[str, Tower], params: Params, rows: Any, *, group: int
    ) -> tuple[dict[str, Any], Pullback]:
        encoded, pull = plain_vjp(towers, params, rows)

        def pullback(c: Cotangents, weigh: Weigh, state: Any, step: Any) -> Pulled:
            del step
            present = c.grouped(group)
            cotangents = {
                k: [
                    leaf[k].reshape(leaf.shape[1] // group, -1).astype(jnp.float32)
                    for name in towers
                    for leaf in jax.tree.leaves(c.encoded[name])
                ]
                for k in range(len(c.names))
            }
            gram = compared(gram_of(cotangents, len(c.names)), present)
            weights = weigh(gram)
            grads = pull(combine(c.encoded, weights))
            return Pulled(grads, gram, weights, state, {})

        return encoded, pullback


@dataclasses.dataclass(frozen=True)
class Plain(Engine):
    """No Gramian: for rules that do not read one."""

    def init(self) -> Any:
        return {}

    def vjp(
        self, towers: Mapping[str, Tower], params: Params, rows: Any, *, group: int
    ) -> tuple[dict[str, Any], Pullback]:
        encoded, pull = plain_vjp(towers, params, rows)

        def pullback(c: Cotangents, weigh: Weigh, state: Any, step: Any) -> Pulled:
            del weigh, step
            weights = jnp.ones(c.grouped(group).shape)
            grads = pull(combine(c.encoded, weights))
            return Pulled(grads, None, weights, state, {})

        return encoded, pullback
