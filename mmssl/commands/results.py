"""`mmssl eval | export | report`: what comes out of a workdir."""

import argparse
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mmssl
from mmssl import commands
from mmssl.errors import UserError

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
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the stored weights (default: %(default)s)",
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


def evaluate(arguments: argparse.Namespace) -> None:
    import datetime

    from mmssl.commands import examples, running
    from mmssl.data import sources
    from mmssl.evals import embeddings
    from mmssl.evals import evaluate as room

    workdir, experiment = running.opened(arguments.workdir)
    settings = experiment.config["evals"]
    paths = [arguments.data] if arguments.data else [p for p, _ in experiment.datasets]
    names = {
        "train": settings["train_split"],
        "test": arguments.split or settings["split"],
    }
    parts = {k: [sources.open_dataset(p, s) for p in paths] for k, s in names.items()}
    restored = running.trained(experiment, workdir)
    for warning in restored.warnings:
        print(f"warning: {warning}; using checkpoint {restored.step}", file=sys.stderr)
    embed = running.embedder(experiment)
    show = commands.counter("batches")
    arms = {"trained": restored.state, "random": experiment.init_state()}
    found: dict[str, dict[str, Any]] = {name: {} for name in arms}
    faults: dict[str, dict[str, int]] = {}
    with running.decode_pool(experiment) as pool:
        for part, records in parts.items():
            data = running.evaluation_data(experiment, pool, records)
            for name, state in arms.items():
                batches = running.on_devices(data, experiment)
                counted = _counted(batches, data.steps or 0, show, f"{name}, {part}")
                found[name][part] = embeddings.embed(
                    counted, lambda raw, state=state: embed(state, raw)
                )
            faults[part] = dict(data.faults)
            data.close()
    result = room.evaluate(
        *(room.Arm(**found[name]) for name in ("trained", "random")),
        knn_k=settings["knn_k"],
    )
    about = {
        "step": restored.step,
        "data": paths,
        "splits": names,
        "windows": settings.get("windows", 1),
        "faults": faults,
        "mmssl": mmssl.__version__,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    running.write_json(workdir / "eval.json", {**about, **result})
    chosen = examples.choose(found["trained"]["test"])
    chosen |= {"data": paths, "split": names["test"]}
    running.write_json(workdir / examples.FILE, chosen)
    print(_evaluated(room.table_rows(result)))
    print(f"\n{workdir / 'eval.json'}: step {restored.step}, split {names['test']!r}")


def _counted(
    batches: Iterable[Any], total: int, show: Any, message: str
) -> Iterator[Any]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        show(done, total, message)


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
    from mmssl import config as config_lib
    from mmssl.commands import running, train
    from mmssl.export import safetensors_export as room

    workdir, experiment = running.opened(arguments.workdir)
    config = experiment.config
    restored = running.trained(experiment, workdir)
    state = restored.state
    tokenizer = experiment.tokenizer_path
    info: Any = {
        "name": workdir.resolve().name,
        "command": f"mmssl train --workdir {arguments.workdir}",
        "config": config,
        "step": restored.step,
        "steps": config["steps"],
        "batch": config["batch"],
        "seed": config["seed"],
        "hardware": train.hardware(),
    }
    for key in ("data", "eval"):
        path = workdir / f"{key}.json"
        if path.is_file():
            info[key] = running.stored_config(path)
    if "hardware" in info.get("data", {}):
        info["hardware"] = info["data"]["hardware"]
    written = room.export(
        params=state.params,
        heads={k: (state.heads[k], state.extras[k]) for k in state.heads},
        model_kwargs=config_lib.plain(experiment.model_kwargs()),
        heads_kwargs={
            name: config_lib.plain(experiment.heads_kwargs(name))
            for name in state.heads
        },
        data_kwargs=config_lib.plain(experiment.view_kwargs),
        tokenizer_path=tokenizer,
        run_info=info,
        out=arguments.out,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
    )
    rows = [(name, facts["bytes"]) for name, facts in written["files"].items()]
    print(commands.table(rows, header=(arguments.out, "bytes")))
    print(f"\nstep {restored.step}; in Python: mmssl.load({arguments.out!r})")


def report(arguments: argparse.Namespace) -> None:
    from mmssl.commands import examples, running
    from mmssl.report import build as room

    samples, queries = None, None
    chosen = pathlib.Path(arguments.workdir) / examples.FILE
    if chosen.is_file():
        _, experiment = running.opened(arguments.workdir)
        found = running.stored_config(chosen)
        try:
            with running.decode_pool(experiment) as pool:
                view = running.view(experiment, pool, train=False)
                decoded = _decoded(found, view)
        except UserError as error:
            print(f"warning: no clips in the report: {error}", file=sys.stderr)
        else:
            samples = list(decoded.values())[:8]
            queries = examples.filled(found["queries"], decoded)
    path = room.write_report(arguments.workdir, samples=samples, retrieval=queries)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, opens in any browser")


def _decoded(found: Mapping[str, Any], view: Any) -> dict[str, Any]:
    """The clips that the examples name, by id."""
    from mmssl.commands import examples
    from mmssl.data import sources

    parts = [sources.open_dataset(path, found["split"]) for path in found["data"]]
    decoded = {}
    for id, place in found["clips"].items():
        for part in parts:
            if place < len(part):
                record = part[place]
                if record.id == id:  # the dataset may have been built anew
                    decoded[id] = examples.sample(record, view)
                break
            place -= len(part)
    return decoded
