"""Embeddings of a split, one row per clip, as numpy arrays."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmssl.errors import UserError
from mmssl.types import RawBatch

Pooled = Mapping[str, Any]
Spaces = Mapping[str, Mapping[str, Any]]


class HostBatch(Protocol):
    """Numpy media, and per real row {"id": str, "labels": {column: str}, ...}; the
    `classes` of a row are those it has of several."""

    @property
    def raw(self) -> RawBatch:
        """Arrays; rows beyond `info` are padding."""
        ...

    @property
    def info(self) -> Sequence[Mapping[str, Any]]:
        """One entry per real row."""
        ...


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """N clips; float32. Rows and candidates that are not present are zeros.

    Attributes:
      ids: the clips, in order of first appearance.
      present: per modality [N], or [N, n] for text candidates.
      pooled: per modality [N, (n,) d], the backbone's features.
      spaces: space -> modality -> [N, (n,) e], L2-normalised.
      labels: column -> [N] str, "" where the clip has no such label.
      texts: per clip the token rows of its candidates; equal entries are texts the
        model cannot tell apart.
      classes: per clip the classes it has of several; () where no clip has any.
    """

    ids: tuple[str, ...]
    present: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray]
    spaces: dict[str, dict[str, np.ndarray]]
    labels: dict[str, np.ndarray]
    texts: tuple[frozenset[bytes], ...]
    classes: tuple[frozenset[str], ...] = ()

    def rows(self, modality: str) -> np.ndarray:
        """[N] bool: the clip has the modality, or any candidate of it."""
        mask = self.present[modality]
        return mask.reshape(len(mask), -1).max(axis=1)

    def features(self, modality: str) -> np.ndarray:
        """[N, d] backbone features; text is the mean over its candidates."""
        x, mask = self.pooled[modality], self.present[modality]
        if x.ndim == 2:
            return x
        return x.sum(1) / np.maximum(mask.sum(1, keepdims=True), 1)


EmbedFn = Callable[[RawBatch], tuple[Pooled, Spaces]]
"""Raw media [b, ...] -> pooled features {modality: [b, (n,) d]} and normalised
embeddings {space: {modality: [b, (n,) e]}}, as arrays that numpy can read. It brings
its own parameters and jit."""


def embed(
    batches: Iterable[HostBatch],
    embed_fns: Mapping[str, EmbedFn],
    *,
    whole: Callable[[HostBatch], HostBatch] = lambda batch: batch,
) -> dict[str, Embeddings]:
    """Embeds every batch by every function; rows of one id are one clip's windows.

    As in VATT's protocol the embeddings of a clip's windows are averaged and then
    normalised (pooled features are averaged only), over the windows that have the
    modality. A clip's text candidates are the distinct ones of all its windows. Media
    is read once, and no more than a batch of it is held.

    Args:
      batches: one pass over a split, in order; where there are several processes,
        this one's rows.
      embed_fns: name -> function, which gives the rows of all processes.
      whole: a batch with the ids, labels, texts and masks of all processes' rows.

    Returns:
      name -> embeddings of the same clips in the same order.

    Raises:
      UserError: nothing to embed, or embeddings that are not finite.
    """
    clips: dict[str, dict[str, _Clip]] = {name: {} for name in embed_fns}
    for batch in batches:
        facts = whole(batch)
        for name, embed_fn in embed_fns.items():
            _collect(clips[name], facts, *embed_fn(batch.raw))
    if not all(clips.values()):
        raise UserError("eval: the split has no clips to embed; check the split's name")
    return {name: _assemble(found) for name, found in clips.items()}


def _collect(
    clips: "dict[str, _Clip]", batch: HostBatch, pooled: Pooled, spaces: Spaces
) -> None:
    """Adds the rows of a batch to the clips they are windows of."""
    raw = batch.raw
    # One flat table: (m, "") is the pooled vector, (m, space) an embedding.
    tables = {(m, ""): np.asarray(x, np.float32) for m, x in pooled.items()}
    for space, members in spaces.items():
        for m, x in members.items():
            tables[m, space] = np.asarray(x, np.float32)
    tokens = np.asarray(raw.media["text"]) if "text" in raw.media else None
    for i, entry in enumerate(batch.info):
        clip = clips.setdefault(
            entry["id"],
            _Clip(dict(entry["labels"]), frozenset(entry.get("classes", ()))),
        )
        for m in pooled:
            if not np.asarray(raw.present[m])[i]:
                continue
            vectors = {space: x[i] for (n, space), x in tables.items() if n == m}
            if not all(np.isfinite(x).all() for x in vectors.values()):
                raise UserError(
                    f"eval: the {m} embedding of clip {entry['id']!r} is not "
                    "finite; the checkpoint is damaged or the run diverged: "
                    "evaluate an earlier one"
                )
            if m == "text" and tokens is not None:
                clip.add_candidates(tokens[i], vectors)
            else:
                clip.add_window(m, vectors)


@dataclasses.dataclass
class _Clip:
    labels: dict[str, str]
    classes: frozenset[str] = frozenset()
    sums: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    windows: dict[str, int] = dataclasses.field(default_factory=dict)
    texts: dict[bytes, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def add_window(self, modality: str, vectors: Mapping[str, np.ndarray]) -> None:
        sums = self.sums.setdefault(modality, {})
        for space, x in vectors.items():
            sums[space] = sums[space] + x if space in sums else x
        self.windows[modality] = self.windows.get(modality, 0) + 1

    def add_candidates(
        self, tokens: np.ndarray, vectors: Mapping[str, np.ndarray]
    ) -> None:
        for j, row in enumerate(tokens):
            if row.any():  # 0 is padding
                found = {space: x[j] for space, x in vectors.items()}
                self.texts.setdefault(row.tobytes(), found)

    def stacked(self) -> dict[str, dict[str, np.ndarray]]:
        """modality -> space ("" = pooled) -> [d] or [n, d]."""
        out = {
            m: {s: x / self.windows[m] for s, x in sums.items()}
            for m, sums in self.sums.items()
        }
        if self.texts:
            rows = list(self.texts.values())
            out["text"] = {s: np.stack([row[s] for row in rows]) for s in rows[0]}
        return out


def _assemble(clips: Mapping[str, _Clip]) -> Embeddings:
    stacked = [clip.stacked() for clip in clips.values()]
    columns = sorted({column for clip in clips.values() for column in clip.labels})
    present, pooled = {}, {}
    spaces: dict[str, dict[str, np.ndarray]] = {}
    for m in sorted({m for clip in stacked for m in clip}):
        rows = [clip.get(m) for clip in stacked]
        some = next(row for row in rows if row is not None)
        n = max(len(row[""]) for row in rows if row) if m == "text" else None
        mask = np.zeros((len(rows),) if n is None else (len(rows), n), bool)
        for i, row in enumerate(rows):
            if row is not None:
                mask[i if n is None else (i, slice(len(row[""])))] = True
        present[m] = mask
        for space in some:
            table = np.zeros((*mask.shape, some[space].shape[-1]), np.float32)
            for i, row in enumerate(rows):
                if row is not None:
                    table[i if n is None else (i, slice(len(row[space])))] = row[space]
            if space:
                spaces.setdefault(space, {})[m] = normalised(table)
            else:
                pooled[m] = table
    return Embeddings(
        ids=tuple(clips),
        present=present,
        pooled=pooled,
        spaces=spaces,
        labels={
            column: np.array([clip.labels.get(column, "") for clip in clips.values()])
            for column in columns
        },
        texts=tuple(frozenset(clip.texts) for clip in clips.values()),
        classes=tuple(clip.classes for clip in clips.values()),
    )


def normalised(x: np.ndarray) -> np.ndarray:
    """Rows to unit L2 norm; zero rows stay zero."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
