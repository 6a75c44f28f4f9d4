"""Leaf modules: every parameter of an encoder lives in exactly one of these.

Composites only wire leaves together, so that one hook on the leaf classes sees every
parameterised operation. Parameters are float32; compute happens in each leaf's
`dtype`; statistics of norms are float32.
"""

import functools
import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from mmssl.parallel import rules

glorot = nn.initializers.glorot_uniform()
"""Keras' default for Dense kernels, hence the official code's."""


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, TensorFlow's default and so the official code's."""
    return jax.nn.gelu(x, approximate=False)


def dropout(
    x: jax.Array,
    *,
    rate: float,
    keys: Key[Array, "b"] | None,
    site: str,
) -> jax.Array:
    """Inverted dropout whose mask of row i depends on keys[i] and site only.

    Args:
      x: [b, ...].
      rate: share dropped; 0 traces nothing.
      keys: one key per row, or None for evaluation.
      site: the place; different names, independent masks.
    """
    if keys is None or rate == 0.0:
        return x

    name = zlib.crc32(site.encode())

    def keep(key: Key[Array, ""]) -> jax.Array:
        return jax.random.bernoulli(
            jax.random.fold_in(key, name), 1.0 - rate, x.shape[1:]
        )

    return jnp.where(jax.vmap(keep)(keys), x / (1.0 - rate), jnp.zeros((), x.dtype))


def _last(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _in_use(path: str, name: str, x: jax.Array) -> jax.Array:
    """A parameter as the leaf at `path` reads it; by itself (no path) as it is."""
    return rules.in_use(f"{path}/{name}", x) if path else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _affine(
    x: Float[Array, "... c"],
    kernel: Float[Array, "c d"],
    bias: Float[Array, "d"] | None,
    path: str,
) -> Float[Array, "... d"]:
    """x kernel + bias in x's dtype; gradients of the parameters in float32.

    The derivative that JAX would take sums over rows, and over devices, in x's dtype.
    """
    return _affine_forward(x, kernel, bias, path)[0]


def _affine_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, path: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array | None]]:
    # Cast first: half the bytes to gather. Kept for the backward as it was gathered;
    # under remat it is gathered again.
    whole = _in_use(path, "kernel", kernel.astype(x.dtype))
    y = jnp.dot(x, whole)
    if bias is not None:
        y = y + _last(bias.astype(x.dtype), y)
    return y, (x, whole, bias)


def _affine_backward(
    path: str, kept: tuple[jax.Array, jax.Array, jax.Array | None], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    del path
    x, kernel, bias = kept
    rows = tuple(range(x.ndim - 1))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dkernel = jax.lax.dot_general(
        x, dy, ((rows, rows), ((), ())), preferred_element_type=wide
    )
    dbias = None if bias is None else dy.sum(rows, dtype=wide)
    return jnp.dot(dy, kernel.T), dkernel, dbias


_affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """[..., c] -> [..., features]; kernel [c, features] glorot uniform, bias zeros."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel_init: Callable[..., jax.Array] = glorot

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _affine(x.astype(self.dtype), kernel, bias, "/".join(self.path))


class LayerNorm(nn.Module):
    """[..., d] -> [..., d]: zero mean, unit variance, then scale and bias."""

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + self.epsilon)
        return (wide * inverse * _last(scale, x) + _last(bias, x)).astype(self.dtype)


class RMSNorm(nn.Module):
    """[..., d] -> [..., d]: unit mean square, then scale (T5: no mean, no bias)."""

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + self.epsilon)
        return (wide * inverse * _last(scale, x)).astype(self.dtype)


class Embed(nn.Module):
    """Ids [..., t] -> [..., t, features].

    Rows are initialised with unit variance, the scale of the normalised position
    embeddings they meet. `frozen`: constants (the official code's word2vec table);
    the leaf stays in the tree, its gradient is exactly zero.
    """

    vocab: int
    features: int
    frozen: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, ids: Int[Array, "..."]) -> jax.Array:
        table = self.param(
            "embedding", nn.initializers.normal(1.0), (self.vocab, self.features)
        )
        if self.frozen:
            table = jax.lax.stop_gradient(table)
        table = _in_use("/".join(self.path), "embedding", table)
        return jnp.take(table, ids, axis=0, mode="clip").astype(self.dtype)


class PositionEmbedding(nn.Module):
    """One learnable row per coordinate of one axis.

    Normal of standard deviation d^-0.5, cut at two of them, which leaves 0.88 d^-0.5.
    """

    size: int
    features: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, positions: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        table = self.param(
            "table",
            nn.initializers.truncated_normal(self.features**-0.5),
            (self.size, self.features),
        )
        return jnp.take(table, positions, axis=0, mode="clip").astype(self.dtype)


class AggregationToken(nn.Module):
    """The token whose output is the pooled feature: [b, t, d] -> [b, 1, d].

    Normal of standard deviation d^-0.5 (Glorot with both fans d), cut at two of them,
    which leaves 0.88 d^-0.5: Keras' Glorot normal makes up for the cut, this does not.
    """

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b 1 d"]:
        rows, _, width = x.shape
        token = self.param(
            "token", nn.initializers.truncated_normal(width**-0.5), (width,)
        )
        # Cast last: the gradient's sum over rows is then float32.
        return jnp.broadcast_to(token, (rows, 1, width)).astype(self.dtype)


def relative_bucket(
    distance: Int[Array, "..."], *, buckets: int, max_distance: int
) -> Int[Array, "..."]:
    """T5's bidirectional buckets (arXiv 1910.10683): key minus query -> bucket.

    Half the buckets for each sign; in each half the first half are exact distances,
    the rest grow logarithmically up to `max_distance`, beyond which all share one.
    """
    half = buckets // 2
    exact = half // 2
    size = jnp.abs(distance)
    grown = exact + (
        jnp.log(jnp.maximum(size, 1).astype(jnp.float32) / exact)
        / math.log(max_distance / exact)
        * (half - exact)
    ).astype(jnp.int32)
    side = jnp.where(distance > 0, half, 0)
    return side + jnp.where(size < exact, size, jnp.minimum(grown, half - 1))


class RelativePositionBias(nn.Module):
    """A learnt logit per head and bucket of relative distance: [b, t] -> [b, h, t, t].

    The row axis is kept, so that row i's output belongs to sample i. Initialised with
    standard deviation d^-0.5 of the encoder's width, as in T5.
    """

    heads: int
    width: int
    buckets: int = 32
    max_distance: int = 64

    @nn.compact
    def __call__(self, positions: Int[Array, "b t"]) -> Float[Array, "b h t t"]:
        table = self.param(
            "embedding",
            nn.initializers.normal(self.width**-0.5),
            (self.buckets, self.heads),
        )
        distance = positions[:, None, :] - positions[:, :, None]
        bucket = relative_bucket(
            distance, buckets=self.buckets, max_distance=self.max_distance
        )
        return jnp.take(table, bucket, axis=0).transpose(0, 3, 1, 2)


def padding_bias(valid: np.ndarray | jax.Array) -> Float[Array, "b 1 1 t"]:
    """[b, t] bool -> what to add to logits: 0, or -1e9 (official) where padding."""
    return jnp.where(valid, 0.0, -1e9).astype(jnp.float32)[:, None, None, :]
