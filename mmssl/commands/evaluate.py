"""`mmssl eval`: judges a run, watches one, or compares several."""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from mmssl import commands
from mmssl.commands import manifest

ARMS = ("trained", "random", "chance")


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        subparsers,
        "eval",
        evaluate,
        summary="retrieval, zero-shot, probes, kNN, beside random and chance",
        about="Embeds a split with the newest checkpoint and with the same model at "
        "its random initialisation, and judges both by fixed protocols: retrieval "
        "between all pairs, zero-shot classification, linear probes and kNN on every "
        "label column, trained on the split `train`. Prints a table, writes "
        "W/eval.json. With --watch it evaluates checkpoints as they come, until the "
        "run's last one; with --compare it tells evaluated runs apart.",
        example="""
            mmssl eval --workdir runs/mine
            mmssl eval --workdir runs/mine --data data/other --split test
            mmssl eval --workdir runs/mine --protocols retrieval,svm,fractions
            mmssl eval --watch runs/mine
            mmssl eval --compare runs/plain-0 runs/plain-1 runs/new-0 runs/new-1
        """,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="W", help="a trained run")
    which.add_argument("--watch", metavar="W", help="a run that may be training")
    which.add_argument(
        "--compare",
        metavar="W",
        nargs="+",
        help="evaluated runs, the baseline first; those of one config are its seeds",
    )
    parser.add_argument(
        "--data", metavar="DIR", help="another dataset than the run's own"
    )
    parser.add_argument(
        "--split", metavar="S", help="default: the config's evals.split"
    )
    parser.add_argument(
        "--protocols",
        metavar="NAME,...",
        help="retrieval, zero_shot, probe, knn, svm, low_rank, fractions, multilabel; "
        "default: retrieval,zero_shot,probe,knn, without probe and knn where there is "
        "no training split",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="the running average of the parameters, of a run that keeps one",
    )
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        help="with --watch: how long to wait for a run that gives no sign of life; "
        "default: 600",
    )


def evaluate(arguments: argparse.Namespace) -> None:
    from mmssl import evaluate_runs
    from mmssl.errors import UserError
    from mmssl.evals import evaluate as room
    from mmssl.train import compilation

    options = {
        "data": arguments.data,
        "split": arguments.split,
        "ema": arguments.ema,
    }
    if arguments.patience is not None and not arguments.watch:
        raise UserError("--patience is how long --watch waits: give it with --watch W")
    if arguments.compare:
        if any(options.values()) or arguments.protocols:
            raise UserError(
                "--compare reads what was evaluated: it takes no --data, --split, "
                "--protocols or --ema"
            )
        print(compared(evaluate_runs.compare_runs(arguments.compare)))
        return
    options["protocols"] = None
    if arguments.protocols:
        names = arguments.protocols.split(",")
        options["protocols"] = room.check_protocols(names, "--protocols")
    compilation.keep_compiled()
    if arguments.watch:
        if arguments.patience is not None:
            options["patience"] = arguments.patience
        for result in evaluate_runs.watch(arguments.watch, **options):
            print(f"step {result['step']}: {room.summary(result)}", flush=True)
        print(f"evaluated to its end: {pathlib.Path(arguments.watch) / 'eval.jsonl'}")
        return
    result = evaluate_runs.evaluate_run(arguments.workdir, **options)
    _show(result, arguments.workdir)


def _show(result: dict[str, Any], workdir: str) -> None:
    from mmssl.evals import evaluate as room
    from mmssl.workdir import EVAL

    print(evaluated(room.table_rows(result)))
    for name in room.PROTOCOLS:
        if reason := result.get(name, {}).get("skipped"):
            print(f"\n{name}: skipped: {reason}")
    if found := result["coverage"]:
        print(f"\nclips found of the published set: {manifest.coverage(found)}")
        if part := found.get("slice"):
            print(f"judged: the slice {part!r} of them")
    print(
        f"\nstep {result['step']}, {result['data']}, split {result['split']!r}: "
        f"{pathlib.Path(workdir) / EVAL}\n"
        f"next: mmssl report --workdir {workdir}"
    )


def evaluated(rows: Sequence[Any]) -> str:
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


def compared(rows: Sequence[Any]) -> str:
    """A block per metric and case, a line per group of runs."""
    lines, before = [], None
    for row in rows:
        seeds = "" if row.least == row.most else _span(row, row.least, row.most)
        difference = (
            ("", "")
            if row.difference is None
            else (
                _signed(row, row.difference),
                f"[{_signed(row, row.low)}, {_signed(row, row.high)}]",
            )
        )
        case = f"{row.case} {row.metric}"
        lines.append(
            (
                "" if case == before else case,
                row.group,
                _shown(row.metric, row.mean),
                seeds,
                *difference,
                row.n,
            )
        )
        before = case
    header = ("", "runs", "mean", "of seeds", "difference", "95% interval", "clips")
    return (
        f"{commands.table(lines, header=header)}\n\n"
        "Differences to the first line of each block, clip by clip; intervals by "
        "paired bootstrap\nover clips. One that holds 0 does not tell them apart."
    )


def _span(row: Any, low: float, high: float) -> str:
    return f"{_shown(row.metric, low)} to {_shown(row.metric, high)}"


def _signed(row: Any, value: float) -> str:
    return f"{value:+.3f}" if row.metric == "mrr" else f"{100 * value:+.1f}%"


def _shown(metric: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if metric == "median_rank":
        return f"{value:.1f}"
    if metric in ("mrr", "d_prime"):
        return f"{value:.3f}"
    return f"{100 * value:.1f}%"
