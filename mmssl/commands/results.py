"""`mmssl eval | export | report`: what comes out of a workdir."""

import argparse
from typing import Any

from mmssl import commands


def add(subparsers: Any) -> None:
    """Adds the three commands."""
    _add_eval(subparsers)
    _add_export(subparsers)
    _add_report(subparsers)


def _add_eval(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "eval",
        evaluate,
        summary="retrieval, kNN and linear probes, beside random and chance",
        about="Embeds a split with the newest checkpoint and with the same model at "
        "its random initialisation. Retrieval between all pairs (R@1/5/10, "
        "median rank, mean reciprocal rank); kNN and a linear probe on every label "
        "column, trained on the split `train`. Prints a table, writes W/eval.json.",
        example="""
            mmssl eval --workdir runs/mine
            mmssl eval --workdir runs/mine --data data/other --split test
        """,
    )
    _add_workdir(parser)
    parser.add_argument(
        "--data", metavar="DIR", help="another dataset than the run's own"
    )
    parser.add_argument(
        "--split", metavar="S", help="default: the config's evals.split"
    )


def _add_export(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "export",
        export,
        summary="safetensors, config, tokenizer and model card",
        about="Writes the encoder of the newest checkpoint to a folder that needs "
        "nothing else: weights in safetensors, the config, the tokenizer, a model card "
        "made from the run.",
        example="""
            mmssl export --workdir runs/mine --out encoder
            python -c "import mmssl; print(mmssl.load('encoder').encode_text(['tea']))"
        """,
    )
    _add_workdir(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an export that is there"
    )


def _add_report(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "report",
        report,
        summary="one self-contained HTML file about a run",
        about="Writes W/report.html: configuration, curves, sample strips, retrieval "
        "examples with the wrong ones, tables. One file, opens offline.",
        example="mmssl report --workdir runs/mine",
    )
    _add_workdir(parser)


def _add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="W", required=True, help="a trained run")


def evaluate(arguments: argparse.Namespace) -> int | None:
    raise NotImplementedError


def export(arguments: argparse.Namespace) -> int | None:
    raise NotImplementedError


def report(arguments: argparse.Namespace) -> int | None:
    raise NotImplementedError
