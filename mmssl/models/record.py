"""What the exact Gramian reads: each leaf's input, and the cotangents of its output.

Every parameter of an encoder lives in one leaf module (`layers`), so a leaf's input and
the cotangent of its output give that parameter's gradient, per sample, by one small
product. A forward under `interceptor` keeps the inputs, and a pullback to the leaves'
outputs stops there: it forms no weight gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmssl import types
from mmssl.models import layers

INPUTS, TAPS = "inputs", "taps"
"""Variable collections: leaf inputs, and the zeros that stand for leaf outputs."""

KINDS: dict[type[nn.Module], str] = {
    layers.Dense: "dense",
    layers.LayerNorm: "small",
    layers.RMSNorm: "small",
    layers.Embed: "lookup",
    layers.PositionEmbedding: "small",
    layers.AggregationToken: "small",
    layers.RelativePositionBias: "small",
}
"""Leaf class -> the form of its products, see `types.Leaf`."""


@jax.custom_vjp
def _tapped(y: jax.Array, tap: jax.Array) -> jax.Array:
    """y; the tap's cotangent is y's. The tap is never read, so it costs no memory."""
    del tap
    return y


_tapped.defvjp(lambda y, tap: (y, None), lambda _, dy: (dy, dy))


@contextmanager
def _interceptor(leaves: dict[str, types.Leaf]) -> Iterator[None]:
    def keep(
        call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> jax.Array:
        y = call(*args, **kwargs)
        module = context.module
        if type(module) not in KINDS or context.method_name != "__call__":
            return y
        path = "/".join(module.path)
        alone = module.clone(parent=None, name=None)
        leaves[path] = types.Leaf(
            kind="frozen" if getattr(module, "frozen", False) else KINDS[type(module)],
            apply=lambda params, x: alone.apply({"params": params}, x),
            stacked="layers" in module.path,
        )
        module.sow(INPUTS, "x", args[0])
        tap = module.variable(TAPS, "y", jnp.zeros_like, y)
        return _tapped(y, tap.value)

    with nn.intercept_methods(keep):
        yield


def record(
    module: nn.Module,
    params: types.Params,
    *args: Any,
    select: Callable[[Any], Any] = lambda out: out,
) -> types.Recorded:
    """Applies `module` and keeps what per-sample gradients need.

    Args:
      module: composites over the leaf classes of `layers`, each leaf called once.
      params: its parameters.
      *args: its arguments; rows lead.
      select: the part of its output that is encoded; no other gets a cotangent.
    """
    leaves: dict[str, types.Leaf] = {}

    def zeros(params: types.Params) -> Any:
        with _interceptor(leaves):
            _, made = module.apply({"params": params}, *args, mutable=[INPUTS, TAPS])
        return made[TAPS]

    taps = jax.tree.map(
        lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(zeros, params)
    )

    def forward(taps: Any, params: types.Params) -> tuple[Any, Any]:
        with _interceptor(leaves):
            out, made = module.apply(
                {"params": params, TAPS: taps}, *args, mutable=[INPUTS]
            )
        return select(out), made[INPUTS]

    encoded, vjp, inputs = jax.vjp(forward, taps, params, has_aux=True)

    def pullback(cotangent: Any) -> tuple[dict[str, jax.Array], types.Params]:
        outputs, by_params = vjp(cotangent)
        return _flat(outputs, lambda tap: tap["y"]), by_params

    return types.Recorded(
        encoded=encoded,
        inputs=_flat(inputs, lambda kept: kept["x"][0]),
        pullback=pullback,
        leaves=leaves,
    )


def _flat(tree: Any, leaf: Callable[[Any], jax.Array]) -> dict[str, jax.Array]:
    """Nested dicts of modules -> path -> array."""
    found: dict[str, jax.Array] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if {"x", "y"} & set(node):
            found["/".join(path)] = leaf(node)
        else:
            for name, child in node.items():
                walk(child, (*path, name))

    walk(tree, ())
    return found
