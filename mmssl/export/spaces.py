"""Which embeddings can be compared: spaces, their modalities, and the defaults."""

from collections.abc import Mapping, Sequence
from typing import Any


def places(heads: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Space name -> (objective, its space); names that clash get the objective's."""
    names = [space for head in heads.values() for space in head.spaces]
    return {
        space if names.count(space) == 1 else f"{objective}/{space}": (objective, space)
        for objective, head in heads.items()
        for space in head.spaces
    }


def defaults(spaces: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Modality -> space: the one with most modalities, else the first with it."""
    if not spaces:
        return {}
    widest = max(spaces, key=lambda space: len(spaces[space]))
    out: dict[str, str] = {}
    for space in (widest, *spaces):
        for modality in spaces[space]:
            out.setdefault(modality, space)
    return out


def choose(
    space: str | None, *, modality: str, spaces: Mapping[str, Sequence[str]]
) -> str:
    """The space asked for, or the modality's default.

    Raises:
      ValueError: the modality is not in it, or in none.
    """
    options = [name for name, who in spaces.items() if modality in who]
    if space is None and options:
        return defaults(spaces)[modality]
    if space is None or space not in options:
        raise ValueError(
            f"{modality} is not in space {space!r}; it is in "
            f"{', '.join(options) or 'none: use pooled=True'}"
        )
    return space
