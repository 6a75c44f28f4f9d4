"""Per-sample scores that might tell a swapped sample, and how well they do.

A score is oriented so that higher means more suspicious. `Scorer` computes all of them
with one set of weights, over every training clip and without augmentation.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from misalignment_data import Clips
from sklearn import linear_model, model_selection, pipeline, preprocessing

from mmssl import trees
from mmssl.gradients import ENGINES, Tower, cotangents, engines, statistics
from mmssl.types import Batch, Encoded, Objective, Params, RawBatch

Scores = dict[str, np.ndarray]
"""Name -> [n], higher = more suspicious."""

CHUNK = 8
"""Clips whose gradients are held at once."""

ENGINE_GROUPS = (
    ("exact", 1),
    ("exact", 8),
    ("exact", 64),
    ("subset", 1),
    ("last_k", 1),
    ("embedding", 1),
)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores higher than a negative, ties half; NaN without."""
    positive = np.asarray(positive, bool)
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return float("nan")
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1, ties share the mean
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def ranks(score: np.ndarray) -> np.ndarray:
    """Of each value among all, in [0, 1); of equal ones the first comes first."""
    return np.argsort(np.argsort(score, kind="stable"), kind="stable") / len(score)


def ceiling(scores: Scores, positive: np.ndarray) -> float:
    """AUROC of a logistic regression on the ranks of all scores, told the truth.

    Fitted on four fifths of the clips and judged on the rest, in turn: what a linear
    mix of these scores could do that knew which one to trust.
    """
    columns = np.stack([ranks(x) for x in scores.values()], 1)
    mix = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=0.3, max_iter=500),
    )
    found = model_selection.cross_val_predict(
        mix, columns, positive, cv=5, method="predict_proba"
    )
    return auroc(np.asarray(found)[:, 1], positive)


def towers(model: Any) -> dict[str, Tower]:
    """The model's encoder by modality, pooled features only, on rows of a `Batch`."""

    def tower(name: str) -> Tower:
        def only(batch: Batch) -> Batch:
            return dataclasses.replace(batch, modalities={name: batch.modalities[name]})

        return Tower(
            lambda params, batch: model.encode(params, only(batch)).pooled[name],
            lambda params, batch: model.record(
                params, only(batch), select=lambda out: out.pooled[name]
            ),
        )

    return {name: tower(name) for name in model.specs}


