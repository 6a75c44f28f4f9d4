"""What a config means: shapes, parameters, memory, one real batch; without training.

Numbers come from abstract evaluation, so a pod's model is checked on a laptop.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmssl import rng, streams, trees
from mmssl.data import device
from mmssl.data.pipeline import HostBatch
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.gradients import engines
from mmssl.parallel import mesh as mesh_lib
from mmssl.train.step import StepOutput
from mmssl.types import RawBatch

NOMINAL_VOCAB = 65536
"""Text ids where no tokenizer is opened: the size of VATT's vocabulary."""

ROWS = 32
"""About so many rows of one real batch are run: enough to see whether it works."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device of one step.

    Attributes:
      state: parameters, optimizer, heads and objective state, as checkpoints hold them.
      gradients: as large as the parameters and heads.
      activations: what the encoder keeps for its backward pass, kernels as it computes
        with them among it; an upper bound: a compiler that recomputes or fuses needs
        less.
      harmonizer: per-sample gradients that are compared, an upper bound; 0 where
        nothing reads Gramians.
      batch: raw media.
    """

    state: int
    gradients: int
    activations: int
    harmonizer: int
    batch: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def without_data(experiment: Experiment) -> None:
    """Lets the model be built where there is no tokenizer: `NOMINAL_VOCAB` ids."""
    vocab = (experiment.config["model"].get("text") or {}).get("vocab", NOMINAL_VOCAB)
    experiment.model = experiment.build_model(vocab=vocab)


def raw_shapes(experiment: Experiment, rows: int) -> RawBatch:
    """The media of a batch of `rows`: `jax.ShapeDtypeStruct` in place of arrays."""
    view, tokenizers = experiment.view_kwargs, experiment.model.tokenizers
    media: dict[str, Any] = {}
    for name, tokenizer in tokenizers.items():
        made: Any = tokenizer
        if name == "video":
            shape, dtype = (made.frames, *made.size, 3), jnp.uint8
        elif name == "audio":
            shape, dtype = (made.samples,), jnp.float32
        else:
            shape, dtype = (view["text"]["candidates"], made.length), jnp.int32
        media[name] = jax.ShapeDtypeStruct((rows, *shape), dtype)
    present: dict[str, Any] = dict.fromkeys(
        media, jax.ShapeDtypeStruct((rows,), jnp.bool_)
    )
    ids: Any = jax.ShapeDtypeStruct((rows,), jnp.uint32)
    return RawBatch(media=media, present=present, example_id=ids)


