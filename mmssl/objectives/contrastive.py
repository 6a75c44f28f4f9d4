"""Contrastive losses between two modalities of one batch, with missing parts.

Follows VATT (Akbari et al., NeurIPS 2021, arXiv 2104.11178): NCE for video-audio,
MIL-NCE for video-text with several text candidates per clip.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmssl.errors import UserError, nearest
from mmssl.objectives import losses as losses_lib
from mmssl.objectives import pairs as pairs_lib
from mmssl.types import Batch, Encoded, ObjectiveOutput, Params

FORMS = losses_lib.FORMS
masked_mean = losses_lib.masked_mean
LOGITS = "logits"
"""Parameters of learned temperatures and biases, beside those of the heads."""


class Heads(Protocol):
    """Projections into common spaces; may keep batch statistics in their state."""

    @property
    def spaces(self) -> Mapping[str, tuple[str, ...]]:
        """Space name -> the modalities projected into it."""
        ...

    def init(
        self, key: Key[Array, ""], widths: Mapping[str, int]
    ) -> tuple[Params, Any]: ...

    def apply(
        self,
        params: Params,
        state: Any,
        pooled: Mapping[str, jax.Array],
        present: Mapping[str, jax.Array],
        *,
        train: bool,
    ) -> tuple[Mapping[str, Mapping[str, jax.Array]], Any]:
        """space -> modality -> [b, (n,) e], not normalised; and the next state."""
        ...


def normalise(x: Float[Array, "*rows e"]) -> Float[Array, "*rows e"]:
    """To unit L2 norm in float32; a zero row stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


