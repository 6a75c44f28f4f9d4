"""`--limits`: what one media file may cost, for the commands that read media."""

import argparse
import dataclasses
from typing import Any

from mmssl.data.faults import Limits
from mmssl.errors import nearest


def add(parser: Any) -> None:
    """Adds the option."""
    defaults = ", ".join(f"{k}={v:.10g}" for k, v in vars(Limits()).items())
    parser.add_argument(
        "--limits",
        metavar="NAME=N,...",
        type=_limits,
        default=Limits(),
        help=f"what one file may cost; beyond it, a fault (default: {defaults})",
    )


def _limits(text: str) -> Limits:
    kinds = {field.name: field.type for field in dataclasses.fields(Limits)}
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise argparse.ArgumentTypeError(
                f"no limit {name!r}; there are {', '.join(kinds)}{nearest(name, kinds)}"
            )
        try:
            found[name] = int(value) if kinds[name] is int else float(value)
            Limits(**found)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{name}: expected a number above 0, found {value!r}"
            ) from None
    return Limits(**found)
