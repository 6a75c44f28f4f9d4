"""Which modalities are compared in which space."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmssl.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Pair:
    """One loss: two modalities compared in one space."""

    name: str
    modalities: tuple[str, str]
    space: str


def default_pairs(spaces: Mapping[str, tuple[str, ...]]) -> list[Pair]:
    """Video against each other modality, as VATT; without video, every pair.

    A pair in several spaces takes the smallest: the official heads put audio into the
    text space too, for evaluation.
    """
    found: dict[str, Pair] = {}
    has_video = any("video" in members for members in spaces.values())
    for space in sorted(spaces, key=lambda name: len(spaces[name])):
        for one, other in itertools.combinations(spaces[space], 2):
            name = one[0] + other[0]
            if not has_video or "video" in (one, other):
                found.setdefault(name, Pair(name, (one, other), space))
    return list(found.values())


def read_pair(name: str, entry: Mapping[str, Any]) -> Pair:
    """From {"modalities": (one, other), "space": name}; UserError for anything else."""
    unknown = sorted(set(entry) ^ {"modalities", "space"})
    if unknown:
        raise UserError(
            f"contrastive: pair {name!r} must have exactly the keys 'modalities' and "
            f"'space', got {sorted(entry)}"
        )
    modalities = tuple(entry["modalities"])
    if len(modalities) != 2 or modalities[0] == modalities[1]:
        raise UserError(
            f"contrastive: pair {name!r} must name two different modalities, got "
            f"{list(modalities)}"
        )
    return Pair(name, (modalities[0], modalities[1]), str(entry["space"]))


def check_options(
    kind: str, *, form: str, forms: Iterable[str], chunk: int | None
) -> None:
    """UserError where an objective of this kind has no such form, or no such chunk."""
    known = sorted(forms)
    if form not in known:
        raise UserError(
            f"{kind}: form {form!r} is unknown; expected one of "
            f"{known}{nearest(form, known)}"
        )
    if chunk is not None and chunk < 1:
        raise UserError(f"{kind}: chunk must be at least 1 row, or None; got {chunk}")


def check_widths(
    kind: str,
    names: Sequence[str],
    requires: Iterable[str],
    widths: Mapping[str, int],
) -> None:
    """UserError where the model lacks a modality that the pairs `names` read."""
    missing = sorted(set(requires) - set(widths))
    if missing:
        raise UserError(
            f"{kind}: the pairs {list(names)} need {missing}, but the model has only "
            f"{sorted(widths)}; choose `pairs` of modalities the model has"
        )
