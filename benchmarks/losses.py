"""Contrastive losses over the whole batch: tiles and ring beside the dense loss.

    python benchmarks/losses.py --out losses.json

Loss and gradient of one pair of modalities, embeddings given: the logits of all pairs
at once (`chunk=None`), or in tiles that the backward pass computes again. Bytes are
those of the compiled program, arguments and results included.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harmonize import moved

from mmssl.errors import UserError
from mmssl.objectives import losses
from mmssl.parallel import mesh as mesh_lib

WIDTH = 512
CHUNK = 512
FORMS = {"nce": ("official", 1), "mil_nce": ("official", 5), "sigmoid": ("sigmoid", 1)}
"""Name of an arm to (form, candidates per sample)."""
DEVICES = 8


def loss(form: str, chunk: int | None, x: Any, y: Any, mask: Any, ids: Any) -> Any:
    """Mean loss of one pair; everything is present."""
    made = losses.FORMS[form]
    terms = losses.pair_terms(
        x,
        y,
        x_mask=mask[:, 0],
        y_mask=mask,
        example_id=ids,
        temperature=0.07,
        bias=jnp.float32(-10.0) if made.learned else None,
        reduction=made.reduction,
        chunk=chunk,
    )
    return losses.masked_mean(made.loss(terms), terms.valid)


def shapes(batch: int, candidates: int, sharding: Any = None) -> list[Any]:
    """Of x, y, mask and ids."""
    rows = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    return [
        rows((batch, WIDTH), jnp.float32),
        rows((batch, candidates, WIDTH), jnp.float32),
        rows((batch, candidates), jnp.bool_),
        rows((batch,), jnp.uint32),
    ]


def compiled(form: str, chunk: int | None, arguments: list[Any]) -> Any:
    """Loss and its gradient by both embeddings."""
    f = jax.value_and_grad(functools.partial(loss, form, chunk), argnums=(0, 1))
    return jax.jit(f).lower(*arguments).compile()


def total_bytes(program: Any) -> int:
    """Arguments, results and all between, per device."""
    found = program.memory_analysis()
    return int(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
    )


def example(batch: int, candidates: int) -> list[Any]:
    """Unit vectors, each like its partner."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, WIDTH), np.float32)
    y = x[:, None] + rng.standard_normal((batch, candidates, WIDTH), np.float32)
    x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    mask = np.ones((batch, candidates), bool)
    return [*map(jnp.asarray, (x, y, mask, np.arange(batch, dtype=np.uint32)))]


# -- time ------------------------------------------------------------------------------


def check_equal(dense: Any, tiled: Any, name: str) -> None:
    """Raises where the two arms do not compute the same loss and gradient."""
    for one, other in zip(jax.tree.leaves(dense), jax.tree.leaves(tiled), strict=True):
        scale = float(jnp.abs(one).max())
        if not np.allclose(one, other, rtol=1e-4, atol=1e-4 * scale):
            raise UserError(f"{name}: dense and tiled losses or gradients differ")


def part_time(quick: bool, rounds: int) -> harness.Measured:
    """Tiled over dense, same batch, one device."""
    batches = (512,) if quick else (1024, 2048, 4096)
    chunk = 256 if quick else CHUNK
    summary, details = {}, {}
    for name, (form, candidates) in FORMS.items():
        for batch in batches:
            if batch * candidates > 2 * max(batches):
                continue
            values = example(batch, candidates)
            programs = {
                "dense": compiled(form, None, values),
                "tiled": compiled(form, chunk, values),
            }
            first = {arm: program(*values) for arm, program in programs.items()}
            check_equal(first["dense"], first["tiled"], name)
            arms: dict[str, Callable[[], Any]] = {
                arm: functools.partial(_run, program, values)
                for arm, program in programs.items()
            }
            taken = harness.interleave(arms, rounds=rounds, warmup=2)
            ratio = harness.ratios(taken["tiled"], taken["dense"])
            summary[f"time_ratio_{name}_b{batch}"] = harness.spread(ratio)
            details[f"{name}_b{batch}"] = taken
    settings = {"time": {"width": WIDTH, "chunk": chunk}}
    return harness.Measured(summary, settings, {"seconds": details})


def _run(program: Any, values: list[Any]) -> None:
    jax.block_until_ready(program(*values))


# -- memory ----------------------------------------------------------------------------


def part_memory(quick: bool, rounds: int) -> harness.Measured:
    """How much larger a batch the tiles take in the dense loss's memory."""
    del rounds
    batches = (512,) if quick else (4096, 16384)
    chunk = 256 if quick else CHUNK
    summary: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for name, (form, candidates) in FORMS.items():
        # Affine in the batch: tiles, and what every row keeps.
        one, two = (
            total_bytes(compiled(form, chunk, shapes(k * batches[0], candidates)))
            for k in (1, 2)
        )
        for batch in batches:
            dense = total_bytes(compiled(form, None, shapes(batch, candidates)))
            fits = batches[0] * (1 + (dense - one) / (two - one))
            summary[f"batch_ratio_{name}_b{batch}"] = harness.spread([fits / batch])
            details[f"{name}_b{batch}"] = {"dense": dense, "tiled_fits": round(fits)}
        details[name] = {f"tiled_b{k * batches[0]}": x for k, x in ((1, one), (2, two))}
    settings = {"memory": {"width": WIDTH, "chunk": chunk, "batches": list(batches)}}
    return harness.Measured(summary, settings, {"memory": details})


# -- ring ------------------------------------------------------------------------------


def ring(rows: int) -> dict[str, Any]:
    """Bytes on simulated devices, in a process of its own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_disable_most_optimizations", True)
    found: dict[str, Any] = {}
    for devices in (2, DEVICES):
        mesh = mesh_lib.make_mesh({"data": devices}, devices=jax.devices()[:devices])
        arguments = shapes(rows * devices, 1, mesh_lib.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            for name, chunk in (("ring", CHUNK), ("dense", None)):
                program = compiled("official", chunk, arguments)
                found[f"{name}_{devices}"] = {
                    "memory": total_bytes(program),
                    "moved": moved(program.as_text()),
                }
    return found


def part_ring(quick: bool, rounds: int) -> harness.Measured:
    """Bytes per device as devices are added, rows per device the same."""
    del rounds
    rows = 64 if quick else 512
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(ring, rows).result()
    summary = {}
    for name in ("ring", "dense"):
        more = found[f"{name}_{DEVICES}"]["memory"] / found[f"{name}_2"]["memory"]
        summary[f"memory_{name}_8_devices_over_2"] = harness.spread([more])
        for kind, count in found[f"{name}_{DEVICES}"]["moved"].items():
            figure = harness.spread([count], unit="B")
            summary[f"moved_{name}_{kind.replace('-', '_')}"] = figure
    settings = {"ring": {"width": WIDTH, "rows_per_device": rows}}
    return harness.Measured(summary, settings, {"ring": found})


# -- the benchmark ---------------------------------------------------------------------

PARTS: dict[str, harness.Part] = {
    "time": part_time,
    "memory": part_memory,
    "ring": part_ring,
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "losses",
        about="Time and memory of the contrastive losses in tiles and round a ring, "
        "beside the\ndense loss.",
        example="python benchmarks/losses.py --part time --out losses.json",
    )
    harness.add_parts(made, PARTS, default="all", rounds="10 (quick: 3)")
    return made


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """The parts one after the other."""
    rounds = 3 if arguments.quick else 10
    return harness.measure_parts(PARTS, arguments, names=tuple(PARTS), rounds=rounds)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
