"""Which split a clip belongs to: by hash, never by order."""

import hashlib
import re
from collections.abc import Mapping

from mmssl.errors import UserError


def split_of(key: str, splits: Mapping[str, float]) -> str:
    """The split of a clip's group, or of its id if it has none.

    A pure function of the key, the names and the fractions: a uniform number from the
    key's SHA-256 is compared with the running sum of the fractions, in the order given,
    so a clip never moves when a manifest grows.
    """
    digest = hashlib.sha256(key.encode()).digest()
    # Other bytes than `records.example_id`: a split is no range of example ids.
    uniform = int.from_bytes(digest[8:16], "big") / 2**64
    edge = 0.0
    for name, fraction in splits.items():
        edge += fraction
        if uniform < edge:
            return name
    return list(splits)[-1]  # the fractions sum to 1 only up to rounding


def is_name(name: str) -> bool:
    """Whether a split may be called so: small letters, digits and "_"; not "all"."""
    return re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None and name != "all"


def check_splits(splits: Mapping[str, float]) -> None:
    """Refuses fractions that are not a partition.

    Raises:
      UserError: no splits, a bad name, a fraction not above 0, or a sum that is not 1.
    """
    example = "for example train=0.9,test=0.1"
    for name, fraction in splits.items():
        if not is_name(name):
            raise UserError(
                f"split {name!r}: expected a name of small letters, digits and '_', "
                f"other than 'all'; {example}"
            )
        if not 0 < fraction <= 1:
            raise UserError(
                f"split {name!r}: expected a fraction above 0 and at most 1, found "
                f"{fraction}; {example}"
            )
    total = sum(splits.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"split fractions must sum to 1, found {total:g}; {example}")
