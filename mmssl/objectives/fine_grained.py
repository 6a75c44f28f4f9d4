"""Contrastive losses between the tokens of two modalities.

Reconstructs FG-MMSSL (Wang and Karout, BMVC 2021, arXiv 2112.12182), of which only the
abstract was at hand: similarity of parts, and attention that takes weight from pairs
of parts that do not correspond. See docs/fine-grained.md for what is a choice here.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmssl.errors import UserError, nearest
from mmssl.objectives import losses as losses_lib
from mmssl.objectives import pairs as pairs_lib
from mmssl.objectives import pairwise
from mmssl.objectives.contrastive import first_valid, normalise
from mmssl.objectives.phrases import Phrases
from mmssl.objectives.tokenwise import Matched, Query, Tokens, Tokenwise
from mmssl.types import Batch, Encoded, ObjectiveOutput, Params

TOKENS = "tokens"
"""The form whose positives are token pairs; the others are those of `losses.FORMS`."""

MODALITIES = ("video", "audio", "text")
COLDEST = 0.01
"""Least temperature that is learned."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One loss.

    Attributes:
      name: of the loss.
      x: the modality without candidates.
      y: the other one.
      window: seconds that corresponding tokens may lie apart; None = any.
    """

    name: str
    x: str
    y: str
    window: float | None


@dataclasses.dataclass(frozen=True)
class FineGrained:
    """NCE of token-level similarities; see `tokenwise.Tokenwise` for these.

    Attributes:
      pairs: loss name -> {"modalities": (one, other), "window": seconds or None}.
      features: width of the space of each pair; a linear map per modality leads there.
      form: "tokens": every pair of tokens of a sample is a positive, weighted by how
        well it corresponds, against the similarities of other samples; or a form of
        `losses.FORMS`, on the similarities alone.
      phrases: keyword arguments of `Phrases`.
      attention: temperature of which tokens correspond.
      vote: temperature of which tokens count.
      null: first value of the learned logit (a cosine / attention) of corresponding to
        nothing; None = every token corresponds to something.
      rates: modality -> tokens per second along its first axis, for windows.
      temperature: of the loss, where learning it begins.
      bias: likewise; form "sigmoid" alone has one.
      chunk: rows of a tile: so many samples meet so many at a time, token by token.
        None = all at once.

    Raises:
      UserError: at construction, for a pair, form or value that cannot be.
    """

    # Equal values still have equal hashes; a dict cannot take part in one.
    pairs: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {
            "va": {"modalities": ("video", "audio")},
            "vt": {"modalities": ("video", "text")},
        },
        hash=False,
    )
    features: int = 256
    form: str = TOKENS
    phrases: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    attention: float = 0.1
    vote: float = 0.1
    null: float | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    temperature: float = 0.07
    bias: float = -10.0
    chunk: int | None = 16

    def __post_init__(self) -> None:
        pairs_lib.check_options(
            "fine_grained",
            form=self.form,
            forms=(TOKENS, *losses_lib.FORMS),
            chunk=self.chunk,
        )
        for name in ("features", "attention", "vote", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"fine_grained: {name} must be positive, got {getattr(self, name)}"
                )
        self.terms()
        self._phrases()

    def terms(self) -> tuple[Pair, ...]:
        """The pairs, in the order of their names."""
        found = [self._pair(name, self.pairs[name]) for name in sorted(self.pairs)]
        if not found:
            raise UserError("fine_grained: no pairs of modalities to compare")
        return tuple(found)

    def _pair(self, name: str, entry: Mapping[str, Any]) -> Pair:
        modalities, window = tuple(entry.get("modalities", ())), entry.get("window")
        known = set(entry) <= {"modalities", "window"}
        both = len(set(modalities)) == len(modalities) == 2
        if not known or not both or not set(modalities) <= set(MODALITIES):
            raise UserError(
                f"fine_grained: pair {name!r} must be {{'modalities': two of "
                f"{list(MODALITIES)}, 'window': seconds or None}}, got {dict(entry)}"
            )
        x, y = sorted(modalities, key=lambda m: (m == "text", m != modalities[0]))
        if window is not None and "text" in (x, y):
            raise UserError(
                f"fine_grained: pair {name!r} has window={window}, but the tokens of a "
                "text have no times; windows are for video and audio"
            )
        timeless = [m for m in (x, y) if not self.rates.get(m, 0) > 0]
        if window is not None and (timeless or not window > 0):
            raise UserError(
                f"fine_grained: pair {name!r} has window={window}: it must be positive "
                f"and needs the tokens per second of {x!r} and {y!r} in `rates`; got "
                f"{dict(self.rates)}"
            )
        return Pair(name, x, y, window)

    def _phrases(self) -> Phrases:
        try:
            return Phrases(**self.phrases)
        except TypeError:
            raise UserError(
                "fine_grained: phrases must be {'kind': ..., 'width': ...}, got "
                f"{dict(self.phrases)}"
            ) from None

    def channels(self, modality: str, widths: Mapping[str, int]) -> int:
        """Width of what a modality's map reads: of a token, or of a phrase."""
        width = widths[modality]
        return self._phrases().channels(width) if modality == "text" else width

    @property
    def requires(self) -> frozenset[str]:
        """Modalities the objective reads."""
        return frozenset(m for pair in self.terms() for m in (pair.x, pair.y))

    @property
    def reads_tokens(self) -> bool:
        """True."""
        return True

    def init(
        self, key: Key[Array, ""], widths: Mapping[str, int]
    ) -> tuple[Params, Any]:
        """A linear map per pair and modality, and each pair's learned scalars.

        Raises:
          UserError: the model lacks a modality the pairs need.
        """
        pairs_lib.check_widths(
            "fine_grained", sorted(self.pairs), self.requires, widths
        )
        glorot, params = jax.nn.initializers.glorot_normal(), {}
        for i, pair in enumerate(self.terms()):
            own: dict[str, Any] = {"scale": jnp.float32(-math.log(self.temperature))}
            if self.form == "sigmoid":
                own["bias"] = jnp.float32(self.bias)
            if self.null is not None:
                own["null"] = jnp.float32(self.null)
            for j, m in enumerate((pair.x, pair.y)):
                drawn = jax.random.fold_in(key, 2 * i + j)
                shape = self.channels(m, widths), self.features
                own[m] = {"kernel": glorot(drawn, shape)}
            params[pair.name] = own
        return params, {}

    def __call__(
        self,
        head: Params,
        state: Any,
        encoded: Encoded,
        batch: Batch,
        *,
        key: Key[Array, ""],
        step: Int[Array, ""],
    ) -> ObjectiveOutput:
        """One loss per pair: the mean over samples that have both sides.

        `embeddings` hold the mean of each side's vectors, of the first valid text
        candidate; `metrics` the in-batch top-1 accuracy of each direction, the
        temperature, and with `null` the share of the positives that corresponds to
        nothing.
        """
        del key, step
        form = losses_lib.FORMS["textbook" if self.form == TOKENS else self.form]
        losses, per_sample, embeddings, metrics = {}, {}, {}, {}
        for pair in self.terms():
            x, y = self._sides(pair, head[pair.name], encoded, batch)
            similarity = self._similarity(pair)
            terms = losses_lib.terms(
                similarity.own(x.vectors, y.vectors),
                x,
                y,
                reduction=form.reduction,
                chunk=self.chunk,
                similarity=similarity,
            )
            if self.form == TOKENS or self.null is not None:
                found = similarity.matched(x.vectors, y.vectors)
            each = form.loss(terms)
            if self.form == TOKENS:
                each = _token_pairs(terms, found, x.vectors.scale, y.mask)
            per_sample[pair.name] = each
            losses[pair.name] = losses_lib.masked_mean(each, terms.valid)
            if self.null is not None:
                there = x.mask[:, None] & y.mask
                nothing = losses_lib.masked_mean(found.nothing, there)
                # Else nothing would be the answer to everything.
                losses[pair.name] += jnp.maximum(nothing - 0.5, 0.0)
                metrics[f"nothing/{pair.name}"] = nothing
            metrics[f"temperature/{pair.name}"] = 1 / _scale(head[pair.name])
            metrics |= losses_lib.top1(terms, pair.name, pair.x, pair.y)
            for m, own in ((pair.x, x.vectors.tokens), (pair.y, y.vectors)):
                embeddings[f"{m}/{pair.name}"] = _mean(own)
        return ObjectiveOutput(
            losses=losses,
            per_sample=per_sample,
            embeddings=jax.lax.stop_gradient(embeddings),
            metrics=metrics,
            state=state,
        )

    def correspondence(
        self, head: Params, encoded: Encoded, batch: Batch, pair: str
    ) -> Matched:
        """What corresponds within each sample: leaves lead with [b, n].

        Its `weights` [b, n, tokens of x, tokens or phrases of y] are what a picture of
        words over frames shows.

        Raises:
          UserError: no such pair.
        """
        found = {own.name: own for own in self.terms()}
        if pair not in found:
            raise UserError(
                f"fine_grained: no pair {pair!r}, only {sorted(found)}"
                f"{nearest(pair, found)}"
            )
        x, y = self._sides(found[pair], head[pair], encoded, batch)
        return self._similarity(found[pair]).matched(x.vectors, y.vectors)

    def projections(self, head: Params) -> Params:
        """Nothing: tokens are compared, not one vector per sample."""
        del head
        return {}

    def project(
        self, head: Params, state: Any, pooled: Mapping[str, jax.Array]
    ) -> dict[str, dict[str, jax.Array]]:
        """Nothing; retrieval and exports need the objective `contrastive` beside it."""
        del head, state, pooled
        return {}

    def _similarity(self, pair: Pair) -> Tokenwise:
        return Tokenwise(self.attention, self.vote, pair.window)

    def _sides(
        self, pair: Pair, own: Params, encoded: Encoded, batch: Batch
    ) -> tuple[pairwise.Rows, pairwise.Rows]:
        x, x_mask = self._tokens(pair.x, own, encoded, batch)
        y, y_mask = self._tokens(pair.y, own, encoded, batch)
        if y_mask.ndim == 1:
            y, y_mask = jax.tree.map(lambda a: a[:, None], (y, y_mask))

        def by_row(value: Any) -> Float[Array, "b"]:
            return jnp.broadcast_to(jnp.asarray(value, jnp.float32), x_mask.shape)

        query = Query(
            tokens=x,
            scale=by_row(_scale(own)),
            bias=by_row(own.get("bias", 0.0)),
            null=by_row(own.get("null", pairwise.MASKED)),
        )
        return (
            pairwise.Rows(query, x_mask, batch.example_id),
            pairwise.Rows(y, y_mask, batch.example_id),
        )

    def _tokens(
        self, modality: str, own: Params, encoded: Encoded, batch: Batch
    ) -> tuple[Tokens, jax.Array]:
        """Projected tokens, and which samples, or candidates, have any."""
        part = batch.modalities[modality]
        there = part.present.reshape(-1, *[1] * (part.valid.ndim - 1))
        valid = part.valid & there
        vectors = encoded.tokens[modality].astype(jnp.float32)
        vectors = jnp.where(valid[..., None], vectors, 0.0)
        rate = self.rates.get(modality, 1.0)
        seconds = (part.positions[..., 0].astype(jnp.float32) + 0.5) / rate
        if modality == "text":
            vectors, valid = self._phrases()(vectors, valid)
            seconds = jnp.zeros(valid.shape)
        vectors = normalise(vectors @ own[modality]["kernel"])
        vectors = jnp.where(valid[..., None], vectors, 0.0)
        tokens = Tokens(vectors, valid.astype(jnp.float32), seconds)
        return tokens, valid.any(-1)


