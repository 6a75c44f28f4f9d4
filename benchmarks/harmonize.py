"""What the harmonized train step costs beside the plain one, engine by engine.

    python benchmarks/harmonize.py --out harmonize.json

Every arm is the whole train step: tokens, encoder, heads, two losses, backward,
optimizer. The plain step adds its losses up and pulls one cotangent back; the others
make PCGrad of every sample's two gradients. A ratio is that of an arm to the plain one.

FLOPs are XLA's count for that whole step at VATT's full shapes, float32, nothing
allocated. Unrolled, a step is affine in the depth of the encoder, so two depths give
all others.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from typing import Any
from unittest import mock

import harness
import jax
import numpy as np
from harmonize_arms import (
    BRIEF,
    MAIN,
    QUICK,
    SHAPES,
    SUBSET,
    TOLERANT,
    Shape,
    Step,
    arms,
    pcgrad,
    vatt,
)

from mmssl import gradients, models, trees
from mmssl.errors import UserError
from mmssl.gradients import harmonize as seam
from mmssl.parallel import traffic

DEVICES = 8
BATCHES = (64, 128, 256, 512)


# -- FLOPs -----------------------------------------------------------------------------


QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def flops(
    size: str, harmonizer: gradients.Harmonizer, *, batch: int = 16, compiled: bool
) -> float:
    """Of one train step of VATT-MA, all layers.

    Args:
      size: name of a preset.
      harmonizer: makes the arm.
      batch: rows.
      compiled: count after XLA's simplifications, which merge what an engine computes
        twice; False = in the lowered program, which needs no compiler.
    """
    one, two = (
        Step(vatt(size, layers=n), harmonizer, batch=batch).lowered for n in (1, 2)
    )
    if compiled:
        one, two = (lowered.compile(QUICKLY) for lowered in (one, two))
    first, second = (stage.cost_analysis()["flops"] for stage in (one, two))
    return first + (models.SIZES[size]["layers"] - 1) * (second - first)


def flops_ratios(
    size: str, names: Iterable[str], *, compiled: bool = False
) -> dict[str, float]:
    """Arm to FLOPs over those of the plain step."""
    chosen = {name: h for name, h in arms(16).items() if name in names}
    counted = {n: flops(size, h, compiled=compiled) for n, h in chosen.items()}
    plain = counted.pop("plain")
    return {name: count / plain for name, count in counted.items()}


def part_flops(quick: bool, rounds: int) -> harness.Measured:
    """Ratios at VATT-Base, and Medium."""
    del rounds
    summary = {}
    for size, end in (("base", ""), ("medium", "_medium")):
        if quick and end:
            continue
        names = MAIN if quick else arms(16)
        ratios = flops_ratios(size, names, compiled=not quick)
        own = {f"flops_ratio_{n}{end}": harness.spread([r]) for n, r in ratios.items()}
        summary |= own
    settings = {"tokens": [784, 600, 80], "rows": 16, "compiled": not quick}
    return harness.Measured(summary, {"flops": settings})


# -- time ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    """One table of times: arms that take turns.

    Attributes:
      name: ends the figures' names; the main cell has none.
      shape: name in `SHAPES`.
      batch: rows.
      arms: names in `arms`.
      model: further arguments of `models.build_model`.
      micro_batch: of the harmonized arms.
    """

    name: str
    shape: str
    batch: int
    arms: tuple[str, ...] = MAIN
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    micro_batch: int = 0


BFLOAT16 = {"dtype": "bfloat16"}
CELLS = {
    "cpu": (
        Cell("", "t362", 8, tuple(arms(8))),
        Cell("_t64_b32", "t64", 32, tuple(arms(32))),
        Cell("_b32", "t362", 32, (*MAIN, "vmap", "materialise")),
        Cell("_b64", "t362", 64),
        Cell("_scan", "t362", 8, model={"scan": True}),
        Cell("_remat", "t362", 8, model={"remat": "full"}),
        Cell("_micro_batch_4", "t362", 8, micro_batch=4),
    ),
    "gpu": (
        Cell("", "base", 32, (*MAIN, "exact_batch", "materialise"), BFLOAT16),
        Cell("_remat_b64", "base", 64, model={**BFLOAT16, "remat": "full"}),
    ),
}
SAME = ("exact", "vmap", "materialise")
"""Arms that compute one and the same gradient."""


def check_equal(first: Mapping[str, Mapping[str, float]], rtol: float) -> None:
    """Raises where arms that must agree do not, in their first step's metrics."""
    expected = first["plain"]["loss"], first["exact"]["grad_norm"]
    for name, metrics in first.items():
        found = metrics["loss"], metrics["grad_norm"]
        if name not in SAME:
            found = found[0], expected[1]
        if not np.allclose(found, expected, rtol=rtol):
            raise UserError(
                f"loss and gradient norm of the first step: {found} with {name!r}, "
                f"expected {expected}; times of different results mean nothing"
            )


