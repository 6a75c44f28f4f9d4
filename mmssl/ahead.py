"""A config's train step compiled for a mesh that is not there, on simulated CPUs.

What XLA makes of the step for CPUs is not what it makes of it for accelerators: the
sharding and the collectives are decided before the two part, but CPUs compute bfloat16
in float32 and sum gradients by all-reduce where accelerators scatter the sum. So bytes
found here are at most about twice those of an accelerator.
"""

import dataclasses
import time

import jax

from mmssl import check, costs
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.parallel import traffic

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""The program will not run: machine code need not be good."""


def simulate(devices: int) -> None:
    """Makes this process one of so many CPU devices; before JAX looks for any.

    Raises:
      UserError: JAX has found its devices already, another number of them.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        if jax.device_count() != devices:
            raise UserError(
                f"cannot simulate {devices} devices: this process has "
                f"{jax.device_count()} already; use a new process"
            ) from error


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What one step of a config would cost on a topology.

    Attributes:
      chip: its figures.
      devices: how many.
      compile_seconds: here, tracing included.
      arguments: bytes per device of state and batch.
      temporary: bytes per device beside them; the new state takes the old one's place.
      collectives: of one step.
      flops: model FLOPs of one step, all devices.
    """

    chip: costs.Chip
    devices: int
    compile_seconds: float
    arguments: int
    temporary: int
    collectives: list[traffic.Collective]
    flops: float

    @property
    def compute_seconds(self) -> float:
        """At the chips' peak: no program reaches it."""
        return self.flops / (self.devices * self.chip.flops)

    @property
    def link_seconds(self) -> float:
        """Of what stays within an island, at its links' peak."""
        inside = [c for c in self.collectives if not c.crosses(self.chip.island)]
        return sum(c.sent for c in inside) / self.chip.link_speed

    @property
    def network_seconds(self) -> float:
        """Of what crosses between islands, at the network's peak."""
        across = [c for c in self.collectives if c.crosses(self.chip.island)]
        return sum(c.sent for c in across) / self.chip.network_speed

    @property
    def step_seconds(self) -> tuple[float, float]:
        """At least: if everything overlaps, and if nothing does."""
        parts = self.compute_seconds, self.link_seconds, self.network_seconds
        return max(parts), sum(parts)


def forecast(experiment: Experiment, chip: costs.Chip) -> Forecast:
    """Lowers and compiles the step for the experiment's mesh; runs nothing.

    Raises:
      UserError: sizes that do not divide over the mesh.
    """
    begin = time.perf_counter()
    raw = check.raw_shapes(experiment, experiment.config["batch"])
    lowered = experiment.step.lower(experiment.abstract_state(), raw)
    compiled = lowered.compile(QUICKLY)
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Forecast(
        chip=chip,
        devices=experiment.mesh.size,
        compile_seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes + results,
        collectives=traffic.collectives(compiled.as_text()),
        flops=costs.step_flops(experiment),
    )
