"""`mmssl eval | export | report`: what comes out of a workdir."""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from mmssl import commands
from mmssl.commands import manifest

ARMS = ("trained", "random", "chance")


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
    _add_ema(parser)


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
    _add_ema(parser)


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


def _add_ema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ema",
        action="store_true",
        help="the running average of the parameters, of a run that keeps one",
    )


def evaluate(arguments: argparse.Namespace) -> None:
    from mmssl import runs
    from mmssl.evals import evaluate as room
    from mmssl.train import compilation
    from mmssl.workdir import EVAL

    compilation.keep_compiled()
    result = runs.evaluate_run(
        arguments.workdir,
        data=arguments.data,
        split=arguments.split,
        ema=arguments.ema,
    )
    print(_evaluated(room.table_rows(result)))
    if found := result["coverage"]:
        print(f"\nclips found of the published set: {manifest.coverage(found)}")
    print(
        f"\nstep {result['step']}, {result['data']}, split {result['split']!r}: "
        f"{pathlib.Path(arguments.workdir) / EVAL}\n"
        f"next: mmssl report --workdir {arguments.workdir}"
    )


def _evaluated(rows: Sequence[Any]) -> str:
    """A block per section: a line per case, or per case and arm with many metrics."""
    blocks = []
    for section in dict.fromkeys(row.section for row in rows):
        mine = [row for row in rows if row.section == section]
        metrics = list(dict.fromkeys(row.metric for row in mine))
        cells = {(row.case, row.metric): row for row in mine}
        lines = []
        for case in dict.fromkeys(row.case for row in mine):
            shown = {
                arm: [_shown(m, getattr(cells[case, m], arm)) for m in metrics]
                for arm in ARMS
            }
            clips = cells[case, metrics[0]].n
            if len(metrics) == 1:
                lines.append((case, *(shown[arm][0] for arm in ARMS), clips))
                continue
            lines += [
                (case if arm == ARMS[0] else "", arm, *shown[arm], clips)
                for arm in ARMS
            ]
        head = (section, "", *metrics) if len(metrics) > 1 else (section, *ARMS)
        blocks.append(commands.table(lines, header=(*head, "clips")))
    return "\n\n".join(blocks)


def _shown(metric: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if metric == "median_rank":
        return f"{value:.1f}"
    return f"{value:.3f}" if metric == "mrr" else f"{100 * value:.1f}%"


def export(arguments: argparse.Namespace) -> None:
    from mmssl import runs

    manifest = runs.export_run(
        arguments.workdir,
        arguments.out,
        overwrite=arguments.overwrite,
        ema=arguments.ema,
    )
    rows = [(name, facts["bytes"]) for name, facts in manifest["files"].items()]
    print(commands.table(rows, header=(arguments.out, "bytes")))
    print(f"\nin Python: mmssl.load({arguments.out!r})")


def report(arguments: argparse.Namespace) -> None:
    from mmssl import runs

    path = runs.report_run(arguments.workdir)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, opens in any browser")
