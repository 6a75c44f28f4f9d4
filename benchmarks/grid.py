"""GRID talking faces: trained, beside random initialisation and chance, over seeds.

    python benchmarks/grid.py --data GRID --workdir runs/bench-grid \\
        --out benchmarks/results/grid.json --markdown

Called again with the same workdir it goes on where it stopped.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import harness

from mmssl import commands, evaluate_runs, runs
from mmssl import config as config_lib
from mmssl import workdir as workdir_lib
from mmssl.data import build, records, tokenizer
from mmssl.errors import UserError
from mmssl.evals import evaluate
from mmssl.train import checkpoint, preemption

CONFIG = harness.ROOT / "configs" / "grid.py"
SPLITS = {"train": 0.9, "test": 0.1}
SOURCE = "source.json"

QUICK_CLIPS = 60
QUICK = (
    "--config.batch=8",
    "--config.evals.batch=16",
    "--config.optim.warmup=5",
    "--config.checkpoint.every=20",
    "--config.log.tensorboard=False",
    "--config.model.size={'layers': 1, 'width': 64, 'mlp': 128, 'heads': 2}",
)

ARMS = (("mean", "**trained**"), ("random", "random"), ("chance", "chance"))
SHORT = {"R@1": "r1", "R@5": "r5", "R@10": "r10"}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "grid",
        about="Trains configs/grid.py on GRID once per seed, 10% of the clips held out "
        "by id,\nand judges retrieval, linear probes and kNN on the held-out clips.",
        example="python benchmarks/grid.py --data GRID --workdir runs/bench-grid "
        "--out grid.json",
    )
    made.add_argument(
        "--data",
        metavar="DIR",
        help="folder with GRID's manifest.jsonl (default: $MMSSL_DATA/grid, or "
        "../shared/data/grid)",
    )
    made.add_argument(
        "--seeds", metavar="N,N,...", type=_seeds, help="default: 0,1,2 (quick: 0)"
    )
    made.add_argument(
        "--steps", metavar="N", type=int, help="default: the config's (quick: 20)"
    )
    made.add_argument(
        "--workdir",
        metavar="W",
        help="keeps the dataset and a run per seed; finished seeds are not trained "
        "again (default: a temporary folder)",
    )
    made.add_argument(
        "--markdown", action="store_true", help="print the tables for a README"
    )
    return made


def _seeds(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"expected each seed once, found {text!r}")
    return found


_seeds.__name__ = "list of whole numbers"


def source_folder(named: str | None) -> pathlib.Path:
    """Where GRID is.

    Raises:
      UserError: no manifest there.
    """
    shared = os.environ.get("MMSSL_DATA") or harness.ROOT / "../shared/data"
    folder = pathlib.Path(named or pathlib.Path(shared) / "grid")
    if not (folder / "manifest.jsonl").is_file():
        raise UserError(
            f"no GRID at {folder}: expected a manifest.jsonl there; give its folder "
            "with --data, or set MMSSL_DATA to the folder that holds grid/"
        )
    return folder.resolve()


def dataset(source: pathlib.Path, out: pathlib.Path, *, clips: int | None) -> None:
    """Builds the dataset and its word tokenizer in `out`, unless they are there.

    Args:
      source: GRID's folder.
      out: a new folder, or one that an earlier call made.
      clips: so many, evenly spaced in the manifest; None: all.

    Raises:
      UserError: `out` was built from other clips.
    """
    rows = (source / "manifest.jsonl").read_text().splitlines()
    if clips is not None:
        rows = rows[:: max(1, len(rows) // clips)]
    mark = {"manifest": hashlib.sha256("\n".join(rows).encode()).hexdigest()}
    if not out.exists():
        with tempfile.TemporaryDirectory(prefix="mmssl-grid-") as folder:
            manifest = pathlib.Path(folder) / "manifest.jsonl"
            absolute = [json.loads(row) for row in rows]
            for row in absolute:
                row["media"] = str(source / row["media"])
            manifest.write_text("".join(json.dumps(row) + "\n" for row in absolute))
            report = build.build(
                manifest=manifest,
                out=out,
                splits=SPLITS,
                progress=commands.counter("clips"),
            )
        print(f"dataset: {report.used} clips, {report.splits}, {report.faults}")
        tokenizer.train_tokenizer(dataset=out, kind="word")
        (out / SOURCE).write_text(json.dumps(mark) + "\n")
        return
    if not (out / SOURCE).is_file() or json.loads((out / SOURCE).read_text()) != mark:
        raise UserError(
            f"{out} was built from other clips or not finished; give another "
            "--workdir, or remove that folder"
        )


def trained(workdir: pathlib.Path, config: Mapping[str, Any]) -> bool:
    """Whether this run is there and has taken all its steps.

    Raises:
      UserError: the folder holds a run of another config.
    """
    if not (workdir / workdir_lib.CONFIG).is_file():
        return False
    remedy = "remove the folder"
    stored = workdir_lib.read(workdir, workdir_lib.CONFIG, remedy=remedy)
    config_lib.check_same_run(stored, config, str(workdir))
    if not (workdir / "checkpoints").is_dir():
        return False
    with checkpoint.Checkpointer(workdir / "checkpoints") as checkpointer:
        return checkpointer.latest() == config["steps"]


def run_seed(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Trains one seed if needed, and evaluates it.

    Returns:
      {"seed", "train_seconds", "hardware" (that trained), "rows": [[section, case,
      metric, trained, random, chance, clips], ...]}.
    """
    if trained(workdir, config):
        print(f"seed {config['seed']}: trained before")
    else:
        summary = runs.train(config, str(workdir))
        if summary.interrupted:
            print(f"stopped at step {summary.step}; the same command resumes")
            sys.exit(preemption.REQUEUE_EXIT_CODE)
    result = evaluate_runs.evaluate_run(
        str(workdir), protocols=("retrieval", "probe", "knn")
    )
    rows = evaluate.table_rows(result)
    seen = workdir_lib.read(workdir, workdir_lib.DATA, remedy="remove the folder")
    return {
        "seed": config["seed"],
        "train_seconds": seen["train_seconds"],
        "hardware": seen["hardware"],
        "rows": [
            [r.section, r.case, r.metric, r.trained, r.random, r.chance, r.n]
            for r in rows
        ],
    }


