"""Similarity of two sets of tokens, by what corresponds in them.

The idea is that of FG-MMSSL (Wang and Karout, BMVC 2021, arXiv 2112.12182): compare
parts instead of wholes, and let attention take weight from pairs of parts that do not
correspond. Only the paper's abstract was at hand; the formulas are a reconstruction.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmssl.objectives.pairwise import MASKED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of one side; text has an axis of candidates after the batch's.

    Attributes:
      vectors: L2-normalised, zero where not valid.
      valid: 1 or 0: float32 as all, so that they can go round a ring of devices.
      seconds: when each token is; only a window reads it.
    """

    vectors: Float[Array, "*b t e"]
    valid: Float[Array, "*b t"]
    seconds: Float[Array, "*b t"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Query:
    """The left side, with what turns a similarity into a logit, row by row.

    Attributes:
      tokens: without candidates.
      scale: times the similarity.
      bias: plus this.
      null: logit of attending to nothing; `MASKED` = that is no choice.
    """

    tokens: Tokens
    scale: Float[Array, "*b"]
    bias: Float[Array, "*b"]
    null: Float[Array, "*b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matched:
    """What corresponds in two sets of tokens.

    Attributes:
      similarity: in [-1, 1]; 0 where nothing can be compared.
      cosines: of every pair of tokens.
      weights: of every pair; the sum of weights * cosines is the similarity. They add
        up to 1, less what went to nothing.
      nothing: mean share that the tokens of both sides gave to nothing.
    """

    similarity: Float[Array, "*b"]
    cosines: Float[Array, "*b x y"]
    weights: Float[Array, "*b x y"]
    nothing: Float[Array, "*b"]


@dataclasses.dataclass(frozen=True)
class Tokenwise:
    """A `pairwise.Similarity` of a `Query` with `Tokens`.

    Every token of y attends to those of x, a[x|y] = softmax_x(s[x,y] / attention), and
    finds s[y] = sum_x a[x|y] s[x,y]; y's tokens vote with w[y] = softmax_y(s[y] /
    vote). The same is done with the sides swapped, and the mean taken.

    Attributes:
      attention: temperature of a; large = the mean over tokens.
      vote: temperature of w; likewise.
      window: seconds that two tokens may lie apart; None = any.
    """

    attention: float
    vote: float
    window: float | None = None

    def __call__(self, x: Query, y: Tokens) -> Float[Array, "i n j"]:
        """Logits of all rows of x with all candidates of all rows of y."""
        candidates = jax.vmap(jax.vmap(self._logit, (None, 0)), (None, 0))
        return jax.vmap(candidates, (0, None))(x, y).swapaxes(1, 2)

    def own(self, x: Query, y: Tokens) -> Float[Array, "b n"]:
        """Logits of each row of x with its own candidates."""
        return jax.vmap(jax.vmap(self._logit, (None, 0)))(x, y)

    def matched(self, x: Query, y: Tokens) -> Matched:
        """Each row of x with its own candidates; leaves lead with [b, n]."""
        return jax.vmap(jax.vmap(self.match, (None, 0)))(x, y)

    def match(self, x: Query, y: Tokens) -> Matched:
        """One row with one candidate."""
        own = x.tokens
        cosines = jnp.einsum(  # in full precision, as pairwise.dots
            "xe,ye->xy", own.vectors, y.vectors, precision=jax.lax.Precision.HIGHEST
        )
        allowed = (own.valid[:, None] > 0) & (y.valid[None, :] > 0)
        if self.window is not None:
            apart = jnp.abs(own.seconds[:, None] - y.seconds[None, :])
            allowed &= apart <= self.window
        to_x, nothing_x = self._attend(cosines, allowed, x.null)
        to_y, nothing_y = self._attend(cosines.T, allowed.T, x.null)
        weights = 0.5 * (to_x + to_y.T)
        return Matched(
            similarity=(weights * cosines).sum(),
            cosines=cosines,
            weights=weights,
            nothing=0.5 * (nothing_x + nothing_y),
        )

    def _logit(self, x: Query, y: Tokens) -> Float[Array, ""]:
        return x.scale * self.match(x, y).similarity + x.bias

    def _attend(
        self,
        cosines: Float[Array, "n p"],
        allowed: Bool[Array, "n p"],
        null: Float[Array, ""],
    ) -> tuple[Float[Array, "n p"], Float[Array, ""]]:
        """a[n|p] w[p], and the mean share of nothing, over the p that meet any n."""
        logits = jnp.where(allowed, cosines / self.attention, MASKED)
        answered = allowed.any(0)
        some = jax.nn.logsumexp(logits, axis=0)
        a = jnp.where(allowed, jnp.exp(logits - some[None]), 0.0)
        # nothing / (nothing + some)
        lost = jnp.where(answered, jax.nn.sigmoid(null - some), 0.0)
        found = (a * cosines).sum(0)
        w = jax.nn.softmax(jnp.where(answered, found / self.vote, MASKED))
        weights = a * jnp.where(answered, w * (1.0 - lost), 0.0)[None]
        return weights, lost.sum() / jnp.maximum(answered.sum(), 1)