def memory(experiment: Experiment) -> Memory:
    """The estimate per device: its rows of the batch, its shards of the state.

    Raises:
      UserError: the batch does not divide, see `Experiment.check_rows`.
    """
    experiment.check_rows()
    model, state = experiment.model, experiment.abstract_state()
    rows = experiment.config["batch"] // mesh_lib.row_shards(experiment.mesh)
    raw = raw_shapes(experiment, rows)
    harmonizer = experiment.harmonizer
    share = (harmonizer.micro_batch or experiment.config["batch"]) / (
        experiment.config["batch"]
    )
    held = 0
    if harmonizer.reads_gramian:
        groups = max(1, round(rows * share) // (harmonizer.group or rows))
        losses = len(trace(experiment).losses)
        held = losses * harmonizer.engine.held(state.params, groups)

    compute = jnp.dtype(experiment.config["model"].get("dtype", "float32"))

    def kept(rows: int) -> Any:
        """The backward function: activations, and some of the parameters."""

        def residuals(params: Any, raw: RawBatch) -> Any:
            key = jax.random.key(0)
            batch = model.prepare(raw, key=key)
            keys = rng.per_row(key, rows)
            _, backward = jax.vjp(
                lambda p: model.encode(p, batch, keys=keys).pooled, params
            )
            return backward

        raw = raw_shapes(experiment, rows)
        return jax.eval_shape(residuals, state.params, raw)

    def cast(backward: Any) -> list[Any]:
        """Of it, what has the precision of compute where parameters have another."""
        leaves = jax.tree.leaves(backward) if compute != jnp.float32 else []
        return [x for x in leaves if x.dtype == compute]

    one, two = kept(rows), kept(2 * rows)
    # The parameters among them, counted above, do not grow with the rows; nor do their
    # copies in the precision of compute, which come on top; towers that share
    # parameters share the copies.
    copies = 2 * _bytes(cast(one)) - _bytes(cast(two))
    copies = min(copies, trees.size(state.params) * compute.itemsize)
    return Memory(
        state=_bytes(state),
        gradients=_bytes((state.params, state.heads)),
        activations=copies + round((_bytes(two) - _bytes(one)) * share),
        harmonizer=held * jnp.dtype(jnp.float32).itemsize,
        batch=_bytes(raw),
    )


def _bytes(tree: Any) -> int:
    """On one device, where the arrays have shardings."""

    def shape(x: Any) -> tuple[int, ...]:
        sharding = getattr(x, "sharding", None)
        return x.shape if sharding is None else sharding.shard_shape(x.shape)

    return sum(
        int(np.prod(shape(x))) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
        if hasattr(x, "dtype") and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def head_parameters(experiment: Experiment) -> dict[str, int]:
    """Objective name to its heads' parameters."""
    heads = experiment.abstract_state().heads
    return {name: trees.size(params) for name, params in heads.items()}


def compared(experiment: Experiment) -> tuple[int, int] | None:
    """Parameters whose gradients are compared, of those in the engine's scope.

    None where no step compares any, or the engine reads no parameter's gradient.

    Raises:
      UserError: the scope matches no parameter.
    """
    engine: Any = experiment.harmonizer.engine
    params = experiment.abstract_state().params
    seen = engine.compared(params) if experiment.harmonizer.reads_gramian else []
    if not seen:
        return None
    named = trees.named_leaves(params)
    inside = engines.in_scope(params, engine.scope)
    count, whole = (sum(named[n].size for n in names) for names in (seen, inside))
    return count, whole


def trace(experiment: Experiment) -> StepOutput:
    """Traces the train step, which shows what no single part can know.

    Returns:
      The shapes of what it puts out.

    Raises:
      UserError: sizes that do not divide, losses that are not there.
    """
    raw = raw_shapes(experiment, experiment.config["batch"])
    return jax.eval_shape(experiment.step, experiment.abstract_state(), raw)[1]


@dataclasses.dataclass(frozen=True)
class RealBatch:
    """What one batch of the dataset is, and what a step makes of it.

    Attributes:
      rows: of the batch; see `few_rows`.
      present: modality to rows that have it.
      faults: fault class to rows.
      ranges: modality to (smallest, largest) value.
      texts: some texts of the first rows.
      metrics: of one step from the initial state.
    """

    rows: int
    present: dict[str, int]
    faults: dict[str, int]
    ranges: dict[str, tuple[float, float]]
    texts: list[str]
    metrics: dict[str, float]


def few_rows(experiment: Experiment) -> int:
    """The smallest batch from `ROWS` on that divides as the config's; at most that."""
    harmonizer = experiment.harmonizer
    parts = harmonizer.group or 1, harmonizer.micro_batch or 1
    unit = math.lcm(mesh_lib.row_shards(experiment.mesh), *parts)
    return min(experiment.config["batch"], -(-ROWS // unit) * unit)


def real_batch(experiment: Experiment) -> RealBatch:
    """Reads one training batch and takes one step with it; keeps neither.

    Raises:
      UserError: the dataset does not fit the config, or the loss is not finite.
    """
    rows = few_rows(experiment)
    small = Experiment({**experiment.config, "batch": rows})
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(streams.open_pool(small))
        stream = streams.train_pipeline(small, pool)
        stack.callback(stream.close)
        found: HostBatch = next(stream)
        faults = dict(stream.faults)
    raw = device.put(found.raw, mesh_lib.batch_sharding(small.mesh))
    _, output = small.step(small.init_state(), raw)
    metrics = {name: float(x) for name, x in output.metrics.items()}
    if not metrics["finite"]:
        raise UserError(
            f"the loss of the first batch is not finite: {_losses(metrics)}; look at "
            f"its media ({', '.join(row['id'] for row in found.info[:5])}, ...)"
        )
    media: Mapping[str, Any] = found.raw.media
    return RealBatch(
        rows=rows,
        present={m: int(np.sum(x)) for m, x in found.raw.present.items()},
        faults=faults,
        ranges={m: (float(x.min()), float(x.max())) for m, x in media.items()},
        texts=[row["texts"][0] for row in found.info if row["texts"]][:3],
        metrics=metrics,
    )


def _losses(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k.startswith("loss")}


def dataset_rows(experiment: Experiment) -> list[tuple[str, float, str, int]]:
    """(folder, weight, split, rows) of each dataset the run would train on.

    Raises:
      UserError: no dataset there, another schema version, no such split.
    """
    from mmssl.data import sources

    split = experiment.config["data"].get("split", "train")
    return [
        (path, weight, split, len(sources.open_dataset(path, split)))
        for path, weight in experiment.datasets
    ]
