"""Retrieval between modalities: ranks, their summary, and chance in closed form."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmssl.evals.embeddings import Embeddings

CUTS = (1, 5, 10)


def similarity(
    a: np.ndarray, a_mask: np.ndarray, b: np.ndarray, b_mask: np.ndarray
) -> np.ndarray:
    """Cosine of normalised rows; with candidates the best pair of valid ones counts.

    Args:
      a: [N, e] or [N, n, e].
      a_mask: [N] or [N, n] bool.
      b, b_mask: likewise, M rows.

    Returns:
      [N, M] float32, -inf where a side has nothing valid.
    """
    if a.ndim == 2:
        a, a_mask = a[:, None], a_mask[:, None]
    if b.ndim == 2:
        b, b_mask = b[:, None], b_mask[:, None]
    best = np.full((len(a), len(b)), -np.inf, np.float32)
    for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
        valid = a_mask[:, i, None] & b_mask[None, :, j]
        best = np.maximum(best, np.where(valid, a[:, i] @ b[:, j].T, -np.inf))
    return best


def ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank (from 1) of each query's best relevant item among the irrelevant ones.

    Ties are pessimistic: an irrelevant item with an equal score comes first, and so
    does anything that cannot be compared (NaN), so a collapsed or broken model never
    looks good.

    Args:
      scores: [N, M] float.
      relevant: [N, M] bool, at least one True per row.

    Returns:
      [N] int64, between 1 and M - (number of relevant items) + 1.
    """
    if not relevant.any(1).all():
        raise ValueError("ranks: a query has no relevant item")
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    return 1 + (~relevant & ~(scores < best)).sum(1)


def summarise(rank: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 as shares, median rank, mean reciprocal rank."""
    out = {f"R@{k}": float((rank <= k).mean()) for k in CUTS}
    out["median_rank"] = float(np.median(rank))
    out["mrr"] = float((1.0 / rank).mean())
    return out


def chance(relevant_counts: np.ndarray, gallery: int) -> dict[str, float]:
    """`summarise` in expectation under a random order of the gallery, exactly.

    With m relevant of G items the first relevant one comes after place k with
    probability C(G-m, k) / C(G, k). The median rank is that of the mixture over
    queries (the middle of the interval of medians, as numpy takes it).

    Args:
      relevant_counts: [N] relevant items of each query.
      gallery: G.
    """
    after = np.zeros(gallery + 1)
    place = np.arange(gallery)
    for m, queries in zip(*np.unique(relevant_counts, return_counts=True)):
        steps = np.maximum(gallery - m - place, 0) / (gallery - place)
        after += queries * np.concatenate([[1.0], np.cumprod(steps)])
    after /= len(relevant_counts)
    within = 1.0 - after  # within[k] = P(rank <= k)
    out = {f"R@{k}": float(within[min(k, gallery)]) for k in CUTS}
    # Rounding must not move a cumulative share of exactly one half.
    low = np.argmax(within >= 0.5 - 1e-9)
    high = np.argmax(within > 0.5 + 1e-9)
    out["median_rank"] = float(low + high) / 2
    out["mrr"] = float((np.diff(within) / np.arange(1, gallery + 1)).sum())
    return out


def space_of(
    spaces: Mapping[str, Mapping[str, np.ndarray]], one: str, other: str
) -> str | None:
    """The smallest space that holds both (the one made for them), or None."""
    found = [name for name, members in spaces.items() if {one, other} <= set(members)]
    return min(found, key=lambda name: (len(spaces[name]), name), default=None)


def relevance(texts: Sequence[frozenset[bytes]]) -> np.ndarray:
    """[N, N] bool: the same clip, or clips that share a text."""
    out = np.eye(len(texts), dtype=bool)
    holders: dict[bytes, list[int]] = {}
    for i, found in enumerate(texts):
        for text in found:
            holders.setdefault(text, []).append(i)
    for rows in holders.values():
        out[np.ix_(rows, rows)] = True
    return out


@dataclasses.dataclass(frozen=True)
class Pair:
    """One ordered pair of modalities: queries and gallery are the same clips.

    Attributes:
      name: `video->audio`.
      space: where they are compared.
      clips: [N] indices of the clips that have both modalities.
      scores: [N, N] similarity of query and item.
      relevant: [N, N] bool.
    """

    name: str
    space: str
    clips: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray


def pairs(embeddings: Embeddings) -> Iterator[Pair]:
    """Every ordered pair of modalities that share a space and a clip.

    The right answer is the same clip; where text takes part, a clip with an identical
    text (after tokenization) is right too, so that duplicates do not punish. Right
    answers do not count against each other.
    """
    for one, other in itertools.permutations(sorted(embeddings.pooled), 2):
        space = space_of(embeddings.spaces, one, other)
        both = embeddings.rows(one) & embeddings.rows(other)
        if space is None or not both.any():
            continue
        members, clips = embeddings.spaces[space], np.flatnonzero(both)
        if "text" in (one, other):
            relevant = relevance([embeddings.texts[i] for i in clips])
        else:
            relevant = np.eye(len(clips), dtype=bool)
        scores = similarity(
            members[one][both],
            embeddings.present[one][both],
            members[other][both],
            embeddings.present[other][both],
        )
        yield Pair(f"{one}->{other}", space, clips, scores, relevant)


def retrieval(embeddings: Embeddings) -> dict[str, dict]:
    """The scores of all `pairs`.

    Returns:
      `video->audio` -> {"scores": `summarise`, "chance": `chance`, "n": clips,
      "space": name}. Pairs without a clip that has both are left out.
    """
    return {
        pair.name: {
            "scores": summarise(ranks(pair.scores, pair.relevant)),
            "chance": chance(pair.relevant.sum(1), len(pair.clips)),
            "n": len(pair.clips),
            "space": pair.space,
        }
        for pair in pairs(embeddings)
    }


def examples(
    embeddings: Embeddings, *, queries: int = 4, results: int = 5
) -> list[dict[str, Any]]:
    """Ranked lists to look at: from the best query to the worst, evenly by rank.

    Args:
      embeddings: of the evaluated split.
      queries: per ordered pair.
      results: items listed per query.

    Returns:
      JSON-able {"direction", "query": clip id, "rank", "results": [{"id", "score",
      "correct"}]}, best result first.
    """
    out = []
    for pair in pairs(embeddings):
        rank = ranks(pair.scores, pair.relevant)
        by_rank = np.argsort(rank, kind="stable")
        chosen = np.linspace(0, len(rank) - 1, min(queries, len(rank))).round()
        for query in by_rank[chosen.astype(int)]:
            best = np.argsort(-pair.scores[query], kind="stable")[:results]
            found = [
                {
                    "id": embeddings.ids[pair.clips[item]],
                    "score": float(pair.scores[query, item]),
                    "correct": bool(pair.relevant[query, item]),
                }
                for item in best
            ]
            out.append(
                {
                    "direction": pair.name,
                    "query": embeddings.ids[pair.clips[query]],
                    "rank": int(rank[query]),
                    "results": found,
                }
            )
    return out
