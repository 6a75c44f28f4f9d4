"""The values that flow between rooms, and the protocols of the replaceable parts.

Shape letters: b batch, n text candidates, t tokens, d width, e embedding, k losses,
m modality, c channels, r position axes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

Params = Any
"""A pytree of arrays: nested dicts, no boxes."""

Metrics = dict[str, jax.Array]
"""Flat names to scalars, for example `loss/va`."""


@dataclasses.dataclass(frozen=True)
class ModalitySpec:
    """What the tokens of one modality look like once tokenized, without DropToken.

    Attributes:
      grid: tokens per position axis, e.g. (8, 14, 14) for video, (1200,) for audio,
        (16,) for text; their product is the token count t.
      channels: width c of a continuous token; 0 for token ids.
      vocab: number of token ids; 0 for continuous tokens.
      candidates: text candidates n per sample; 0 where the modality has no such axis.
    """

    grid: tuple[int, ...]
    channels: int = 0
    vocab: int = 0
    candidates: int = 0

    @property
    def tokens(self) -> int:
        count = 1
        for size in self.grid:
            count *= size
        return count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RawBatch:
    """Media as it crosses from host to device, compact: uint8 pixels, ids, samples.

    Attributes:
      media: `video` [b, f, h, w, 3] uint8; `audio` [b, s] float32 or int16;
        `text` [b, n, t] int32, 0 = padding.
      present: per modality [b] bool; where False the media row is zeros.
      example_id: [b] stable hash of the record's id.
      colour: what `models.colour.jitter` does to the video; None: nothing.
    """

    media: Mapping[str, jax.Array]
    present: Mapping[str, Bool[Array, "b"]]
    example_id: UInt32[Array, "b"]
    colour: Float[Array, "b 4"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModalityBatch:
    """Tokens of one modality, possibly with dropped ones gone.

    Attributes:
      tokens: [b, t, c] float, or [b, n, t] int32 for text.
      positions: grid coordinates of each token, [b, t, r] (text [b, n, t, r]) int32.
      valid: [b, t] (text [b, n, t]); False for padding.
      present: [b]; False where the sample lacks the modality.
    """

    tokens: jax.Array
    positions: jax.Array
    valid: jax.Array
    present: Bool[Array, "b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What the encoder reads. Row i of every leaf belongs to sample i."""

    modalities: Mapping[str, ModalityBatch]
    example_id: UInt32[Array, "b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """What objectives read, and where cotangents are cut.

    Attributes:
      tokens: per modality [b, t, d] (text [b, n, t, d]), aggregation token excluded.
      pooled: per modality [b, d] (text [b, n, d]).
    """

    tokens: Mapping[str, jax.Array]
    pooled: Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObjectiveOutput:
    """Losses of one objective on one batch.

    Attributes:
      losses: name to scalar; each is one row of the per-sample Gramian.
      per_sample: loss name to [b], zero where undefined; their meaning is the
        objective's, for analysis only.
      embeddings: `modality/space` to [b, e], L2-normalised; for health metrics.
      metrics: name to scalar.
      state: the objective's next state (batch statistics, queues).
    """

    losses: Mapping[str, Float[Array, ""]]
    per_sample: Mapping[str, Float[Array, "b"]]
    embeddings: Mapping[str, jax.Array]
    metrics: Mapping[str, Float[Array, ""]]
    state: Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameterised operation, whole in itself.

    Attributes:
      kind: the form of its products: "dense" (kernel [c, d] and perhaps bias [d] on
        [..., c]), "lookup" (a table [v, d] read at ids [...]), "small" (parameters few
        enough to hold their gradients per sample) or "frozen" (no gradient).
      apply: (the leaf's parameters, x) -> y, row by row.
      stacked: parameters, input and output lead with a layer axis.
    """

    kind: str
    apply: Callable[[Params, jax.Array], jax.Array]
    stacked: bool


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A forward whose leaves can be differentiated one by one.

    Attributes:
      encoded: what the forward returned.
      inputs: leaf path to its input, rows leading (after the layer axis, if stacked).
      pullback: cotangent of `encoded` -> (leaf path to the cotangent of its output,
        gradient of all parameters). What the caller does not use is never computed.
      leaves: by path, as in the parameters' names.
    """

    encoded: Any
    inputs: Mapping[str, jax.Array]
    pullback: Callable[[Any], tuple[Mapping[str, jax.Array], Params]]
    leaves: Mapping[str, Leaf]


class PrepareFn(Protocol):
    """Raw media to tokens. `key` None = evaluation: no DropToken."""

    def __call__(
        self, raw: RawBatch, *, key: Key[Array, ""] | None = None
    ) -> Batch: ...


class EncodeFn(Protocol):
    """Row-wise: row i of the result depends on row i of the batch and on keys[i]."""

    def __call__(
        self, params: Params, batch: Batch, *, keys: Key[Array, "b"] | None = None
    ) -> Encoded: ...


class RecordFn(Protocol):
    """An `EncodeFn` that keeps what per-sample gradients need.

    `select` takes the part of `Encoded` that anybody reads.
    """

    def __call__(
        self,
        params: Params,
        batch: Batch,
        *,
        keys: Key[Array, "b"] | None = None,
        select: Callable[[Encoded], Any],
    ) -> Recorded: ...


class Objective(Protocol):
    """Couples samples. Holds no arrays: parameters and state are passed in."""

    @property
    def requires(self) -> frozenset[str]:
        """Modalities the objective reads."""
        ...

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads `Encoded.tokens`; False spares their backward."""
        ...

    def init(
        self, key: Key[Array, ""], widths: Mapping[str, int]
    ) -> tuple[Params, Any]:
        """Head parameters and state, from each modality's pooled width d."""
        ...

    def __call__(
        self,
        head: Params,
        state: Any,
        encoded: Encoded,
        batch: Batch,
        *,
        key: Key[Array, ""],
        step: Int[Array, ""],
    ) -> ObjectiveOutput: ...

    def projections(self, head: Params) -> Params:
        """The part of the parameters that projects; an export takes no other."""
        ...

    def project(
        self, head: Params, state: Any, pooled: Mapping[str, jax.Array]
    ) -> dict[str, dict[str, jax.Array]]:
        """space -> modality -> [b, (n,) e], normalised, by evaluation statistics."""
        ...
