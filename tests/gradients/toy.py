"""A recorded encoder of three towers, and the same mathematics without the library.

The encoder has a leaf of every kind: kernels, norms, a table of words, positions. Its
`layer_00` sees all tokens of a sample, so that keeping per-sample gradients is cheapest
there; `layer_01` sees one, so that products of tokens are. `plain_encode` and `losses`
run at any precision: what they give in float64 is what every engine is held against.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmssl import trees
from mmssl.gradients import Harmonizer, Tower, backward
from mmssl.models import layers, record

ROWS, WIDTH = 8, 32
TOKENS = {"video": 6, "audio": 3, "text": 2}
CANDIDATES, WORDS = 2, 5
K2, K3 = ("va", "vt"), ("va", "vt", "at")
MODALITIES = {"v": "video", "a": "audio", "t": "text"}


class Toy(nn.Module):
    """One tower: [b, (n,) t, ...] -> [b, (n,) d]."""

    tower: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.shape[: 2 if self.tower == "text" else 1]
        x = x.reshape(-1, *x.shape[len(rows) :])
        x = Embedding(self.tower, name=self.tower)(x)
        return Shared(name="shared")(x).reshape(*rows, WIDTH)


class Embedding(nn.Module):
    """Patches or ids, and positions."""

    tower: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.tower == "text":
            y = layers.Embed(WORDS, WIDTH, name="word")(x)
        else:
            y = layers.Dense(WIDTH, name="patch")(x)
        tokens = jnp.arange(y.shape[1], dtype=jnp.int32)
        places = jnp.broadcast_to(tokens[None], y.shape[:2])
        return y + layers.PositionEmbedding(6, WIDTH, name="position")(places)


class Shared(nn.Module):
    """Two blocks, the first on all tokens, the second on their mean."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Layer(name="layer_00")(x).mean(1, keepdims=True)
        return layers.RMSNorm(name="norm")(Layer(name="layer_01")(x))[:, 0]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = layers.LayerNorm(name="norm")(x)
        return x + jnp.tanh(layers.Dense(WIDTH, name="mlp")(y))


def plain_encode(params: Any, x: Any, tower: str) -> Any:
    """`Toy`, without Flax and at the precision of its arguments."""

    def norm(p: Any, x: Any, *, centred: bool) -> Any:
        x = x - x.mean(-1, keepdims=True) if centred else x
        y = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]
        return y + p["bias"] if centred else y

    def layer(p: Any, x: Any) -> Any:
        y = norm(p["norm"], x, centred=True)
        return x + jnp.tanh(y @ p["mlp"]["kernel"] + p["mlp"]["bias"])

    own, shared = params[tower], params["shared"]
    if tower == "text":
        y = own["word"]["embedding"][x]
    else:
        y = x @ own["patch"]["kernel"] + own["patch"]["bias"]
    y = y + own["position"]["table"][: y.shape[-2]]
    y = layer(shared["layer_00"], y).mean(-2)
    return norm(shared["norm"], layer(shared["layer_01"], y), centred=False)


def losses(heads: Any, z: Any, *, names: Any = K2, mask: Any = None) -> Any:
    """NCE per pair of towers, on projections that BatchNorm couples.

    `mask` [b]: which samples have text. A sample without takes no part in its losses.
    """
    there = jnp.ones(ROWS, bool) if mask is None else jnp.asarray(mask)
    made, values = {}, {}
    for name in names:
        one, other = (z[MODALITIES[letter]] for letter in name)
        other = other.reshape(ROWS, -1, WIDTH)
        valid = there if "t" in name else jnp.ones(ROWS, bool)
        rows = valid[:, None].astype(one.dtype)
        x = one @ heads[name]
        x = x - (x * rows).sum(0, keepdims=True) / rows.sum()
        x = x / jnp.sqrt((x * x * rows).sum(0, keepdims=True) / rows.sum() + 0.1)
        s = jnp.einsum("id,jnd->ijn", x, other) / 8
        s = jnp.where(valid[None, :, None], s, -1e9)
        own = jax.nn.logsumexp(s[jnp.arange(ROWS), jnp.arange(ROWS)], -1)
        each = jax.nn.logsumexp(s, (1, 2)) - own
        values[name] = jnp.where(valid, each, 0.0)
        made[name] = values[name].sum() / ROWS
    return made, values


@dataclasses.dataclass(frozen=True)
class Problem:
    params: Any
    heads: Any
    rows: Any


@functools.cache
def problem() -> Problem:
    """Parameters with nothing at zero, and a batch."""
    r = np.random.default_rng(0)
    rows = {
        "video": jnp.asarray(r.normal(size=(ROWS, TOKENS["video"], 4)), jnp.float32),
        "audio": jnp.asarray(r.normal(size=(ROWS, TOKENS["audio"], 3)), jnp.float32),
        "text": jnp.asarray(
            r.integers(0, WORDS, (ROWS, CANDIDATES, TOKENS["text"])), jnp.int32
        ),
    }
    params: dict[str, Any] = {}
    for name in rows:
        params |= Toy(name).init(jax.random.key(1), rows[name])["params"]
    params = jax.tree.map(
        lambda p: p + 0.1 * jnp.asarray(r.normal(size=p.shape), p.dtype), params
    )
    heads = {
        name: jnp.asarray(r.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5, jnp.float32)
        for name in K3
    }
    return Problem(params, heads, rows)