def times(cell: Cell, shape: Shape, *, rounds: int) -> tuple[dict, dict]:
    """(summary, details) of one cell."""
    chosen = {name: h for name, h in arms(cell.batch).items() if name in cell.arms}
    if cell.micro_batch:
        chosen |= {
            name: dataclasses.replace(h, micro_batch=cell.micro_batch)
            for name, h in chosen.items()
            if name != "plain"
        }
    steps = {
        name: Step(shape, h, batch=cell.batch, **cell.model)
        for name, h in chosen.items()
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda step: step.compiled, steps.values()))
    initial = steps["plain"].initial()
    first = {name: step.start(*initial) for name, step in steps.items()}
    check_equal(first, 5e-2 if cell.model.get("dtype") == "bfloat16" else 1e-3)
    taken = harness.interleave(steps, rounds=rounds, warmup=2)
    summary: dict[str, Any] = {}
    for name in steps:
        end = f"{name}{cell.name}"
        summary[f"step_seconds_{end}"] = harness.spread(taken[name], unit="s")
        if name == "plain":
            continue
        ratio = harness.ratios(taken[name], taken["plain"])
        memory = steps[name].temporary_bytes / steps["plain"].temporary_bytes
        summary[f"time_ratio_{end}"] = harness.spread(ratio)
        summary[f"memory_ratio_{end}"] = harness.spread([memory])
    if "materialise" in steps:
        for name in ("subset", "exact"):
            ratio = harness.ratios(taken["materialise"], taken[name])
            summary[f"materialise_over_{name}{cell.name}"] = harness.spread(ratio)
    details = {
        "seconds": taken,
        "temporary_bytes": {n: s.temporary_bytes for n, s in steps.items()},
        "compiled_flops": {
            n: s.compiled.cost_analysis()["flops"] for n, s in steps.items()
        },
    }
    return summary, details


def part_time(quick: bool, rounds: int) -> harness.Measured:
    """Step times, and what the arms need beside arguments and results."""
    summary: dict[str, Any] = {}
    details: dict[str, Any] = {}
    backend = jax.default_backend()
    cells = (Cell("", "t64", 8),) if quick else CELLS[backend]
    for cell in cells:
        shape = BRIEF if quick else SHAPES[cell.shape]
        own, details[cell.name or "main"] = times(cell, shape, rounds=rounds)
        summary |= own
    settings = {
        "time": {"cells": [dataclasses.asdict(cell) for cell in cells]},
        "shapes": {name: dataclasses.asdict(shape) for name, shape in SHAPES.items()},
    }
    return harness.Measured(summary, settings, {"time": details})


# -- statistics ------------------------------------------------------------------------


def part_statistics(quick: bool, rounds: int) -> harness.Measured:
    """What the conflict metrics and the audit cost the subset step."""
    shape = QUICK if quick else SHAPES["t362"]
    every = dataclasses.replace(TOLERANT, audit_every=1)
    engines = {"": SUBSET, "_audit_100": TOLERANT, "_audit_1": every}
    steps = {f"subset{n}": Step(shape, pcgrad(e), batch=8) for n, e in engines.items()}
    with mock.patch.object(seam, "summarise", return_value={}):
        steps["subset_silent"] = Step(shape, pcgrad(SUBSET), batch=8)
        _ = steps["subset_silent"].lowered
    initial = steps["subset"].initial()
    for step in steps.values():
        step.start(*initial)
    taken = harness.interleave(steps, rounds=rounds, warmup=2)
    pairs = {
        "statistics_over_none": ("subset", "subset_silent"),
        "audit_not_due_over_none": ("subset_audit_100", "subset"),
        "audit_due_over_none": ("subset_audit_1", "subset"),
    }
    summary = {
        name: harness.spread(harness.ratios(taken[above], taken[below]))
        for name, (above, below) in pairs.items()
    }
    return harness.Measured(summary, {}, {"statistics": {"seconds": taken}})


