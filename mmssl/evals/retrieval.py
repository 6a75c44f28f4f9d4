"""Retrieval between modalities: ranks, their summary, and chance in closed form."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmssl.evals import ranking
from mmssl.evals.embeddings import Embeddings

CUTS = (1, 5, 10)


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
    members: Mapping[str, Collection[str]], one: str, other: str
) -> str | None:
    """Of space -> modalities: the smallest with both (made for them), or None."""
    found = [name for name, m in members.items() if {one, other} <= set(m)]
    return min(found, key=lambda name: (len(members[name]), name), default=None)


def shared_texts(texts: Sequence[frozenset[bytes]]) -> np.ndarray:
    """[N, s] int32: a number for each text that several clips have; -1 = no more."""
    holders: dict[bytes, list[int]] = {}
    for i, found in enumerate(texts):
        for text in sorted(found):
            holders.setdefault(text, []).append(i)
    several = [rows for rows in holders.values() if len(rows) > 1]
    own: list[list[int]] = [[] for _ in texts]
    for number, rows in enumerate(several):
        for i in rows:
            own[i].append(number)
    out = np.full((len(own), max(map(len, own), default=0)), -1, np.int32)
    for row, numbers in zip(out, own, strict=True):
        row[: len(numbers)] = numbers
    return out


@dataclasses.dataclass(frozen=True)
class Pair:
    """One ordered pair of modalities: queries and gallery are the same N clips.

    Attributes:
      name: `video->audio`.
      space: where they are compared.
      clips: [N] indices of the clips that have both modalities.
      queries, gallery: see `ranking.Rows`.
      shared: [N, s], see `shared_texts`; s = 0 where text takes no part.
    """

    name: str
    space: str
    clips: np.ndarray
    queries: ranking.Rows
    gallery: ranking.Rows
    shared: np.ndarray

    def right(self, query: int, item: int) -> bool:
        """Whether the item is a right answer to the query."""
        one, other = ({*row[row >= 0]} for row in self.shared[[query, item]])
        return bool(query == item or one & other)


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
        texts = "text" in (one, other)
        yield Pair(
            name=f"{one}->{other}",
            space=space,
            clips=clips,
            queries=(members[one][both], embeddings.present[one][both]),
            gallery=(members[other][both], embeddings.present[other][both]),
            shared=shared_texts(
                [embeddings.texts[i] if texts else frozenset() for i in clips]
            ),
        )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Retrieval of one pair.

    Attributes:
      pair: the two sides.
      rank: [N], see `ranking.ranks`.
      right: [N] right items of each query.
    """

    pair: Pair
    rank: np.ndarray
    right: np.ndarray

    @property
    def scores(self) -> dict[str, float]:
        return summarise(self.rank)

    @property
    def chance(self) -> dict[str, float]:
        return chance(self.right, len(self.rank))


def retrieval(embeddings: Embeddings) -> dict[str, Ranked]:
    """All `pairs` by name, ranked; those without a clip that has both are left out."""
    return {
        pair.name: Ranked(pair, *ranking.ranks(pair.queries, pair.gallery, pair.shared))
        for pair in pairs(embeddings)
    }


def examples(
    embeddings: Embeddings,
    ranks: Mapping[str, np.ndarray],
    *,
    queries: int = 4,
    results: int = 5,
) -> list[dict[str, Any]]:
    """Ranked lists to look at: from the best query to the worst, evenly by rank.

    Args:
      embeddings: of the evaluated split.
      ranks: of each query, by pair; pairs that are not there are left out.
      queries: per ordered pair.
      results: items listed per query.

    Returns:
      JSON-able {"direction", "query": clip id, "rank", "results": [{"id", "score",
      "correct"}]}, best result first.
    """
    out = []
    for pair in pairs(embeddings):
        if pair.name not in ranks:
            continue
        rank, ids = ranks[pair.name], embeddings.ids
        by_rank = np.argsort(rank, kind="stable")
        chosen = np.linspace(0, len(rank) - 1, min(queries, len(rank))).round()
        chosen = by_rank[chosen.astype(int)]
        rows = pair.queries[0][chosen], pair.queries[1][chosen]
        scores, items = ranking.nearest(rows, pair.gallery, results)
        for query, values, best in zip(chosen, scores, items, strict=True):
            out.append(
                {
                    "direction": pair.name,
                    "query": ids[pair.clips[query]],
                    "rank": int(rank[query]),
                    "results": [
                        {
                            "id": ids[pair.clips[item]],
                            "score": float(value),
                            "correct": pair.right(query, item),
                        }
                        for value, item in zip(values, best, strict=True)
                    ],
                }
            )
    return out
