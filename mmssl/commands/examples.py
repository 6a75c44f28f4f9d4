"""Which retrieval queries a report shows, and the clips in them, decoded.

`mmssl eval` ranks and writes examples.json; `mmssl report` decodes what it names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmssl.evals import embeddings as embeddings_lib
from mmssl.evals import retrieval as retrieval_lib

FILE = "examples.json"
SHOWN = 5
"""Answers per query."""


def choose(found: embeddings_lib.Embeddings, *, queries: int = 6) -> dict[str, Any]:
    """Queries spread over the ranks, best to worst, so that the wrong ones show too.

    Args:
      found: of the evaluated split, in its order.
      queries: per ordered pair of modalities.

    Returns:
      JSON-able: "queries", a list of {"direction": "video_to_text", "query": id,
      "rank", "results": [{"id", "score", "correct"}, ...]}, and "clips", the place in
      the split of every id in them.
    """
    chosen = []
    for one in sorted(found.pooled):
        for other in sorted(found.pooled):
            both = found.rows(one) & found.rows(other)
            space = retrieval_lib.space_of(found.spaces, one, other)
            if one != other and space is not None and both.any():
                chosen += _direction(found, one, other, space, both, queries)
    places = {id: place for place, id in enumerate(found.ids)}
    return {
        "queries": chosen,
        "clips": {id: places[id] for id in sorted(wanted(chosen))},
    }


def _direction(
    found: embeddings_lib.Embeddings,
    one: str,
    other: str,
    space: str,
    both: np.ndarray,
    queries: int,
) -> list[dict[str, Any]]:
    places = np.flatnonzero(both)
    ids = [found.ids[i] for i in places]
    members, present = found.spaces[space], found.present
    scores = retrieval_lib.similarity(
        members[one][both],
        present[one][both],
        members[other][both],
        present[other][both],
    )
    relevant = np.eye(len(ids), dtype=bool)
    if "text" in (one, other):
        relevant = retrieval_lib.relevance([found.texts[i] for i in places])
    ranks = retrieval_lib.ranks(scores, relevant)
    order = np.argsort(ranks, kind="stable")
    spread = np.linspace(0, len(order) - 1, min(queries, len(order))).round()
    return [
        {
            "direction": f"{one}_to_{other}",
            "query": ids[q],
            "rank": int(ranks[q]),
            "results": [
                {
                    "id": ids[i],
                    "score": float(scores[q, i]),
                    "correct": bool(relevant[q, i]),
                }
                for i in np.argsort(-scores[q], kind="stable")[:SHOWN]
            ],
        }
        for q in order[spread.astype(int)]
    ]


def wanted(chosen: Sequence[Mapping[str, Any]]) -> set[str]:
    """The ids of every clip in the queries."""
    answers = {answer["id"] for query in chosen for answer in query["results"]}
    return {query["query"] for query in chosen} | answers


def sample(record: Any, view: Any) -> Any:
    """One clip as `report.media.Sample`, cut as the evaluation cuts it."""
    example = view(record)
    present = example["present"]
    return {
        "id": record.id,
        "frames": example["video"] if present.get("video") else None,
        "audio": example["audio"] if present.get("audio") else None,
        "rate": view.audio.rate if view.audio else 0,
        "text": example["info"]["texts"],
        "labels": {column: name for column, name in record.labels.items() if name},
        "swapped": str(record.meta.get("swapped", "")),
    }


def filled(
    chosen: Sequence[Mapping[str, Any]], samples: Mapping[str, Any]
) -> list[Any]:
    """The queries as `report.media.Query`, where all their clips are still there."""
    return [
        {
            "direction": query["direction"],
            "rank": query["rank"],
            "query": samples[query["query"]],
            "results": [
                {
                    "sample": samples[answer["id"]],
                    "score": answer["score"],
                    "correct": answer["correct"],
                }
                for answer in query["results"]
            ],
        }
        for query in chosen
        if wanted([query]) <= samples.keys()
    ]