# -- memory ----------------------------------------------------------------------------


def part_memory(quick: bool, rounds: int) -> harness.Measured:
    """Temporary bytes by batch; nothing is run."""
    del rounds
    shape, batches = (QUICK, (16, 32)) if quick else (SHAPES["t362"], BATCHES)
    chunked = gradients.Exact(chunk=8)
    chosen = {
        **{name: arms(8)[name] for name in (*MAIN, "materialise")},
        "exact_chunk_8": pcgrad(chunked),
        "plain_micro_batch_16": gradients.Harmonizer(micro_batch=16),
        "subset_micro_batch_16": pcgrad(SUBSET, micro_batch=16),
        "exact_micro_batch_16": pcgrad(chunked, micro_batch=16),
    }
    steps = {
        name: {b: Step(shape, h, batch=b) for b in batches}
        for name, h in chosen.items()
    }
    size = 4 * trees.size(steps["plain"][batches[0]].state_shapes.params["shared"])
    found = {
        name: {b: step.temporary_bytes for b, step in by_batch.items()}
        for name, by_batch in steps.items()
    }
    found["two_gradients_per_sample"] = {b: 2 * b * size for b in batches}
    summary = {}
    for name, by_batch in found.items():
        more = (by_batch[batches[-1]] - by_batch[batches[0]]) / 2**20
        summary[f"memory_{name}"] = {
            **{f"b{b}": round(count / 2**20) for b, count in by_batch.items()},
            "per_sample": round(more / (batches[-1] - batches[0]), 2),
            "unit": "MiB",
        }
    return harness.Measured(summary, {}, {"memory": found})


# -- collectives -----------------------------------------------------------------------


def moved(text: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective in a compiled program."""
    total: dict[str, int] = {}
    for found in map(traffic.instruction, text.splitlines()):
        if found:
            kind, size = found
            total[kind] = total.get(kind, 0) + size
    return total


def collectives(quick: bool) -> dict[str, dict[str, int]]:
    """Arm to bytes by kind, per step, on simulated devices; in a process of its own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_disable_most_optimizations", True)
    batch = 2 * DEVICES
    chosen = arms(batch)
    del chosen["exact_group_8"]  # more than a device has
    chosen["subset_audit"] = pcgrad(TOLERANT)
    chosen["exact_chunk_8"] = pcgrad(gradients.Exact(chunk=8))
    if quick:
        chosen = {name: chosen[name] for name in MAIN}
    cells = [(name, "data", h) for name, h in chosen.items()]
    cells += [(f"{name}_fsdp", "fsdp", chosen[name]) for name in MAIN]
    return {
        name: moved(Step(QUICK, h, batch=batch, mesh=axis).compiled.as_text())
        for name, axis, h in cells
    }


def part_collectives(quick: bool, rounds: int) -> harness.Measured:
    """Bytes that cross between devices, beside the plain step's."""
    del rounds
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(collectives, quick).result()
    total = {name: sum(by_kind.values()) for name, by_kind in found.items()}
    plain = {end: total.pop(f"plain{end}") for end in ("", "_fsdp")}
    summary = {
        f"collective_bytes_plain{end}": harness.spread([count], unit="B")
        for end, count in plain.items()
    }
    for name, count in total.items():
        more = count - plain["_fsdp" if name.endswith("_fsdp") else ""]
        summary[f"collective_bytes_{name}_minus_plain"] = harness.spread(
            [more], unit="B"
        )
    return harness.Measured(summary, {}, {"collectives": found})


# -- the benchmark ---------------------------------------------------------------------

PARTS: dict[str, harness.Part] = {
    "flops": part_flops,
    "time": part_time,
    "statistics": part_statistics,
    "memory": part_memory,
    "collectives": part_collectives,
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "harmonize",
        about="FLOPs, time, memory and collectives of the harmonized train step beside "
        "the plain one.",
        example="python benchmarks/harmonize.py --part flops time --out harmonize.json",
    )
    harness.add_parts(
        made,
        PARTS,
        default="all (quick: flops and time)",
        rounds="10 (quick: 5)",
    )
    return made


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """The parts one after the other."""
    rounds = 5 if arguments.quick else 10
    names = ("flops", "time") if arguments.quick else tuple(PARTS)
    return harness.measure_parts(PARTS, arguments, names=names, rounds=rounds)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
