"""Classification without training: which class's prompts are nearest to the clip."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmssl.evals.classify import Arms, Outcome, SkippedError
from mmssl.evals.embeddings import Embeddings, normalised
from mmssl.evals.retrieval import space_of


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The classes of one column.

    Attributes:
      classes: their names as the labels have them.
      vectors: space -> [c, e], the mean of each class's prompts, normalised.
    """

    classes: tuple[str, ...]
    vectors: Mapping[str, np.ndarray]


def sentences(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template filled with every class: those of one class side by side.

    Underscores in a class name are spaces.
    """
    return [t.format(c.replace("_", " ")) for c in classes for t in templates]


def prompts(
    classes: Sequence[str], embedded: Mapping[str, np.ndarray], templates: int
) -> Prompts:
    """From the embeddings of `sentences`, space -> [c * templates, e]."""
    return Prompts(
        tuple(classes),
        {
            space: normalised(x.reshape(len(classes), templates, -1).mean(1))
            for space, x in embedded.items()
        },
    )


def classes(part: Embeddings, column: str) -> list[str]:
    """The classes to choose from: those that occur among the clips."""
    return sorted({*part.labels[column]} - {""})


def zero_shot(arms: Arms, modality: str, column: str) -> tuple[dict[str, Any], Outcome]:
    """A cell of one modality and label column, and what became of each clip.

    As in CLIP (arXiv 2103.00020, section 3.1): the class whose prompts' mean embedding
    is nearest in cosine. Of equally near ones the clip's own comes last. Chance is that
    of a blind guess.

    Raises:
      SkippedError: no space with text, no label, or classes of single clips only.
    """
    test, found = arms["trained"].test, arms["trained"].prompts[column]
    # The split need not have captions: a space has text where prompts have vectors.
    members = {name: {*test.spaces.get(name, ()), "text"} for name in found.vectors}
    space = space_of(members, modality, "text")
    if space is None:
        raise SkippedError(f"{modality} and text share no space")
    judge = test.rows(modality) & (test.labels[column] != "")
    truth, names = test.labels[column][judge], np.array(found.classes)
    if len(names) < 2 or not len(truth):
        raise SkippedError(f"{len(names)} class to choose from, at least 2 needed")
    if len(names) == len(truth):
        raise SkippedError("every clip has a class of its own")
    own, rows = np.searchsorted(names, truth), np.arange(len(truth))
    cell, rank = {}, {}
    for name, arm in arms.items():
        x = arm.test.spaces[space][modality][judge]
        cosine = x @ arm.prompts[column].vectors[space].T
        # Equal prompts must tie, whatever a matrix product makes of their last bits.
        ahead = cosine >= cosine[rows, own][:, None] - 1e-6
        rank[name] = ahead.sum(1)
        cell[name] = {f"top{k}": float((rank[name] <= k).mean()) for k in (1, 5)}
    return {
        **cell,
        "chance": {f"top{k}": min(k / len(names), 1.0) for k in (1, 5)},
        "n": len(truth),
        "classes": len(names),
        "space": space,
    }, Outcome(np.flatnonzero(judge), rank["trained"])
