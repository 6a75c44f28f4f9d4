"""What a train step costs on paper: FLOPs by formula, and what chips can do.

Model FLOPs are those of the mathematics: the products of one forward pass and twice
that for its backward. What an implementation computes again (remat, a second forward of
micro-batches, tiles of a loss) or on top (per-sample gradients) is not counted, so that
a model FLOPs utilisation falls where time is spent on it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from mmssl.errors import UserError, nearest
from mmssl.experiment import Experiment
from mmssl.objectives.contrastive import CrossModalContrast
from mmssl.objectives.fine_grained import FineGrained


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator, by its maker's figures; bytes per second go one way.

    Attributes:
      kind: pattern of `jax.Device.device_kind`.
      flops: dense bfloat16 FLOPs per second.
      memory: bytes of HBM.
      memory_speed: bytes per second of HBM.
      island: chips joined by the fast links: a TPU pod, a GPU node.
      link_speed: bytes per second that a chip sends over its fast links, all together.
      network_speed: bytes per second of a chip's share of the network between islands.
    """

    kind: str
    flops: float
    memory: float
    memory_speed: float
    island: int
    link_speed: float
    network_speed: float


# Sources. TPU: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; "bidirectional" bandwidths are
# halved, those of a pod's network divided by its chips. A100, H100, H200 SXM: NVIDIA's
# data sheets, without sparsity; network: one ConnectX adapter per GPU as in DGX, of
# 200 Gb/s (A100) or 400 Gb/s.
CHIPS = {
    "v5e": Chip("TPU v5 ?(lite|e)", 197e12, 16e9, 819e9, 256, 200e9, 3.125e9),
    "v5p": Chip("TPU v5p?", 459e12, 95 * 2**30, 2765e9, 8960, 600e9, 6.25e9),
    "v6e": Chip("TPU v6 ?(lite|e)", 918e12, 32e9, 1600e9, 256, 400e9, 12.5e9),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2039e9, 8, 300e9, 25e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 8, 450e9, 50e9),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 8, 450e9, 50e9),
}
"""By the name that `--topology` uses."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device; None where its figures are not known."""
    for chip in CHIPS.values():
        if re.fullmatch(chip.kind, device_kind):
            return chip
    return None


def topology(name: str) -> tuple[Chip, int]:
    """`v5e-256` or `h100x64` -> (chip, number of chips).

    Raises:
      UserError: another form, or a chip that is not in `CHIPS`.
    """
    found = re.fullmatch(r"([a-z]\w*?)[-x](\d+)", name.lower())
    if not found or int(found[2]) < 1:
        raise UserError(
            f"topology {name!r}: expected a chip and how many, like v5e-256 or h100x64"
        )
    if found[1] not in CHIPS:
        raise UserError(
            f"topology {name!r}: no figures of chip {found[1]!r}"
            f"{nearest(found[1], CHIPS)} (known: {', '.join(CHIPS)})"
        )
    return CHIPS[found[1]], int(found[2])


def peak_flops(devices: Any = None) -> float:
    """FLOPs per second of all devices together, by default this run's; 0 = not known.

    Args:
      devices: as `jax.devices()`.
    """
    devices = jax.devices() if devices is None else devices
    chips = [chip_of(device.device_kind) for device in devices]
    known = [chip.flops for chip in chips if chip is not None]
    return sum(known) if len(known) == len(chips) else 0.0


# -- FLOPs -----------------------------------------------------------------------------


def step_flops(experiment: Experiment) -> float:
    """Model FLOPs of one train step on the config's global batch."""
    return sum(step_flops_by_part(experiment).values())


def step_tokens(experiment: Experiment) -> int:
    """Tokens that the encoder reads in one train step, aggregation tokens left out."""
    model = experiment.model
    return experiment.config["batch"] * sum(
        (spec.candidates or 1) * model.keep.get(name, spec.tokens)
        for name, spec in model.specs.items()
    )


def step_flops_by_part(experiment: Experiment) -> dict[str, float]:
    """The same by part: `video/embedding`, `video/blocks`, ..., `heads`, `losses`."""
    model, batch = experiment.model, experiment.config["batch"]
    parts: dict[str, float] = {}
    for name, spec in model.specs.items():
        rows = batch * (spec.candidates or 1)
        tokens = model.keep.get(name, spec.tokens)
        embedding, blocks, attention = _tower_flops(model.module, name, tokens)
        parts[f"{name}/embedding"] = rows * embedding
        parts[f"{name}/blocks"] = rows * blocks
        parts[f"{name}/attention"] = rows * attention
    vectors = {n: batch * (spec.candidates or 1) for n, spec in model.specs.items()}
    parts["heads"] = parts["losses"] = 0.0
    for objective in experiment.objectives.values():
        if isinstance(objective, CrossModalContrast):
            heads, losses = _contrast_flops(objective, model.widths, vectors)
        elif isinstance(objective, FineGrained):
            heads, losses = _token_flops(objective, model, vectors)
        else:
            continue
        parts["heads"] += heads
        parts["losses"] += losses
    return parts


def _tower_flops(module: Any, name: str, tokens: int) -> tuple[float, float, float]:
    """(embedding and pooling, weights of blocks, attention) per row, with backward."""
    spec, size = module.specs[name], module.sizes[name]
    d, mlp, layers = size["width"], size["mlp"], size["layers"]
    t = tokens + 1  # the aggregation token
    # A first layer's input needs no gradient: one product less.
    if spec.vocab:
        words = module.word_width or d
        first = (2 if module.frozen_words else 3) * 2 * words * d
        embedding = first * (tokens if module.shared else t)
    else:
        embedding = 2 * 2 * tokens * spec.channels * d
        embedding += 3 * 2 * tokens * d * d if module.shared else 0
    if module.shared:
        embedding += 3 * 2 * d * (module.post_width or d)
    blocks = 3 * 2 * t * (4 * d * d + 2 * d * mlp) * layers
    attention = 3 * 2 * 2 * t * t * d * layers
    return float(embedding), float(blocks), float(attention)


def _contrast_flops(
    objective: CrossModalContrast, widths: Mapping[str, int], vectors: dict[str, int]
) -> tuple[float, float]:
    """(heads, similarities), with backward; `vectors` counts rows and candidates."""
    heads: Any = objective.heads
    made: dict[tuple[str, str], int] = {("", m): w for m, w in widths.items()}
    total = 0
    for chain in heads.chains.values():
        width = made[chain.source, chain.modalities[0]]
        for linear in chain.linears:
            rows = sum(vectors[m] for m in chain.modalities)
            total += 3 * 2 * rows * width * linear.features
            width = linear.features
        made |= {(chain.space, m): width for m in chain.modalities}
    pairs = 0
    for pair in objective.terms():
        one, other = pair.modalities
        pairs += 3 * 2 * vectors[one] * vectors[other] * made[pair.space, one]
    return float(total), float(pairs)


def _token_flops(
    objective: FineGrained, model: Any, vectors: dict[str, int]
) -> tuple[float, float]:
    """(projections, similarities of tokens), with backward."""
    tokens = {n: model.keep.get(n, spec.tokens) for n, spec in model.specs.items()}
    width = objective.features
    project = match = 0
    for pair in objective.terms():
        sides = {m: vectors[m] * tokens[m] for m in (pair.x, pair.y)}
        channels = {m: objective.channels(m, model.widths) for m in sides}
        project += sum(3 * 2 * sides[m] * channels[m] * width for m in sides)
        match += 3 * 2 * width * math.prod(sides.values())
    return float(project), float(match)
