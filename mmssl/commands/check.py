"""`mmssl check`: what a config means, before any training."""

import argparse
from typing import Any

from mmssl import commands
from mmssl.commands.train import add_config


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        subparsers,
        "check",
        check,
        summary="shapes, sizes, memory and one real batch, without training",
        about="Builds everything that training would build and reports token shapes, "
        "parameter counts, an estimate of the memory, whether the dataset fits the "
        "config, and one real batch run through the losses.",
        example="""
            mmssl check --config configs/demo.py --config.data.path=data/mine
            mmssl check --config configs/vatt_ma_medium.py --no-data
        """,
    )
    add_config(parser)
    parser.add_argument(
        "--no-data",
        action="store_true",
        help="do not open the dataset or its tokenizer",
    )


def check(arguments: argparse.Namespace) -> int:
    raise NotImplementedError
