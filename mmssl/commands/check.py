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
        "config, and one real batch run through the losses. With --topology, the "
        "step is compiled for those chips on simulated CPUs instead: sharding errors, "
        "memory per device, collectives, and an estimate of the step's time.",
        example="""
            mmssl check --config configs/demo.py --config.data.path=data/mine
            mmssl check --config configs/vatt_ma_medium.py --no-data
            mmssl check --config configs/vatt_ma_medium.py --no-data \\
                --topology v5e-256
        """,
    )
    add_config(parser)
    parser.add_argument(
        "--no-data",
        action="store_true",
        help="open neither dataset nor tokenizer",
    )
    parser.add_argument(
        "--topology",
        metavar="CHIP-N",
        help="compile for that many chips, like v5e-256 or h100x64; nothing is run",
    )


def check(arguments: argparse.Namespace) -> None:
    from mmssl import check as room
    from mmssl import config as config_lib
    from mmssl import experiment as experiment_lib

    if arguments.topology:
        from mmssl import ahead, costs

        chip, count = costs.topology(arguments.topology)
        ahead.simulate(count)
    config = config_lib.load(arguments.config, arguments.overrides)
    experiment = experiment_lib.Experiment(config)
    if arguments.no_data:
        room.without_data(experiment)
    else:
        rows = room.dataset_rows(experiment)
        print(commands.table(rows, header=("dataset", "weight", "split", "rows")))
        if experiment.tokenizer is not None:
            size = experiment.tokenizer.vocab_size
            print(f"tokenizer {experiment.tokenizer_path}: {size} ids")
        print()
    _print_model(room, experiment)
    _print_harmonizer(room, experiment)
    _print_memory(room, experiment)
    if arguments.topology:
        _print_forecast(ahead.forecast(experiment, chip), arguments.topology)
        return
    if arguments.no_data:
        if experiment.view_kwargs["text"] is not None:
            vocab = experiment.model.specs["text"].vocab
            print(f"\nno tokenizer was opened: {vocab} text ids are assumed")
        return
    _print_batch(room.real_batch(experiment))


def _print_model(room: Any, experiment: Any) -> None:
    facts = experiment.model.describe()
    shapes = room.raw_shapes(experiment, experiment.config["batch"]).media
    rows = [
        (
            name,
            "x".join(map(str, shapes[name].shape)),
            "x".join(map(str, what["grid"])),
            what["tokens"],
            what["kept_in_training"],
            what["pooled_width"],
        )
        for name, what in facts["modalities"].items()
    ]
    head = ("modality", "batch", "grid", "tokens", "in training", "pooled")
    print(commands.table(rows, header=head))
    heads = {f"heads/{k}": n for k, n in room.head_parameters(experiment).items()}
    parts = {**facts["parts"], **heads}
    counted = [(name, f"{count:,}") for name, count in parts.items()]
    print("\n" + commands.table(counted, header=("part", "parameters")))
    trained = facts["parameters"] - facts["frozen"]
    frozen = f" ({facts['frozen']:,} of them frozen)" if facts["frozen"] else ""
    print(
        f"encoder {facts['parameters']:,} parameters{frozen}, heads "
        f"{sum(heads.values()):,}; trained {trained + sum(heads.values()):,}"
    )


def _print_harmonizer(room: Any, experiment: Any) -> None:
    found = experiment.harmonizer
    rows = [("weighting", repr(found.weighting))]
    if found.reads_gramian:
        group = {1: "each sample", 0: "the whole batch"}
        rows.append(("engine", type(found.engine).__name__))
        count = room.compared(experiment)
        if count is not None:
            rows.append(("compared", "{:,} of {:,} parameters in scope".format(*count)))
        rows.append(("of", group.get(found.group, f"groups of {found.group} samples")))
    curriculum = found.curriculum
    if curriculum is not None:
        end = "" if curriculum.ramp == "constant" else f" to {curriculum.end or 0.0}"
        last = curriculum.begin + curriculum.steps
        span = f"{curriculum.ramp}, steps {curriculum.begin:,} to {last:,}"
        level = f"{curriculum.start}{end} ({span})"
        rows.append(("curriculum", f"{curriculum.rule} {level}"))
    if found.trim is not None:
        last = found.trim.begin + found.trim.steps
        span = f"linear, steps {found.trim.begin:,} to {last:,}"
        shares = ", ".join(f"{s:.0%} of {n}" for n, s in found.trim.share.items())
        rows.append(("trim", f"0 to {shares} ({span})"))
    if found.micro_batch:
        rows.append(("micro-batch", f"{found.micro_batch} samples"))
    print("\n" + commands.table(rows, header=("harmonizer", "")))


def _print_memory(room: Any, experiment: Any) -> None:
    found = room.memory(experiment)
    rows = [
        ("state: parameters, optimizer", _size(found.state)),
        ("gradients", _size(found.gradients)),
        ("activations, at most", _size(found.activations)),
        ("gradients per sample, at most", _size(found.harmonizer)),
        ("batch", _size(found.batch)),
        ("together", _size(found.total)),
    ]
    mesh = dict(experiment.mesh.shape)
    batch = experiment.config["batch"]
    print(f"\nmemory per device, mesh {mesh}, global batch {batch}:")
    print(commands.table(rows))


def _print_forecast(found: Any, name: str) -> None:
    from mmssl.parallel import traffic

    print(
        f"\n{name}: compiled for {found.devices} simulated CPU devices in "
        f"{found.compile_seconds:.0f} s; nothing was run"
    )
    together = found.arguments + found.temporary
    share = together / found.chip.memory
    rows = [
        ("state and batch", _size(found.arguments)),
        ("everything else, at most", _size(found.temporary)),
        ("together", f"{_size(together)}, {share:.0%} of a chip's memory"),
    ]
    print("\n" + commands.table(rows, header=("compiled, per device", "")))
    kinds = traffic.by_kind(found.collectives)
    moved = [(kind, times, _size(round(n))) for kind, (times, n) in kinds.items()]
    head = ("collective", "per step", "sent by a device, at most")
    print("\n" + commands.table(moved, header=head) if moved else "\nno collectives")
    least, most = found.step_seconds
    rows = [
        ("compute", f"{found.compute_seconds * 1e3:.3g} ms"),
        ("links within an island", f"{found.link_seconds * 1e3:.3g} ms"),
        ("network between islands", f"{found.network_seconds * 1e3:.3g} ms"),
        (
            "step",
            f"{least * 1e3:.3g} ms if all overlap, {most * 1e3:.3g} ms if none do",
        ),
    ]
    print(
        f"\n{found.flops / 1e12:.4g} TFLOP per step (the model's; see docs/scaling.md)"
    )
    print(commands.table(rows, header=("estimate at peak speeds", "")))
    print("an estimate, not a measurement: real steps reach 30 to 60% of the peak")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _print_batch(found: Any) -> None:
    rows = [
        (name, f"{count}/{found.rows}", *(f"{x:.3g}" for x in found.ranges[name]))
        for name, count in found.present.items()
    ]
    print(f"\none real batch of {found.rows} rows:")
    print(commands.table(rows, header=("modality", "present", "min", "max")))
    if found.faults:
        print(f"faults: {', '.join(f'{k} {n}' for k, n in found.faults.items())}")
    for text in found.texts:
        print(f"text: {text!r}")
    losses = [(k, v) for k, v in found.metrics.items() if k.startswith("loss")]
    losses.append(("grad_norm", found.metrics["grad_norm"]))
    print("\n" + commands.table(losses, header=("one step from scratch", "value")))
    print("\nok")
