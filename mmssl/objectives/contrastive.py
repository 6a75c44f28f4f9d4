"""Contrastive losses between two modalities of one batch, with missing parts.

Follows VATT (Akbari et al., NeurIPS 2021, arXiv 2104.11178): NCE for video-audio,
MIL-NCE for video-text with several text candidates per clip.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mmssl.errors import UserError, nearest
from mmssl.objectives import pairs as pairs_lib
from mmssl.types import Batch, Encoded, ObjectiveOutput, Params

# Stands in for minus infinity: exp() of it is exactly 0 beside any real logit, and
# sums and differences of a few stay finite, so rows with nothing valid have no NaN.
_MASKED = -1e30


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairTerms:
    """What both forms of the loss are made of, in float32.

    Attributes:
      positive: log sum over l of exp s(x_i, y_i^l).
      x_to_y: log sum over j, l of exp s(x_i, y_j^l).
      y_to_x: log sum over j, l of exp s(x_j, y_i^l).
      valid: x_i and at least one y_i^l are there; the rest is finite but
        meaningless where False.
      x_hit: the best y for x_i is one of its own, strictly.
      y_hit: the best x for the candidates of sample i is x_i, strictly.
    """

    positive: Float[Array, "b"]
    x_to_y: Float[Array, "b"]
    y_to_x: Float[Array, "b"]
    valid: Bool[Array, "b"]
    x_hit: Bool[Array, "b"]
    y_hit: Bool[Array, "b"]


def pair_terms(
    x: Float[Array, "b e"],
    y: Float[Array, "b n e"],
    *,
    x_mask: Bool[Array, "b"],
    y_mask: Bool[Array, "b n"],
    example_id: UInt32[Array, "b"],
    temperature: float,
) -> PairTerms:
    """Reduces the [b, b, n] similarities s = x.y / temperature of one pair.

    Missing rows and candidates take part in no sum, whatever their values are, and
    get a gradient of exactly zero. A candidate of a sample without x still serves as
    a negative of the others, and likewise the other way round. Two rows with the same
    example_id are views of one sample: neither is a negative of the other.
    """
    x = jnp.where(x_mask[:, None], x.astype(jnp.float32), 0.0)
    y = jnp.where(y_mask[:, :, None], y.astype(jnp.float32), 0.0)
    # HIGHEST: accelerators would otherwise multiply in bfloat16 or TF32, and division
    # by a small temperature turns that error into whole percents of the loss.
    s = jnp.einsum("ie,jne->ijn", x, y, precision=jax.lax.Precision.HIGHEST)
    s = s / temperature

    own = jnp.eye(x.shape[0], dtype=bool)
    counted = own | (example_id[:, None] != example_id[None, :])
    allowed = x_mask[:, None, None] & y_mask[None, :, :] & counted[:, :, None]
    s = jnp.where(allowed, s, _MASKED)
    # The diagonal by masked sum rather than by gather: row-local under sharding.
    diagonal = jnp.where(own[:, :, None], s, 0.0).sum(1)

    fixed = jax.lax.stop_gradient(s)
    others = jnp.where(own[:, :, None], _MASKED, fixed).max(2)
    best_own = jax.lax.stop_gradient(diagonal).max(1)
    return PairTerms(
        positive=jax.nn.logsumexp(diagonal, axis=1),
        x_to_y=jax.nn.logsumexp(s, axis=(1, 2)),
        y_to_x=jax.nn.logsumexp(s, axis=(0, 2)),
        valid=x_mask & y_mask.any(1),
        x_hit=best_own > others.max(1),
        y_hit=best_own > others.max(0),
    )


def _asymmetric(terms: PairTerms) -> Float[Array, "b"]:
    # Differences first: near the floor the sums equal the positives but for rounding.
    loss = jnp.logaddexp(terms.x_to_y - terms.positive, terms.y_to_x - terms.positive)
    return jnp.where(terms.valid, loss, 0.0)


def _symmetric(terms: PairTerms) -> Float[Array, "b"]:
    loss = 0.5 * ((terms.x_to_y - terms.positive) + (terms.y_to_x - terms.positive))
    return jnp.where(terms.valid, loss, 0.0)


def asymmetric_nce(
    x: Float[Array, "b e"],
    y: Float[Array, "b n e"],
    *,
    x_mask: Bool[Array, "b"],
    y_mask: Bool[Array, "b n"],
    example_id: UInt32[Array, "b"],
    temperature: float,
) -> tuple[Float[Array, "b"], Bool[Array, "b"]]:
    """The loss of the official VATT code (`AsymmetricNCE`), in nats.

    loss_i = log( sum_jl e^s(x_i, y_j^l) + sum_jl e^s(x_j, y_i^l) ) - log sum_l
    e^s(x_i, y_i^l). The positives are counted in both sums: the floor is log 2, chance
    level is log(2b), whatever n is.

    Args:
      x: L2-normalised embeddings.
      y: L2-normalised embeddings of n candidates per sample.
      x_mask: False where the sample lacks x.
      y_mask: False for a missing candidate.
      example_id: rows with equal ids are not each other's negatives.
      temperature: divides the similarities.

    Returns:
      Loss per sample, zero where not valid, and which samples are valid.
    """
    terms = pair_terms(
        x,
        y,
        x_mask=x_mask,
        y_mask=y_mask,
        example_id=example_id,
        temperature=temperature,
    )
    return _asymmetric(terms), terms.valid


def symmetric_nce(
    x: Float[Array, "b e"],
    y: Float[Array, "b n e"],
    *,
    x_mask: Bool[Array, "b"],
    y_mask: Bool[Array, "b n"],
    example_id: UInt32[Array, "b"],
    temperature: float,
) -> tuple[Float[Array, "b"], Bool[Array, "b"]]:
    """The textbook loss in nats: InfoNCE in both directions, averaged.

    With n candidates the numerator is their sum (MIL-NCE, Miech et al., CVPR 2020).
    The floor is 0, chance level is log b, whatever n is. Arguments and results are as
    in `asymmetric_nce`.
    """
    terms = pair_terms(
        x,
        y,
        x_mask=x_mask,
        y_mask=y_mask,
        example_id=example_id,
        temperature=temperature,
    )
    return _symmetric(terms), terms.valid


FORMS: dict[str, Callable[[PairTerms], jax.Array]] = {
    "official": _asymmetric,
    "textbook": _symmetric,
}


def masked_mean(values: Float[Array, "b"], valid: Bool[Array, "b"]) -> jax.Array:
    """Mean over valid entries; 0 with gradient 0 if there are none."""
    weights = valid.astype(jnp.float32)
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)


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
      form: "official" (`asymmetric_nce`) or "textbook" (`symmetric_nce`).
      temperature: divides cosine similarities.

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

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(
                f"contrastive: form {self.form!r} is unknown; expected one of "
                f"{sorted(FORMS)}{nearest(self.form, FORMS)}"
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
        missing = sorted(self.requires - set(widths))
        if missing:
            raise UserError(
                f"contrastive: the pairs {[pair.name for pair in self.terms()]} need "
                f"{missing}, but the model has only {sorted(widths)}; choose `pairs` "
                "of modalities the model has"
            )
        return self.heads.init(key, widths)

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
            head, state, encoded.pooled, masks, train=True
        )
        losses, per_sample, embeddings, metrics = {}, {}, {}, {}
        for pair in self.terms():
            views = {}
            for name in pair.modalities:
                mask = masks[name]
                vectors = jnp.where(mask[..., None], spaces[pair.space][name], 0.0)
                views[name] = normalise(vectors), mask
                embeddings[f"{name}/{pair.space}"] = _first_valid(*views[name])
            # The side with a candidate axis, if any, is y.
            x_name, y_name = sorted(pair.modalities, key=lambda m: views[m][0].ndim)
            (x, x_mask), (y, y_mask) = views[x_name], views[y_name]
            if x.ndim == 3:
                raise ValueError(f"pair {pair.name!r}: both sides have candidates")
            if y.ndim == 2:
                y, y_mask = y[:, None], y_mask[:, None]
            terms = pair_terms(
                x,
                y,
                x_mask=x_mask,
                y_mask=y_mask,
                example_id=batch.example_id,
                temperature=self.temperature,
            )
            per_sample[pair.name] = FORMS[self.form](terms)
            losses[pair.name] = masked_mean(per_sample[pair.name], terms.valid)
            for hit, way in (
                (terms.x_hit, f"{x_name}_to_{y_name}"),
                (terms.y_hit, f"{y_name}_to_{x_name}"),
            ):
                metrics[f"top1/{pair.name}/{way}"] = masked_mean(
                    hit.astype(jnp.float32), terms.valid
                )
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
        spaces, _ = self.heads.apply(head, state, pooled, everything, train=False)
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


def _first_valid(vectors: jax.Array, mask: jax.Array) -> jax.Array:
    if vectors.ndim == 2:
        return vectors
    first = jnp.argmax(mask, axis=1)
    return jnp.take_along_axis(vectors, first[:, None, None], axis=1)[:, 0]