@dataclasses.dataclass(frozen=True)
class CrossModalContrast:
    """NCE between pairs of modalities in common spaces.

    Attributes:
      heads: the projections; their parameters and batch statistics are the
        objective's.
      pairs: loss name -> {"modalities": (one, other), "space": name}. None, as VATT:
        video against each other modality, in the smallest space that holds both,
        named by initials (`va`, `vt`); heads without video: every pair (`at`).
      form: a name in `losses.FORMS`: "official" (`asymmetric_nce`), "textbook"
        (`symmetric_nce`) or "sigmoid" (`sigmoid_loss`).
      temperature: divides cosine similarities. Form "sigmoid" learns it, per pair,
        from this value on.
      bias: added to the logits of form "sigmoid", learned likewise; the paper's value.
      chunk: rows of a tile: so many samples meet so many at a time, and memory does not
        grow with the square of the batch. None = all logits at once.

    Raises:
      UserError: at construction, for a pair, space or form that does not exist.
    """

    heads: Heads
    # Equal values still have equal hashes; a dict cannot take part in one.
    pairs: Mapping[str, Mapping[str, Any]] | None = dataclasses.field(
        default=None, hash=False
    )
    form: str = "official"
    temperature: float = 0.07
    bias: float = -10.0
    chunk: int | None = 512

    def __post_init__(self) -> None:
        pairs_lib.check_options(
            "contrastive", form=self.form, forms=FORMS, chunk=self.chunk
        )
        if not self.temperature > 0:
            raise UserError(
                f"contrastive: temperature must be positive, got {self.temperature}"
            )
        self.terms()

    def terms(self) -> tuple[pairs_lib.Pair, ...]:
        """The pairs, checked against the heads, in the order of their names."""
        spaces = self.heads.spaces
        if self.pairs is None:
            found = pairs_lib.default_pairs(spaces)
        else:
            found = [
                pairs_lib.read_pair(name, entry) for name, entry in self.pairs.items()
            ]
        if not found:
            raise UserError("contrastive: no pairs of modalities to compare")
        for pair in found:
            if pair.space not in spaces:
                raise UserError(
                    f"contrastive: pair {pair.name!r} uses space {pair.space!r}; the "
                    f"heads have {sorted(spaces)}{nearest(pair.space, spaces)}"
                )
            for modality in pair.modalities:
                if modality not in spaces[pair.space]:
                    raise UserError(
                        f"contrastive: pair {pair.name!r} uses modality {modality!r}; "
                        f"space {pair.space!r} has {sorted(spaces[pair.space])}"
                    )
        return tuple(sorted(found, key=lambda pair: pair.name))

    @property
    def requires(self) -> frozenset[str]:
        """Modalities the objective reads."""
        return frozenset(m for pair in self.terms() for m in pair.modalities)

    @property
    def reads_tokens(self) -> bool:
        """False: pooled features only."""
        return False

    def init(
        self, key: Key[Array, ""], widths: Mapping[str, int]
    ) -> tuple[Params, Any]:
        """Head parameters and state, from each modality's pooled width.

        Raises:
          UserError: the model lacks a modality the pairs need.
        """
        names = [pair.name for pair in self.terms()]
        pairs_lib.check_widths("contrastive", names, self.requires, widths)
        params, state = self.heads.init(key, widths)
        if not FORMS[self.form].learned:
            return params, state
        first = {"scale": -math.log(self.temperature), "bias": self.bias}
        logits = {pair.name: jax.tree.map(jnp.float32, first) for pair in self.terms()}
        return {**params, LOGITS: logits}, state

    def projections(self, head: Params) -> Params:
        """The part of the parameters that belongs to the heads."""
        return {name: part for name, part in head.items() if name != LOGITS}

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

        A batch without any such sample gives the loss 0. `embeddings` hold the first
        valid text candidate and zeros for absent rows; `metrics` hold the in-batch
        top-1 accuracy of each direction, `top1/<pair>/<from>_to_<to>` (ties lose).
        """
        del key, step
        masks = {name: present_mask(batch, name) for name in encoded.pooled}
        spaces, new_state = self.heads.apply(
            self.projections(head), state, encoded.pooled, masks, train=True
        )
        form = FORMS[self.form]
        losses, per_sample, embeddings, metrics = {}, {}, {}, {}
        for pair in self.terms():
            views = {}
            for name in pair.modalities:
                mask = masks[name]
                vectors = jnp.where(mask[..., None], spaces[pair.space][name], 0.0)
                views[name] = normalise(vectors), mask
                embeddings[f"{name}/{pair.space}"] = first_valid(*views[name])
            # The side with a candidate axis, if any, is y.
            x_name, y_name = sorted(pair.modalities, key=lambda m: views[m][0].ndim)
            (x, x_mask), (y, y_mask) = views[x_name], views[y_name]
            if x.ndim == 3:
                raise ValueError(f"pair {pair.name!r}: both sides have candidates")
            if y.ndim == 2:
                y, y_mask = y[:, None], y_mask[:, None]
            scale: Any = {"temperature": self.temperature}
            if form.learned:
                own = head[LOGITS][pair.name]
                scale = {"temperature": jnp.exp(-own["scale"]), "bias": own["bias"]}
            terms = losses_lib.pair_terms(
                x,
                y,
                x_mask=x_mask,
                y_mask=y_mask,
                example_id=batch.example_id,
                reduction=form.reduction,
                chunk=self.chunk,
                **scale,
            )
            per_sample[pair.name] = form.loss(terms)
            losses[pair.name] = masked_mean(per_sample[pair.name], terms.valid)
            metrics |= losses_lib.top1(terms, pair.name, x_name, y_name)
        return ObjectiveOutput(
            losses=losses,
            per_sample=per_sample,
            embeddings=jax.lax.stop_gradient(embeddings),
            metrics=metrics,
            state=new_state,
        )

    def project(
        self, head: Params, state: Any, pooled: Mapping[str, jax.Array]
    ) -> dict[str, dict[str, jax.Array]]:
        """space -> modality -> [b, (n,) e], L2-normalised, with running statistics."""
        everything = {m: jnp.ones(x.shape[:-1], bool) for m, x in pooled.items()}
        spaces, _ = self.heads.apply(
            self.projections(head), state, pooled, everything, train=False
        )
        return {
            space: {m: normalise(x) for m, x in members.items()}
            for space, members in spaces.items()
        }


def present_mask(batch: Batch, modality: str) -> jax.Array:
    """[b], or [b, n] for text: a candidate is there if it has any valid token."""
    part = batch.modalities[modality]
    if part.valid.ndim == 3:
        return part.valid.any(-1) & part.present[:, None]
    return part.present


def first_valid(vectors: jax.Array, mask: jax.Array) -> jax.Array:
    """[b, e] of [b, (n,) e]: the first candidate that is there."""
    if vectors.ndim == 2:
        return vectors
    first = jnp.argmax(mask, axis=1)
    return jnp.take_along_axis(vectors, first[:, None, None], axis=1)[:, 0]
