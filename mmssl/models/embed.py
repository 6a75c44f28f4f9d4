"""From tokens of one modality to the encoder's input, and from its output to pooled."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from mmssl import types
from mmssl.models import layers


class PositionSum(nn.Module):
    """The sum of one table per axis, LayerNorm'ed as in the official code.

    VATT eq. 1: e_ijk = e_T[i] + e_V[j] + e_H[k].
    """

    grid: tuple[int, ...]
    axes: tuple[str, ...]
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, positions: Int[Array, "b t r"]) -> Float[Array, "b t d"]:
        total = jnp.zeros((), self.dtype)
        for i, (axis, size) in enumerate(zip(self.axes, self.grid, strict=True)):
            total = total + layers.PositionEmbedding(
                size, self.width, dtype=self.dtype, name=axis
            )(positions[..., i])
        return layers.LayerNorm(dtype=self.dtype, name="norm")(total)


class Embedder(nn.Module):
    """Everything of a modality outside its encoder.

    Three wirings, in the order of the official code:
      shared backbone: patch or word -> `pre` Dense(d, GELU) -> + positions, dropout ->
        aggregation token in front; after the encoder `post` Dense(GELU).
      video and audio of the specific backbone: the same without `pre` and `post`.
      text of the specific backbone (`t5`): word -> aggregation token in front ->
        `project` Dense(d, no bias) -> dropout; no absolute positions.
    The aggregation token has no position. A word table narrower than d needs no layer
    of its own in the shared backbone: `pre` widens it.

    Attributes:
      word_width: columns of the word table; unused for continuous tokens.
      frozen_words: the word table gets no gradient.
      post: width of the post-projection; 0 = none.
    """

    spec: types.ModalitySpec
    axes: tuple[str, ...]
    width: int
    shared: bool
    word_width: int
    frozen_words: bool
    post_width: int
    dropout: float
    dtype: jnp.dtype

    def setup(self) -> None:
        self.t5 = bool(self.spec.vocab) and not self.shared
        if self.spec.vocab:
            self.word = layers.Embed(
                self.spec.vocab,
                self.word_width,
                frozen=self.frozen_words,
                dtype=self.dtype,
            )
        else:
            self.patch = layers.Dense(self.width, dtype=self.dtype)
        if self.shared:
            self.pre = layers.Dense(self.width, dtype=self.dtype)
            self.post = layers.Dense(self.post_width, dtype=self.dtype)
        if self.t5:
            self.project = layers.Dense(self.width, use_bias=False, dtype=self.dtype)
        else:
            self.position = PositionSum(
                self.spec.grid, self.axes, self.width, dtype=self.dtype
            )
        self.aggregation = layers.AggregationToken(dtype=self.dtype)

    def embed(
        self,
        tokens: jax.Array,
        positions: Int[Array, "b t r"],
        keys: Key[Array, "b"] | None,
    ) -> Float[Array, "b t+1 d"]:
        """Ids [b, t] or patches [b, t, c] -> [b, 1 + t, d], aggregation token first."""
        x = self.word(tokens) if self.spec.vocab else self.patch(tokens)
        if self.t5:
            x = self.project(self._prepend(x))
            return layers.dropout(x, rate=self.dropout, keys=keys, site="embedding")
        if self.shared:
            x = layers.gelu(self.pre(x))
        x = x + self.position(positions)
        x = layers.dropout(x, rate=self.dropout, keys=keys, site="embedding")
        return self._prepend(x)

    def pool(self, x: Float[Array, "b t d"]) -> Float[Array, "b e"]:
        """Encoder output -> float32 pooled feature, from the aggregation token."""
        pooled = x[:, 0]
        if self.shared:
            pooled = layers.gelu(self.post(pooled))
        return pooled.astype(jnp.float32)

    def _prepend(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([self.aggregation(x), x], axis=1)
