"""The Linen module: Batch -> Encoded through a shared encoder or one per modality."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Key

from mmssl import rng, types
from mmssl.models import embed, encoder


class Vatt(nn.Module):
    """Batch -> Encoded. Row i depends on row i and keys[i] only."""

    specs: Mapping[str, types.ModalitySpec]
    axes: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, Mapping[str, int]]
    shared: bool
    post_width: int
    word_width: int
    frozen_words: bool
    attention: str
    dropout: float
    attention_dropout: float
    dtype: jnp.dtype
    scan: bool
    remat: str

    @nn.compact
    def __call__(
        self, batch: types.Batch, keys: Key[Array, "b"] | None
    ) -> types.Encoded:
        backbone = None
        if self.shared:
            backbone = self._encoder(next(iter(self.sizes)), "shared")
        tokens, pooled = {}, {}
        for name, mb in batch.modalities.items():
            tower = self._embedder(name)
            if backbone is None:
                run = self._encoder(name, f"{name}_encoder")
            else:
                run = backbone
            rows = None
            if keys is not None:
                rows = jax.vmap(functools.partial(rng.stream, name=name))(keys)
            encode = functools.partial(_encode_rows, tower=tower, run=run)
            tokens[name], pooled[name] = (
                _over_candidates(encode, mb, rows)
                if self.specs[name].candidates
                else encode(mb.tokens, mb.positions, mb.valid, rows)
            )
        return types.Encoded(tokens=tokens, pooled=pooled)

    def _embedder(self, name: str) -> embed.Embedder:
        width = self.sizes[name]["width"]
        return embed.Embedder(
            spec=self.specs[name],
            axes=self.axes[name],
            width=width,
            shared=self.shared,
            word_width=self.word_width or width,
            frozen_words=self.frozen_words,
            post_width=self.post_width or width,
            dropout=self.dropout,
            dtype=self.dtype,
            name=name,
        )

    def _encoder(self, modality: str, name: str) -> encoder.Encoder:
        size = self.sizes[modality]
        t5 = bool(self.specs[modality].vocab) and not self.shared
        return encoder.Encoder(
            depth=size["layers"],
            mlp=size["mlp"],
            heads=size["heads"],
            form="t5" if t5 else "vit",
            attention=self.attention,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            name=name,
        )


def _encode_rows(
    tokens: jax.Array,
    positions: jax.Array,
    valid: Bool[Array, "b t"],
    keys: Key[Array, "b"] | None,
    *,
    tower: embed.Embedder,
    run: encoder.Encoder,
) -> tuple[jax.Array, jax.Array]:
    x = tower.embed(tokens, positions, keys)
    # The aggregation token is always valid and stands before position 0.
    valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
    order = jnp.pad(positions[..., 0] + 1, ((0, 0), (1, 0)))
    x = run(x, valid, order, keys)
    return x[:, 1:], tower.pool(x)


def _over_candidates(
    encode: Callable[..., tuple[jax.Array, jax.Array]],
    mb: types.ModalityBatch,
    keys: Key[Array, "b"] | None,
) -> tuple[jax.Array, jax.Array]:
    """[b, n, t] -> rows [b n, t] -> back; candidate j folds j into its row's key."""
    b, n = mb.tokens.shape[:2]

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(b * n, *x.shape[2:])

    if keys is not None:
        keys = flat(jax.vmap(functools.partial(rng.per_row, rows=n))(keys))
    outputs = encode(flat(mb.tokens), flat(mb.positions), flat(mb.valid), keys)
    tokens, pooled = (x.reshape(b, n, *x.shape[1:]) for x in outputs)
    return tokens, pooled