def _scale(own: Params) -> Float[Array, ""]:
    return jnp.minimum(jnp.exp(own["scale"]), 1 / COLDEST)


def _token_pairs(
    terms: losses_lib.PairTerms,
    found: Matched,
    scale: Float[Array, "b"],
    y_mask: jax.Array,
) -> Float[Array, "b"]:
    """InfoNCE of each pair of tokens, averaged by how well it corresponds.

    loss_i = 1/2 sum_kxy omega_i[k,x,y] (softplus(x_others - s) + softplus(y_others -
    s)), s the logit of the pair (x, y) of sample i and its candidate k. omega are the
    weights of the similarity, times the softmax over the candidates' logits. They have
    no gradient: else the loss would fall by moving weight to what is easy.
    """
    logits = scale[:, None, None, None] * found.cosines
    of_candidate = jax.nn.softmax(
        jnp.where(y_mask, scale[:, None] * found.similarity, pairwise.MASKED), axis=1
    )
    omega = jax.lax.stop_gradient(of_candidate[..., None, None] * found.weights)
    ways = [
        jax.nn.softplus(others[:, None, None, None] - logits)
        for others in (terms.x_others, terms.y_others)
    ]
    each = 0.5 * (omega * sum(ways)).sum((1, 2, 3))
    return jnp.where(terms.valid, each, 0.0)


def _mean(tokens: Tokens) -> Float[Array, "b e"]:
    """The mean vector, of unit length; of the first candidate that has any."""
    total = tokens.vectors.sum(-2)
    return normalise(first_valid(total, tokens.valid.any(-1)))