def towers() -> dict[str, Tower]:
    """The towers as engines take them."""

    def tower(name: str) -> Tower:
        module = Toy(name)
        return Tower(
            lambda p, rows: module.apply({"params": p}, rows[name]),
            lambda p, rows: record.record(module, p, rows[name]),
        )

    return {name: tower(name) for name in TOKENS}


def explicit(
    names: tuple[str, ...] = K2, mask: tuple[bool, ...] | None = None
) -> list[dict[str, np.ndarray]]:
    """The definition in float64: per loss, parameter name -> [b, ...] gradients."""
    return _explicit(mask)[: len(names)]


@functools.cache
def _explicit(mask: tuple[bool, ...] | None) -> list[dict[str, np.ndarray]]:
    p = problem()
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):

        def widen(x: Any) -> Any:
            x = np.asarray(x)
            return jnp.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype)

        params, heads, rows = (
            jax.tree.map(widen, part) for part in (p.params, p.heads, p.rows)
        )

        def encode(params: Any, rows: Any) -> Any:
            return {m: plain_encode(params, x, m) for m, x in rows.items()}

        @jax.jit
        def gradients() -> Any:
            z = encode(params, rows)
            cotangents = jax.jacrev(lambda z: losses(heads, z, names=K3, mask=mask)[0])(
                z
            )

            def one(row: Any, c: Any) -> Any:
                return jax.vjp(lambda p: encode(p, row), params)[1](c)[0]

            return [jax.vmap(one)(rows, cotangents[n]) for n in K3]

        return [
            {n: np.asarray(g) for n, g in trees.named_leaves(by_loss).items()}
            for by_loss in gradients()
        ]


def gram(
    grads: list[dict[str, np.ndarray]], *, scope: str = r"shared/.*", group: int = 1
) -> np.ndarray:
    """[g, k, k] in float64, over parameters in scope that two losses reach."""
    inside = [
        n
        for n in grads[0]
        if re.fullmatch(scope, n) and sum(bool(np.any(g[n])) for g in grads) > 1
    ]
    flat = [
        np.concatenate(
            [g[n].reshape(ROWS // group, group, -1).sum(1) for n in inside], axis=1
        )
        for g in grads
    ]
    return np.asarray([[(a * b).sum(1) for b in flat] for a in flat]).transpose(2, 0, 1)


def weighted(
    grads: list[dict[str, np.ndarray]], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """sum_i sum_k w[i, k] g_i^k; weights [b, k], or [g, k] for groups in order."""
    weights = np.repeat(weights, ROWS // len(weights), axis=0)
    return {
        n: sum(np.tensordot(weights[:, k], g[n], 1) for k, g in enumerate(grads))
        for n in grads[0]
    }


@functools.cache
def compiled(
    harmonizer: Harmonizer,
    names: tuple[str, ...] = K2,
    mask: tuple[bool, ...] | None = None,
    recorded: bool = True,
    fields: tuple[str, ...] = ("params", "gram"),
    text: tuple[bool, ...] | None = None,
) -> Any:
    """(params, heads, rows, harmonizer state, step) -> `Backward` as a dictionary.

    `text` [b]: which samples have text, said to `backward` and not to the losses.
    """
    own = towers()
    if not recorded:
        own = {n: dataclasses.replace(t, record=None) for n, t in own.items()}

    @jax.jit
    def go(params: Any, heads: Any, rows: Any, state: Any, step: Any) -> Any:
        back = backward(
            own,
            params,
            rows,
            functools.partial(losses, names=names, mask=mask),
            heads,
            harmonizer=harmonizer,
            state=state,
            step=step,
            key=jax.random.key(5),
            present=None if text is None else {"text": jnp.asarray(text)},
            per_sample=dict,
        )
        return {field: getattr(back, field) for field in fields}

    return go


def run(
    harmonizer: Harmonizer, *, state: Any = None, step: int = 0, **options: Any
) -> Any:
    """`backward` on the problem; see `compiled`."""
    p = problem()
    state = harmonizer.init() if state is None else state
    go = compiled(harmonizer, **options)
    return go(p.params, p.heads, p.rows, state, jnp.asarray(step, jnp.int32))


def error(found: Any, wanted: Mapping[str, np.ndarray]) -> float:
    """Distance of two gradients, relative to the norm of the wanted one."""
    found = trees.named_leaves(found)
    assert set(found) == set(wanted)
    off = sum(
        ((np.asarray(found[n], np.float64) - w) ** 2).sum() for n, w in wanted.items()
    )
    return float(np.sqrt(off / sum((w**2).sum() for w in wanted.values())))
