"""What the rules share that read the Gramian: one sample at a time, without scale."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

SHRINK = 1e-6
"""About the rounding error of a float32 inner product over many parameters."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a rule reads of one sample: its Gramian, split into angles and lengths.

    Attributes:
      cosine: [k, k] inner products of the gradients at unit length; an absent loss is
        orthogonal to all others.
      norm: [k] lengths in units of the mean length of the present losses; 1 for an
        absent one.
      present: [k] False where the gradient is zero.
      names: the k loss names.
      key: the sample's own.
    """

    cosine: Float[Array, "k k"]
    norm: Float[Array, "k"]
    present: Bool[Array, "k"]
    names: tuple[str, ...]
    key: Key[Array, ""]

    @property
    def count(self) -> Float[Array, ""]:
        """Present losses, at least 1."""
        return jnp.maximum(self.present.sum(), 1).astype(jnp.float32)

    @property
    def shrunk(self) -> Float[Array, "k k"]:
        """`cosine`, positive definite; see `SHRINK`."""
        eye = np.eye(len(self.norm), dtype=bool)
        return jnp.where(eye, 1, self.cosine * (1 - SHRINK))

    @property
    def gram(self) -> Float[Array, "k k"]:
        """The positive definite Gramian in units of the mean length."""
        return self.norm[:, None] * self.shrunk * self.norm[None, :]


class Rule(abc.ABC):
    """What all rules share that read the Gramian: samples apart, no scale, absence."""

    uses_gramian: ClassVar[bool] = True

    def __call__(
        self,
        gram: Float[Array, "... k k"],
        *,
        names: Sequence[str],
        key: Key[Array, ""],
    ) -> Float[Array, "... k"]:
        def one(gram: jax.Array, key: jax.Array) -> jax.Array:
            length = jnp.sqrt(jnp.diagonal(gram))
            present = length > 0
            mean = length.sum() / jnp.maximum(present.sum(), 1)
            norm = jnp.where(present, length / jnp.where(mean > 0, mean, 1), 1)
            length = jnp.where(present, length, 1)
            cosine = jnp.clip(gram / length[:, None] / length[None, :], -1, 1)
            cosine = jnp.where(np.eye(len(gram), dtype=bool), 1, cosine)
            sample = Sample(cosine, norm, present, tuple(names), key)
            return jnp.where(present, self.weigh(sample), 1)

        samples = gram.shape[:-2]
        for _ in samples:
            one = jax.vmap(one)
        return one(gram.astype(jnp.float32), jax.random.split(key, samples))

    @abc.abstractmethod
    def weigh(self, sample: Sample) -> Float[Array, "k"]:
        """Weights of one sample; an absent loss's may be any finite number."""
