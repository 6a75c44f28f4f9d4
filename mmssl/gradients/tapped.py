"""Engines that read the encoder's leaves: one forward, one backward per loss.

Every loss is pulled back to the outputs of the leaves; no weight gradient is computed
twice. See `sites` for how Gramians and gradients come of that.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmssl import trees
from mmssl.errors import UserError
from mmssl.gradients import audit
from mmssl.gradients import sites as at
from mmssl.gradients.cotangents import Cotangents, combine, compared
from mmssl.gradients.engines import (
    ENCODER,
    Embedding,
    Engine,
    Pullback,
    Pulled,
    Tower,
    Vmap,
    Weigh,
    in_scope,
)
from mmssl.types import Params

METRIC = r".*(attention/output/kernel|norm/(scale|bias)|/bias)"
"""Attention output projections, norms, biases: 1/12 of the products, all depths."""


def _names(sites: at.Sites, params: Params, scope: str) -> dict[str, frozenset[str]]:
    """What is compared: in scope, trainable, and reached by two losses or more."""
    inside = set(in_scope(params, scope))
    found = {
        path: frozenset(n for n in site.params if f"{path}/{n}" in inside)
        for path, site in sites.items()
        if len(site.losses) > 1 and site.leaf.kind != "frozen"
    }
    return {path: names for path, names in found.items() if names}


def _matching(names: at.Names, pattern: str) -> dict[str, frozenset[str]]:
    found = {
        path: frozenset(n for n in own if re.fullmatch(pattern, f"{path}/{n}"))
        for path, own in names.items()
    }
    return {path: own for path, own in found.items() if own}


def _without(names: at.Names, others: at.Names) -> dict[str, frozenset[str]]:
    found = {path: own - others.get(path, frozenset()) for path, own in names.items()}
    return {path: own for path, own in found.items() if own}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a pullback was asked for, down at the leaves.

    Attributes:
      sites: all of the encoder's leaves.
      names: the parameters in scope.
      present: [g, k] which losses a group is compared in.
      weigh: Gramians -> weights.
      state: the engine's state.
      step: the training step.
    """

    sites: at.Sites
    names: at.Names
    present: Bool[Array, "g k"]
    weigh: Weigh
    state: Any
    step: Any

    @property
    def groups(self) -> int:
        return self.present.shape[0]

    @property
    def losses(self) -> int:
        return self.present.shape[1]

    def compare(
        self, sites: at.Sites, names: at.Names, groups: int, **options: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        return at.compare(sites, names, groups, self.losses, **options)


class _Tapped(Engine):
    """The way from towers to sites, the same for all."""

    scope: str

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise UserError(
                f"harmonizer.engine.chunk: expected 0 (= all) or more, found "
                f"{self.chunk}"
            )

    def compared(self, params: Params) -> list[str]:
        return in_scope(params, self.scope)

    def vjp(
        self, towers: Mapping[str, Tower], params: Params, rows: Any, *, group: int
    ) -> tuple[dict[str, Any], Pullback]:
        for name, tower in towers.items():
            if tower.record is None:
                raise UserError(
                    f"engine {type(self).__name__!r} reads the leaves of tower "
                    f"{name!r}, which records none; use engine 'vmap'"
                )
        recorded = {n: t.record(params, rows) for n, t in towers.items() if t.record}

        def pullback(c: Cotangents, weigh: Weigh, state: Any, step: Any) -> Pulled:
            sites = at.make_sites(recorded, params, c)
            request = Request(
                sites=sites,
                names=_names(sites, params, self.scope),
                present=c.grouped(group),
                weigh=weigh,
                state=state,
                step=step,
            )

            def ordinary(weights: jax.Array) -> Params:
                whole = combine(c.encoded, weights)
                pulled = [r.pullback(whole[n])[1] for n, r in recorded.items()]
                return jax.tree.map(lambda *leaves: sum(leaves), *pulled)

            pulled = self._pull(request, ordinary)
            return dataclasses.replace(
                pulled,
                grads=trees.map_named(
                    lambda name, p: pulled.grads[name].astype(p.dtype), params
                ),
            )

        return {name: r.encoded for name, r in recorded.items()}, pullback

    @abc.abstractmethod
    def _pull(
        self, request: Request, ordinary: Callable[[jax.Array], Params]
    ) -> Pulled:
        """`Pulled` with gradients by name; `ordinary` is the encoder's own backward."""


def _in_one_pass(
    request: Request,
    compare: Callable[[at.Sites, int], tuple[jax.Array, Mapping[str, Any]]],
    chunk: int,
) -> Pulled:
    """Gramian, weights and gradient without another backward.

    Args:
      request: what was asked for.
      compare: (sites, groups) -> (Gramian, kept gradients).
      chunk: groups at a time; 0 = all.
    """

    def part(sites: at.Sites, present: jax.Array, groups: int) -> tuple[Any, Any]:
        gram, kept = compare(sites, groups)
        gram = compared(gram, present)
        weights = request.weigh(gram)
        return (gram, weights), at.kept_gradient(sites, kept, weights)

    sites, groups = request.sites, request.groups
    if chunk and chunk < groups:
        if groups % chunk:
            raise UserError(
                f"harmonizer.engine.chunk {chunk} does not divide the {groups} "
                "samples (or groups) that are harmonized together"
            )
        (gram, weights), grads = at.in_chunks(
            part, sites, request.present, groups, chunk
        )
    else:
        (gram, weights), grads = part(sites, request.present, groups)
    grads |= at.replayed_gradient(sites, weights, skip=grads)
    return Pulled(grads, gram, weights, request.state, {})


@dataclasses.dataclass(frozen=True)
class Exact(_Tapped):
    """All parameters in scope.

    Attributes:
      scope: pattern of the parameters (whole path) whose gradients are compared. Those
        that only one loss reaches are left out: nothing conflicts there.
      chunk: samples (or groups) whose gradients are held at once; 0 = all. Memory
        against speed; the result is the same, but for what a rule draws at random.
    """

    scope: str = ENCODER
    chunk: int = 0

    def _pull(
        self, request: Request, ordinary: Callable[[jax.Array], Params]
    ) -> Pulled:
        del ordinary
        return _in_one_pass(
            request,
            lambda sites, groups: request.compare(sites, request.names, groups),
            self.chunk,
        )


@dataclasses.dataclass(frozen=True)
class Sketch(_Tapped):
    """Kernels through random directions of their output, the other parameters whole.

    Unbiased in the inner products; the error of a cosine falls with size^-1/2.

    Attributes:
      scope: see `Exact`.
      size: directions per kernel.
      chunk: see `Exact`.
    """

    scope: str = ENCODER
    size: int = 64
    chunk: int = 0

    def _pull(
        self, request: Request, ordinary: Callable[[jax.Array], Params]
    ) -> Pulled:
        del ordinary
        return _in_one_pass(
            request,
            lambda sites, groups: request.compare(
                sites, request.names, groups, sketch=self.size
            ),
            self.chunk,
        )


@dataclasses.dataclass(frozen=True)
class LastK(_Tapped):
    """The last `k` blocks only, then an ordinary backward.

    Cheap, since losses are pulled back separately through those blocks alone, and
    coarse: the last blocks say little about the others. Needs unrolled layers.

    Attributes:
      k: blocks, counted from the output.
      scope: see `Exact`.
    """

    k: int = 1
    scope: str = ENCODER

    def _pull(
        self, request: Request, ordinary: Callable[[jax.Array], Params]
    ) -> Pulled:
        names = self._last(request)
        gram, _ = request.compare(request.sites, names, request.groups)
        gram = compared(gram, request.present)
        weights = request.weigh(gram)
        grads = trees.named_leaves(ordinary(weights))
        return Pulled(grads, gram, weights, request.state, {})

    def _last(self, request: Request) -> dict[str, frozenset[str]]:
        names = request.names
        if any(request.sites[path].leaf.stacked for path in names):
            raise UserError(
                "harmonizer.engine 'last_k' needs unrolled layers: set model.scan to "
                "False, or take engine 'subset'"
            )
        blocks = {p: re.fullmatch(r"(.*)/layer_(\d+)/.*", p) for p in names}
        depth: dict[str, int] = {}
        for found in filter(None, blocks.values()):
            depth[found[1]] = max(depth.get(found[1], 0), int(found[2]) + 1)
        return {
            path: names[path]
            for path, found in blocks.items()
            if not found or int(found[2]) >= depth[found[1]] - self.k
        }


@dataclasses.dataclass(frozen=True)
class Subset(_Tapped):
    """Few parameters that span the depth stand for all in scope; audited.

    The Gramian of attention output projections, norms and biases costs a twelfth of
    the products and ranks conflicts nearly as the whole one does. Every `audit_every`
    steps the rest is computed too, for a few samples; while the error is above a
    limit, it is computed for all samples at every step, and the metric
    `audit/fallback` is 1.

    Attributes:
      scope: see `Exact`.
      metric: pattern of the parameters that stand for the scope.
      chunk: see `Exact`.
      audit_every: steps between audits; 0 = never.
      audit_samples: samples (or groups) per audit.
      rmse: limit of the root mean square error of the cosines.
      sign: least share of cosines of the right sign.
      effect: limit of the gradient's error, relative to what harmonization changes.
    """

    scope: str = ENCODER
    metric: str = METRIC
    chunk: int = 0
    audit_every: int = 100
    audit_samples: int = 8
    rmse: float = 0.02
    sign: float = 0.95
    effect: float = 0.2

    def init(self) -> Any:
        return audit.init() if self.audit_every else {}

    def compared(self, params: Params) -> list[str]:
        inside = in_scope(params, self.scope)
        return [name for name in inside if re.fullmatch(self.metric, name)]

    def _pull(
        self, request: Request, ordinary: Callable[[jax.Array], Params]
    ) -> Pulled:
        del ordinary
        names = _matching(request.names, self.metric)
        if not names:
            raise UserError(
                f"harmonizer.engine.metric {self.metric!r} matches no parameter "
                f"in scope {self.scope!r}"
            )
        rest = _without(request.names, names)

        def compare(sites: at.Sites, groups: int) -> tuple[jax.Array, Any]:
            gram, kept = request.compare(sites, names, groups)
            if self.audit_every:
                gram += jax.lax.cond(
                    request.state["fallback"] > 0,
                    lambda: request.compare(sites, rest, groups)[0],
                    lambda: jnp.zeros_like(gram),
                )
            return gram, kept

        pulled = _in_one_pass(request, compare, self.chunk)
        if not self.audit_every:
            return pulled
        state, metrics = audit.run(
            audit.sample(request.sites, request.groups, self.audit_samples),
            names,
            rest,
            request.weigh,
            present=audit.spread(request.present, request.groups, self.audit_samples),
            state=request.state,
            due=request.step % self.audit_every == 0,
            limits=audit.Limits(self.rmse, self.sign, self.effect),
        )
        return dataclasses.replace(pulled, state=state, metrics=metrics)


ENGINES: dict[str, Callable[..., Engine]] = {
    "vmap": Vmap,
    "exact": Exact,
    "subset": Subset,
    "last_k": LastK,
    "sketch": Sketch,
    "embedding": Embedding,
}
"""Where Gramians come from, by name in a config."""
