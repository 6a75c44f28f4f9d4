"""Projection heads: pooled features -> common spaces. BatchNorm lives here.

Pure functions over plain dicts. Heads couple samples through batch statistics, so they
belong to objectives, after the point where cotangents are cut. Statistics are plain
means over the batch axis: under jit with a sharded batch they are global ones.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mmssl import errors, rng, types
from mmssl.models import layers, presets

MOMENTUM = 0.9
EPSILON = 1e-5

Spaces = dict[str, dict[str, jax.Array]]
"""space -> modality -> [b, (n,) e], float32, not normalised."""


def init_batch_norm(width: int) -> tuple[types.Params, Any]:
    """Scale ones, bias zeros; running mean zeros, variance ones."""
    params = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    return params, {"mean": jnp.zeros(width), "var": jnp.ones(width)}


def batch_moments(
    x: Float[Array, "b e"], present: Bool[Array, "b"]
) -> tuple[Float[Array, "e"], Float[Array, "e"]]:
    """Mean and biased variance over present rows; zeros if there are none."""
    weight = present.astype(x.dtype)[:, None]
    count = jnp.maximum(weight.sum(), 1.0)
    mean = jnp.where(present[:, None], x, 0.0).sum(0) / count
    centred = jnp.where(present[:, None], x - mean[None], 0.0)
    return mean, (centred * centred).sum(0) / count


def normalise(
    params: types.Params,
    x: Float[Array, "b e"],
    mean: Float[Array, "e"],
    var: Float[Array, "e"],
) -> Float[Array, "b e"]:
    """(x - mean) / sqrt(var + 1e-5), scaled and shifted."""
    gain = params["scale"] * jax.lax.rsqrt(var + EPSILON)
    return (x - mean[None]) * gain[None] + params["bias"][None]


def _running(
    state: Any, mean: jax.Array, var: jax.Array, present: Bool[Array, "b"]
) -> Any:
    """The next running statistics; unchanged where no row is present."""
    some = present.any()
    fresh = {"mean": mean, "var": var}
    return {
        name: jax.lax.stop_gradient(
            jnp.where(some, MOMENTUM * old + (1 - MOMENTUM) * fresh[name], old)
        )
        for name, old in state.items()
    }


@dataclasses.dataclass(frozen=True)
class Linear:
    """One Dense of a chain and what follows it: BatchNorm, ReLU."""

    features: int
    bias: bool = False
    norm: bool = True
    relu: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
    """Linear layers applied in turn, from one space to another.

    Attributes:
      source: the space read; "" = pooled features.
      space: the space written.
      modalities: who goes through. Batch statistics are those of the first one; the
        others are normalised by them, so that all see one and the same map.
      relu: ReLU on the input.
    """

    source: str
    space: str
    modalities: tuple[str, ...]
    linears: tuple[Linear, ...]
    relu: bool = False


def _init_chain(
    key: Key[Array, ""], width: int, chain: Chain
) -> tuple[types.Params, Any]:
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for i, linear in enumerate(chain.linears):
        features = linear.features
        dense = {
            "kernel": layers.glorot(rng.stream(key, "dense", i), (width, features))
        }
        if linear.bias:
            dense["bias"] = jnp.zeros(features)
        params[f"dense_{i}"] = dense
        if linear.norm:
            params[f"norm_{i}"], state[f"norm_{i}"] = init_batch_norm(features)
        width = features
    return params, state


def _apply_chain(
    chain: Chain,
    params: types.Params,
    state: Any,
    rows: dict[str, Float[Array, "r d"]],
    present: Bool[Array, "r"] | None,
) -> tuple[dict[str, jax.Array], Any]:
    """Rows of each modality; `present` those of the first one, None = running stats."""
    new_state = dict(state)
    if chain.relu:
        rows = {m: jax.nn.relu(x) for m, x in rows.items()}
    for i, linear in enumerate(chain.linears):
        dense = params[f"dense_{i}"]
        rows = {m: jnp.dot(x, dense["kernel"]) for m, x in rows.items()}
        if linear.bias:
            rows = {m: x + dense["bias"][None] for m, x in rows.items()}
        if linear.norm:
            name = f"norm_{i}"
            if present is None:
                mean, var = state[name]["mean"], state[name]["var"]
            else:
                mean, var = batch_moments(rows[chain.modalities[0]], present)
                new_state[name] = _running(state[name], mean, var, present)
            rows = {m: normalise(params[name], x, mean, var) for m, x in rows.items()}
        if linear.relu:
            rows = {m: jax.nn.relu(x) for m, x in rows.items()}
    return rows, new_state


@dataclasses.dataclass(frozen=True, eq=False)
class Heads:
    """Chains from pooled features to common spaces.

    Attributes:
      chains: by name; a chain comes after those that write its source.
      spaces: per space, the modalities that `apply` puts there.
    """

    chains: Mapping[str, Chain]
    spaces: Mapping[str, tuple[str, ...]]

    def only(self, modalities: Sequence[str]) -> "Heads":
        """The same maps for fewer modalities, to project with and not to train.

        A chain whose first modality is left out keeps the statistics of that one.

        Args:
          modalities: who stays.
        """
        chains = {}
        for name, chain in self.chains.items():
            members = tuple(m for m in chain.modalities if m in modalities)
            if members:
                chains[name] = dataclasses.replace(chain, modalities=members)
        spaces = {
            space: tuple(m for m in members if m in modalities)
            for space, members in self.spaces.items()
        }
        return Heads(chains=chains, spaces={s: m for s, m in spaces.items() if m})

    def init(
        self, key: Key[Array, ""], widths: Mapping[str, int]
    ) -> tuple[types.Params, Any]:
        """(params, state): glorot uniform kernels, zero biases, unit statistics.

        Args:
          key: the source of randomness.
          widths: pooled width of each modality.

        Raises:
          ValueError: a modality of the heads without a width.
        """
        params, state = {}, {}
        made: dict[tuple[str, str], int] = {("", m): w for m, w in widths.items()}
        for name, chain in self.chains.items():
            lead = chain.modalities[0]
            if (chain.source, lead) not in made:
                raise ValueError(
                    f"heads: {name} needs the pooled width of {lead!r}; found widths "
                    f"of {', '.join(widths) or 'nothing'}"
                )
            width = made[chain.source, lead]
            params[name], state[name] = _init_chain(rng.stream(key, name), width, chain)
            for m in chain.modalities:
                made[chain.space, m] = chain.linears[-1].features
        return params, state

    def apply(
        self,
        params: types.Params,
        state: Any,
        pooled: Mapping[str, jax.Array],
        present: Mapping[str, jax.Array],
        *,
        train: bool,
    ) -> tuple[Spaces, Any]:
        """Projects; (spaces, next state), the state unchanged unless training.

        Args:
          params: from `init`.
          state: running statistics.
          pooled: per modality [b, d], or [b, n, d] for text candidates; modalities
            left out are left out of the result.
          present: per modality [b] or [b, n] bool. Absent rows are read as zeros:
            they influence nothing and get zero gradient; their output is arbitrary
            but finite.
          train: batch statistics over present rows; False = running statistics. A
            chain whose first modality is left out always uses the latter.

        Returns:
          ({space: {modality: [b, (n,) e]}} float32 and not normalised, state).
        """
        rows: Spaces = {"": {}}
        masks = {}
        for m, x in pooled.items():
            there = present[m]
            if there.ndim < x.ndim - 1:
                there = jnp.broadcast_to(there[:, None], x.shape[:-1])
            x = jnp.where(there[..., None], x, 0.0).astype(jnp.float32)
            rows[""][m] = x.reshape(-1, x.shape[-1])
            masks[m] = there.reshape(-1)
        new_state = dict(state)
        for name, chain in self.chains.items():
            source = rows.get(chain.source, {})
            taken = {m: source[m] for m in chain.modalities if m in source}
            if not taken:
                continue
            learn = train and chain.modalities[0] in taken
            done, new_state[name] = _apply_chain(
                chain,
                params[name],
                state[name],
                taken,
                masks[chain.modalities[0]] if learn else None,
            )
            rows.setdefault(chain.space, {}).update(done)
        spaces = {
            space: {
                m: rows[space][m].reshape(*pooled[m].shape[:-1], -1)
                for m in members
                if m in rows.get(space, {})
            }
            for space, members in self.spaces.items()
        }
        return spaces, new_state


def official(*, va: int = 512, vt: int = 256) -> dict[str, Chain]:
    """The official code's `FACHead`.

    Video: Dense-BN-ReLU-Dense-BN to va, then ReLU-Dense-BN to vt, no biases. Audio
    and text: one Dense with bias each, no BatchNorm. Audio reaches vt through the
    same map as video.
    """
    return {
        "video_va": Chain("", "va", ("video",), (Linear(va, relu=True), Linear(va))),
        "audio_va": Chain("", "va", ("audio",), (Linear(va, bias=True, norm=False),)),
        "va_vt": Chain("va", "vt", ("video", "audio"), (Linear(vt),), relu=True),
        "text_vt": Chain("", "vt", ("text",), (Linear(vt, bias=True, norm=False),)),
    }


def paper(*, va: int = 512, vt: int = 256) -> dict[str, Chain]:
    """VATT section 3.3: linear maps, two layers with ReLU for video to va; BatchNorm
    after every linear one (so no biases)."""
    return {
        "video_va": Chain("", "va", ("video",), (Linear(va, relu=True), Linear(va))),
        "audio_va": Chain("", "va", ("audio",), (Linear(va),)),
        "va_vt": Chain("va", "vt", ("video", "audio"), (Linear(vt),)),
        "text_vt": Chain("", "vt", ("text",), (Linear(vt),)),
    }


def joint(
    *, features: int = 256, hidden: int | None = None, norm: bool = True
) -> dict[str, Chain]:
    """One space for all: per modality a Dense, or with `hidden` Dense-ReLU-Dense.

    `norm`: BatchNorm after every Dense, in place of its bias. Features of a fresh
    encoder all point the same way; without it the first hundreds of steps go into
    centring them.
    """
    last = Linear(features, bias=not norm, norm=norm)
    first = () if hidden is None else (Linear(hidden, not norm, norm, relu=True),)
    return {
        f"{m}_joint": Chain("", "joint", (m,), (*first, last))
        for m in presets.MODALITIES
    }


KINDS: dict[str, Callable[..., dict[str, Chain]]] = {
    "official": official,
    "paper": paper,
    "joint": joint,
}


def build_heads(
    *,
    kind: str = "official",
    modalities: Sequence[str] = presets.MODALITIES,
    **options: Any,
) -> Heads:
    """Heads for the given modalities.

    Args:
      kind: "official" (`official`), "paper" (`paper`) or "joint" (`joint`).
      modalities: those the model has; chains of others are left out.
      **options: keyword arguments of the kind's function: va, vt; features, hidden.

    Raises:
      UserError: an unknown kind, option or modality; heads without video, where every
        space of official and paper starts; a width below 1.
    """
    if kind not in KINDS:
        raise errors.UserError(
            f"heads.kind: unknown {kind!r}{errors.nearest(kind, KINDS)} "
            f"(known: {', '.join(KINDS)})"
        )
    known = inspect.signature(KINDS[kind]).parameters
    for option, value in options.items():
        if option not in known:
            raise errors.UserError(
                f"heads.{option}: not an option of kind {kind!r}"
                f"{errors.nearest(option, known)} (known: {', '.join(known)})"
            )
        if value is not None and not isinstance(value, bool) and value < 1:
            raise errors.UserError(f"heads.{option}: must be at least 1, found {value}")
    for m in modalities:
        if m not in presets.MODALITIES:
            near = errors.nearest(m, presets.MODALITIES)
            raise errors.UserError(
                f"heads.modalities: unknown {m!r}{near} "
                f"(known: {', '.join(presets.MODALITIES)})"
            )
    if kind != "joint" and "video" not in modalities:
        raise errors.UserError(
            f"heads.kind {kind!r} needs video, found {', '.join(modalities)}; "
            "use kind 'joint'"
        )
    chains = {}
    for name, chain in KINDS[kind](**options).items():
        members = tuple(m for m in chain.modalities if m in modalities)
        if members:
            chains[name] = dataclasses.replace(chain, modalities=members)
    spaces = {}
    for space in dict.fromkeys(chain.space for chain in chains.values()):
        found = {m for c in chains.values() if c.space == space for m in c.modalities}
        spaces[space] = tuple(m for m in presets.MODALITIES if m in found)
    return Heads(chains=chains, spaces=spaces)