class Scorer:
    """All scores of a set of clips, from their gradients one by one.

    Args:
      model: the encoder.
      objective: the one objective, unwrapped.
      batch: clips that are compared at once.
      engines: (name, group) whose cosines are scores as well, under their names.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        batch: int,
        engines: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._model = model
        self._objective = objective
        self._batch = batch
        self._towers = towers(model)
        self._engines = engines
        self._gradient = jax.jit(self._of_losses)
        self._scores = jax.jit(self._of_batch)

    def __call__(
        self,
        params: Params,
        head: Any,
        extra: Any,
        clips: Clips,
        source: Mapping[str, np.ndarray],
        seed: int,
    ) -> Scores:
        """Scores of every clip.

        Args:
          params: of the encoder.
          head, extra: parameters and state of the objective.
          clips: n of them, at least a batch.
          source: see `Clips.batch`.
          seed: of the batches' composition, which group scores depend on.
        """
        order = np.random.default_rng([seed, 7]).permutation(len(clips))
        count = -(-len(order) // self._batch)
        parts = np.resize(order, (count, self._batch))
        total = None
        for rows in parts:
            raw = clips.batch(rows, source=source)
            more = self._gradient(params, head, extra, raw)
            total = more if total is None else jax.tree.map(jnp.add, total, more)
        found: Scores = {}
        for rows in parts:
            raw = clips.batch(rows, source=source)
            scores = jax.device_get(self._scores(params, head, extra, raw, total))
            for name, values in scores.items():
                found.setdefault(name, np.zeros(len(clips), np.float32))[rows] = values
        return found

    def _losses(self, extra: Any, batch: Batch) -> Any:
        def losses(head: Any, parts: Any) -> tuple[Any, Any]:
            step, key = jnp.zeros((), jnp.int32), jax.random.key(0)
            seen = Encoded(tokens={}, pooled=parts)
            out = self._objective(head, extra, seen, batch, key=key, step=step)
            return out.losses, out

        return losses

    def _seam(self, params: Any, head: Any, extra: Any, raw: RawBatch) -> tuple:
        """The batch, its losses' cotangents, and per loss the batch's gradient."""
        batch = self._model.prepare(raw)
        encoded, pull = engines.plain_vjp(self._towers, params, batch)
        c = cotangents.per_loss(self._losses(extra, batch), head, encoded)
        rows = [
            _scoped(pull({t: c.row(t, k) for t in encoded}))
            for k in range(len(c.names))
        ]
        return batch, encoded, c, jax.tree.map(lambda *g: jnp.stack(g), *rows)

    def _of_losses(self, params: Any, head: Any, extra: Any, raw: RawBatch) -> Any:
        return self._seam(params, head, extra, raw)[-1]

    def _of_batch(
        self, params: Any, head: Any, extra: Any, raw: RawBatch, total: Any
    ) -> dict[str, jax.Array]:
        batch, encoded, c, near = self._seam(params, head, extra, raw)
        names = c.names
        found = _of_values(c.aux, names)
        own = _own(self._losses(extra, batch), head, encoded)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), c.encoded, own)
        directions = {"batch": near, "set": total}

        def of_clip(args: tuple[Any, Any]) -> tuple[Any, Any]:
            gradients = self._one(params, *args)
            gram = _dots(gradients, gradients)
            seen = {n: _dots(gradients, d) for n, d in directions.items()}
            return gram, seen

        by_row = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), both)
        gram, along = jax.lax.map(of_clip, (batch, by_row), batch_size=CHUNK)
        k = len(names)
        found |= _of_gram(gram[:, :k, :k], names, "vmap/1")
        # Own loss only, the others' embeddings held fixed.
        found |= _of_gram(gram[:, k:, k:], names, "own/1")
        for label, dots in along.items():
            norm = jax.vmap(trees.global_norm)(directions[label])
            found |= _of_agreement(dots[:, :k], gram[:, :k, :k], norm, names, label)
        step, ones = jnp.zeros((), jnp.int32), lambda g: jnp.ones(g.shape[:-1])
        for name, group in self._engines:
            engine = ENGINES[name]()
            _, pull = engine.vjp(self._towers, params, batch, group=group)
            other = pull(c, ones, engine.init(), step).gram
            assert other is not None
            other = jnp.repeat(other, group, axis=0)
            found |= _of_gram(other, names, f"{name}/{group}")
        return found

    def _one(self, params: Any, row: Batch, rows: Any) -> Params:
        """Gradients [2k, ...] of one clip from the cotangents [2k, ...] at its z."""
        alone = jax.tree.map(lambda x: x[None], row)
        _, pull = engines.plain_vjp(self._towers, params, alone)
        return jax.vmap(lambda c: _scoped(pull(jax.tree.map(lambda x: x[None], c))))(
            rows
        )


def _dots(a: Params, b: Params) -> Float[Array, "m n"]:
    """Inner products of stacked gradients."""
    total = jnp.zeros(())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        total = total + x.reshape(len(x), -1) @ y.reshape(len(y), -1).T
    return total


def _of_agreement(
    dots: Float[Array, "b k k"],
    gram: Float[Array, "b k k"],
    norm: Float[Array, "k"],
    names: Sequence[str],
    label: str,
) -> dict[str, jax.Array]:
    """How far g_i^k points along the sum over all other samples of g^l.

    Args:
      dots: <g_i^k, M^l>, M the sum over all samples, i among them.
      gram: <g_i^k, g_i^l>.
      norm: |M^l|.
    """
    others = dots - gram
    length = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2))
    cosine = others / jnp.maximum(length[:, :, None] * norm[None, None], 1e-12)
    found = {}
    for (k, name), (j, other) in itertools.product(enumerate(names), repeat=2):
        found[f"agree_{label}/{name}_{other}"] = -cosine[:, k, j]
        found[f"agree_{label}_raw/{name}_{other}"] = -others[:, k, j]
    same = jnp.diagonal(others, axis1=1, axis2=2).sum(-1)
    whole = others.sum((1, 2))
    size = jnp.sqrt(gram.sum((1, 2)))
    found[f"agree_{label}_raw/all"] = -same
    found[f"agree_{label}_raw/sum"] = -whole
    found[f"agree_{label}/sum"] = -whole / jnp.maximum(size, 1e-12)
    return found


def _of_values(out: Any, names: Any) -> dict[str, jax.Array]:
    """From the objective's own output: losses and similarities."""
    found = {f"loss/{n}": out.per_sample[n] for n in names}
    found["loss/all"] = sum(found.values())
    spaces = {key.split("/")[0]: x for key, x in out.embeddings.items()}
    initials = {m[0]: x for m, x in spaces.items()}
    similar = {n: (initials[n[0]] * initials[n[1]]).sum(-1) for n in names}
    found |= {f"similarity/{n}": -x for n, x in similar.items()}
    found["similarity/all"] = -sum(similar.values())
    return found


def _of_gram(gram: Any, names: Any, label: str) -> dict[str, jax.Array]:
    """From a Gramian [b, k, k]: conflict, norms."""
    found = {}
    cos, _ = statistics.cosines(gram)
    for i, j, pair in statistics.pairs(names):
        found[f"conflict/{label}/{pair}"] = -cos[:, i, j]
        found[f"conflict_raw/{label}/{pair}"] = -gram[:, i, j]
    for k, name in enumerate(names):
        found[f"norm/{label}/{name}"] = jnp.sqrt(gram[:, k, k])
    return found


def _own(losses: Any, head: Any, encoded: Any) -> Any:
    """d loss_i^k / d z_i with everybody else's z fixed: leaves [k, b, ...]."""

    def of(i: Any, row: Any) -> Any:
        parts = jax.tree.map(lambda z, r: z.at[i].set(r), encoded, row)
        _, out = losses(head, parts)
        return jnp.stack([x[i] for x in out.per_sample.values()])

    count = jax.tree.leaves(encoded)[0].shape[0]
    rows = jax.vmap(jax.jacrev(of, argnums=1))(jnp.arange(count), encoded)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), rows)


def _scoped(gradient: Params) -> Params:
    """Zeros outside the engines' default scope."""
    inside = set(engines.in_scope(gradient, engines.ENCODER))
    return trees.map_named(
        lambda name, g: g if name in inside else jnp.zeros_like(g), gradient
    )
