"""`mmssl export | report`: what comes out of a workdir."""

import argparse
from typing import Any

from mmssl import commands


def add(subparsers: Any) -> None:
    """Adds the two commands."""
    _add_export(subparsers)
    _add_report(subparsers)


def _add_export(subparsers: Any) -> None:
    parser = commands.command(
        subparsers,
        "export",
        export,
        summary="safetensors, config, tokenizer and model card",
        about="Writes the encoder of the newest checkpoint to a folder that needs "
        "nothing else: weights in safetensors, the config, the tokenizer, a model card "
        "made from the run, and the encoder in PyTorch. See docs/export.md.",
        example="""
            mmssl export --workdir runs/mine --out encoder
            python -c "import mmssl; print(mmssl.load('encoder').encode_text(['tea']))"
            mmssl export --workdir runs/mine --out video-encoder --modalities video
        """,
    )
    _add_workdir(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an export that is there"
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="the running average of the parameters, of a run that keeps one",
    )
    parser.add_argument(
        "--modalities",
        metavar="NAME",
        nargs="+",
        help="video, audio or text: these only; default: all that the model has",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the stored weights; default float32",
    )
    parser.add_argument(
        "--stablehlo",
        action="store_true",
        help="also programs that JAX alone runs on CPUs, GPUs and TPUs",
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


def export(arguments: argparse.Namespace) -> None:
    from mmssl import runs

    manifest = runs.export_run(
        arguments.workdir,
        arguments.out,
        overwrite=arguments.overwrite,
        ema=arguments.ema,
        modalities=arguments.modalities,
        dtype=arguments.dtype,
        stablehlo=arguments.stablehlo,
    )
    rows = [(name, facts["bytes"]) for name, facts in manifest["files"].items()]
    print(commands.table(rows, header=(arguments.out, "bytes")))
    print(f"\nin Python: mmssl.load({arguments.out!r})")


def report(arguments: argparse.Namespace) -> None:
    from mmssl import runs

    path = runs.report_run(arguments.workdir)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, opens in any browser")