def figure_name(section: str, case: str, metric: str) -> str:
    """("retrieval", "video->audio", "R@10") -> "video_to_audio_r10"."""
    if section == "retrieval":
        return f"{case.replace('->', '_to_')}_{SHORT.get(metric, metric)}"
    return f"{section}_{case.replace(' ', '_')}"


def aggregate(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Over seeds: mean, min and max of trained, the means of random and of chance.

    Args:
      found: one `run_seed` result per seed.
    """
    columns: dict[str, list[list[float]]] = {}
    for run in found:
        for section, case, metric, *numbers in run["rows"]:
            name = figure_name(section, case, metric)
            columns.setdefault(name, []).append(numbers)
    summary: dict[str, dict[str, Any]] = {}
    for name, rows in columns.items():
        trained, random, chance, n = zip(*rows, strict=True)
        summary[name] = {
            **_over(trained),
            "random": statistics.fmean(random),
            "chance": statistics.fmean(chance),
            "n": int(n[0]),
        }
    seconds = [run["train_seconds"] for run in found]
    summary["train_seconds"] = {**_over(seconds), "unit": "s"}
    return summary


def _over(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def markdown(summary: Mapping[str, Mapping[str, Any]], *, seeds: int) -> str:
    """Tables for a README: mean over seeds (smallest to largest), random, chance."""
    spread = f"mean of {seeds} seeds (min to max)" if seeds > 1 else "one seed"
    cuts = (*SHORT.values(), "median_rank", "mrr")
    lines = [
        f"Retrieval; trained: {spread}.",
        "",
        "| from, to | | clips | R@1 | R@5 | R@10 | median rank | MRR |",
        "|---|---|---|---|---|---|---|---|",
    ]
    pairs = [k.removesuffix("_mrr") for k in summary if k.endswith("_mrr")]
    for pair in pairs:
        figures = {c: summary[f"{pair}_{c}"] for c in cuts}
        start, _, end = pair.partition("_to_")
        n = figures["mrr"]["n"]
        for arm, name in ARMS:
            head = (f"{start} to {end}", n) if arm == "mean" else ("", "")
            cells = [_cell(c, f, arm, seeds) for c, f in figures.items()]
            lines.append(f"| {head[0]} | {name} | {head[1]} | {' | '.join(cells)} |")
    for section, title in (("probe", "Linear probe"), ("knn", "kNN")):
        lines += _accuracies(summary, section, f"{title}, accuracy; {spread}.", seeds)
    return "\n".join(lines)


def _cell(cut: str, figure: Mapping[str, Any], arm: str, seeds: int) -> str:
    def one(value: float) -> str:
        if cut == "median_rank":
            return f"{value:.1f}"
        return f"{value:.3f}" if cut == "mrr" else f"{value:.1%}"

    if arm != "mean" or seeds < 2:
        return one(figure[arm])
    return f"{one(figure['mean'])} ({one(figure['min'])} to {one(figure['max'])})"


def _accuracies(
    summary: Mapping[str, Mapping[str, Any]], section: str, title: str, seeds: int
) -> list[str]:
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, figure in summary.items():
        if name.startswith(f"{section}_"):
            modality, _, column = name.removeprefix(f"{section}_").partition("_")
            cells.setdefault(column, {})[modality] = figure
    modalities = list(dict.fromkeys(m for row in cells.values() for m in row))
    head = " | ".join(f"{m}: trained | random" for m in modalities)
    lines = ["", title, "", f"| label | {head} | chance |"]
    lines.append("|---|" + "---|---|" * len(modalities) + "---|")
    for column, row in cells.items():
        shown = []
        for m in modalities:
            figure = row.get(m)
            for arm in ("mean", "random"):
                shown.append("-" if figure is None else _cell("", figure, arm, seeds))
        chance = next(iter(row.values()))["chance"]
        lines.append(f"| {column} | {' | '.join(shown)} | {chance:.1%} |")
    return lines


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """All seeds."""
    source = source_folder(arguments.data)
    seeds = arguments.seeds or ([0] if arguments.quick else [0, 1, 2])
    steps = arguments.steps or (20 if arguments.quick else None)
    with contextlib.ExitStack() as stack:
        folder = arguments.workdir
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmssl-"))
        work = pathlib.Path(folder) / ("quick" if arguments.quick else "full")
        dataset(source, work / "data", clips=QUICK_CLIPS if arguments.quick else None)
        overrides = [
            f"--config.data.path={work / 'data'}",
            *(QUICK if arguments.quick else ()),
            *([f"--config.steps={steps}"] if steps else []),
            *arguments.overrides,
        ]
        found, config = [], {}
        for seed in seeds:
            each = [*overrides, f"--config.seed={seed}"]
            config = config_lib.load(str(CONFIG), each)
            found.append(run_seed(config, work / f"seed{seed}"))
        splits = records.read_metadata(work / "data")["splits"]
    summary = aggregate(found)
    private = ("seed", "data.path", "data.tokenizer")
    shared = {k: v for k, v in config_lib.flat(config).items() if k not in private}
    text = markdown(summary, seeds=len(seeds)) if arguments.markdown else ""
    return harness.Measured(
        summary=summary,
        settings={"seeds": seeds, "splits": splits, "config": shared},
        details={"runs": found},
        text=text,
    )


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
