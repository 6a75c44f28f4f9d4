"""How the tokens of a text become phrases."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmssl.errors import UserError, nearest

Grouped = tuple[Float[Array, "*b p c"], Bool[Array, "*b p"]]


def single(
    x: Float[Array, "*b t d"], valid: Bool[Array, "*b t"], width: int
) -> Grouped:
    """Every token by itself: words, where the tokenizer makes words."""
    del width
    return x, valid


def ngram(x: Float[Array, "*b t d"], valid: Bool[Array, "*b t"], width: int) -> Grouped:
    """Each token with its neighbours, `width` side by side, zeros beyond the ends.

    With the projection that follows it is a convolution. It needs no parser, and
    stands the text of speech recognition.
    """
    before = (width - 1) // 2
    edge = [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, [*edge, (before, width - 1 - before), (0, 0)])
    t = x.shape[-2]
    parts = [
        jax.lax.slice_in_dim(padded, k, k + t, axis=x.ndim - 2) for k in range(width)
    ]
    return jnp.concatenate(parts, axis=-1), valid


def chunk(x: Float[Array, "*b t d"], valid: Bool[Array, "*b t"], width: int) -> Grouped:
    """The mean of every `width` tokens on end; the last may be of fewer."""
    spare = -x.shape[-2] % width
    edge = [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, [*edge, (0, spare), (0, 0)])
    valid = jnp.pad(valid, [*edge, (0, spare)])
    groups = x.shape[-2] // width
    x = x.reshape(*x.shape[:-2], groups, width, x.shape[-1])
    valid = valid.reshape(*valid.shape[:-1], groups, width)
    count = jnp.maximum(valid.sum(-1), 1)[..., None]
    return x.sum(-2) / count, valid.any(-1)


KINDS: dict[str, Callable[..., Grouped]] = {
    "token": single,
    "ngram": ngram,
    "chunk": chunk,
}


@dataclasses.dataclass(frozen=True)
class Phrases:
    """Tokens [*b, t, d], zero where not valid, to phrases [*b, p, c].

    Attributes:
      kind: a name in `KINDS`.
      width: tokens per phrase; `token` has none.

    Raises:
      UserError: an unknown kind, or no width.
    """

    kind: str = "ngram"
    width: int = 3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f"fine_grained: phrases.kind {self.kind!r} is unknown; expected one of "
                f"{sorted(KINDS)}{nearest(self.kind, KINDS)}"
            )
        if not isinstance(self.width, int) or self.width < 1:
            raise UserError(
                f"fine_grained: phrases.width must be at least 1, got {self.width!r}"
            )

    def channels(self, width: int) -> int:
        """c from d."""
        return width * self.width if self.kind == "ngram" else width

    def __call__(
        self, x: Float[Array, "*b t d"], valid: Bool[Array, "*b t"]
    ) -> Grouped:
        return KINDS[self.kind](x, valid, self.width)
