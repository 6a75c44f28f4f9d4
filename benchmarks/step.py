"""The train step on synthetic batches, and what the seam of cotangents costs it.

    python benchmarks/step.py --out step.json

The other arm is the same step with one `jax.value_and_grad` of the summed losses in
place of one cotangent per loss.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import harness
import jax
import numpy as np
from harmonize_arms import VOCAB, synthetic

from mmssl import check
from mmssl import config as config_lib
from mmssl.data import device
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.gradients import Backward, Harmonizer, Tower
from mmssl.gradients.cotangents import LossFn
from mmssl.parallel import mesh as mesh_lib
from mmssl.train import step as step_lib
from mmssl.types import RawBatch

CONFIG = harness.ROOT / "configs" / "demo.py"
QUICK = (
    "--config.batch=8",
    "--config.model.size={'layers': 1, 'width': 64, 'mlp': 128, 'heads': 2}",
)


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "step",
        about="Time, compile time and FLOPs of the train step on synthetic batches, "
        "beside the\nsame step with a plain jax.value_and_grad.",
        example="python benchmarks/step.py --config configs/grid.py "
        "--config.batch=32 --out step.json",
    )
    made.add_argument(
        "--config", metavar="PATH[:ARG]", default=str(CONFIG), help="a recipe"
    )
    made.add_argument("--rounds", metavar="N", type=int, help="default: 20 (quick: 3)")
    return made


def plain_backward(
    towers: Mapping[str, Tower],
    params: Any,
    rows: Any,
    loss_fn: LossFn,
    heads: Any,
    *,
    harmonizer: Harmonizer,
    state: Any,
    step: Any,
    key: Any,
) -> Backward:
    """What `gradients.backward` computes at unit weights, without the seam."""
    del harmonizer, step, key

    def total(params: Any, heads: Any) -> Any:
        encoded = {name: tower.encode(params, rows) for name, tower in towers.items()}
        losses, aux = loss_fn(heads, encoded)
        return sum(losses.values()), (dict(losses), aux)

    gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (value, (losses, aux)), (by_params, by_heads) = gradient(params, heads)
    return Backward(
        params=by_params,
        heads=by_heads,
        total=value,
        losses=losses,
        aux=aux,
        state=state,
        metrics={},
        gram=None,
    )


def synthetic_batch(experiment: Experiment) -> RawBatch:
    """A synthetic one, on the device."""
    raw = synthetic(check.raw_shapes(experiment, experiment.config["batch"]))
    return device.put(raw, mesh_lib.batch_sharding(experiment.mesh))


class Arm:
    """One compiled step with a state of its own."""

    def __init__(self, config: dict[str, Any], *, plain: bool) -> None:
        experiment = Experiment(config)
        experiment.model = experiment.build_model(vocab=VOCAB)
        self.raw = synthetic_batch(experiment)
        self.state = experiment.init_state()
        begin = time.perf_counter()
        if plain:
            with mock.patch.object(step_lib, "backward", plain_backward):
                lowered = experiment.step.lower(self.state, self.raw)
        else:
            lowered = experiment.step.lower(self.state, self.raw)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin
        self.metrics: dict[str, float] = {}

    @property
    def flops(self) -> float:
        """As the compiler counts them; NaN where it does not."""
        cost = self.compiled.cost_analysis() or {}
        return float(cost.get("flops", np.nan))

    def first(self) -> dict[str, float]:
        """Takes the first step; returns its metrics."""
        self.state, out = self.compiled(self.state, self.raw)
        return {k: float(v) for k, v in out.metrics.items()}

    def __call__(self) -> None:
        self.state, out = self.compiled(self.state, self.raw)
        jax.block_until_ready((self.state, out))


def check_equal(seam: dict[str, float], plain: dict[str, float]) -> None:
    """Raises where the two arms do not compute the same gradient."""
    for name in ("loss", "grad_norm"):
        if not np.isclose(seam[name], plain[name], rtol=1e-2):
            raise UserError(
                f"{name} of the first step: {seam[name]} through the seam, "
                f"{plain[name]} without; the benchmark needs unit weights "
                "(harmonizer.weighting='sum')"
            )


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """Rounds of: the step, then the plain step."""
    quick = arguments.quick
    rounds = arguments.rounds or (3 if quick else 20)
    small = QUICK if quick else ()
    # Compiling is all that a quick run does.
    jax.config.update("jax_disable_most_optimizations", quick)
    config = config_lib.load(arguments.config, [*small, *arguments.overrides])
    arms = {"seam": Arm(config, plain=False), "plain": Arm(config, plain=True)}
    check_equal(arms["seam"].first(), arms["plain"].first())
    times = harness.interleave(arms, rounds=rounds, warmup=1 if quick else 5)
    batch = config["batch"]
    rate = [batch / s for s in times["seam"]]
    compiling = {n: arm.compile_seconds for n, arm in arms.items()}
    flops = {n: arm.flops for n, arm in arms.items()}
    ratio = harness.ratios(times["seam"], times["plain"])
    summary = {
        "step_seconds": harness.spread(times["seam"], unit="s"),
        "samples_per_second": harness.spread(rate, unit="1/s"),
        "compile_seconds": harness.spread([compiling["seam"]], unit="s"),
        "seam_over_plain": harness.spread(ratio),
        "seam_over_plain_flops": harness.spread([flops["seam"] / flops["plain"]]),
    }
    settings = {
        "config": os.path.basename(arguments.config),
        "model": config["model"],
        "objectives": config["objectives"],
        "batch": batch,
        "rounds": rounds,
    }
    details = {"seconds": times, "flops": flops, "compile_seconds": compiling}
    return harness.Measured(summary, settings, details)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
