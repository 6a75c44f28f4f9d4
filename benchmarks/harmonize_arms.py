"""The arms of `harmonize.py`: whole train steps by engine, at any shape."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmssl import gradients, models, objectives, trees
from mmssl.gradients import products
from mmssl.gradients.cotangents import Cotangents
from mmssl.gradients.engines import Pulled, Weigh
from mmssl.optim import factory
from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import rules
from mmssl.train import state as state_lib
from mmssl.train import step as step_lib
from mmssl.types import RawBatch

VOCAB = 1024
RATE = 48_000
MAIN = ("plain", "subset", "exact")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An encoder and what it reads; the defaults are VATT's input."""

    size: Mapping[str, int]
    frames: int = 32
    side: int = 224
    samples: int = 153_600
    candidates: int = 5
    words: int = 16
    drop_token: float = 0.5
    pooled_width: int = 1024


def vatt(size: str, *, layers: int) -> Shape:
    """VATT-MA of a preset's width and any depth: 784 + 600 + 80 tokens in training."""
    return Shape({**models.SIZES[size], "layers": layers})


SMALL = {"layers": 4, "width": 256, "mlp": 1024, "heads": 4}
SHAPES = {
    "t362": Shape(SMALL, 16, 112, 150 * 128, 1, 16, 0.0, 256),
    "t64": Shape(SMALL, 8, 64, 24 * 128, 1, 8, 0.0, 256),
    "base": vatt("base", layers=12),
}
"""By name; t362 and t64: 196 + 150 + 16 and 32 + 24 + 8 tokens."""

TINY = {"layers": 1, "width": 64, "mlp": 128, "heads": 2}
BRIEF = dataclasses.replace(SHAPES["t64"], size={**SMALL, "layers": 1})
"""What a quick run times: one layer of the real width."""

QUICK = dataclasses.replace(SHAPES["t64"], size=TINY, pooled_width=64)


class Step:
    """One arm. Nothing is compiled or allocated before it is asked for.

    Args:
      shape: of the model and its input.
      harmonizer: what makes the arm.
      batch: rows.
      mesh: the axis of `parallel.mesh` that all devices are on.
      **model: further arguments of `models.build_model`: dtype, scan, remat.
    """

    def __init__(
        self,
        shape: Shape,
        harmonizer: gradients.Harmonizer,
        *,
        batch: int,
        mesh: str = "data",
        **model: Any,
    ) -> None:
        built = models.build_model(
            size=shape.size,
            video={"frames": shape.frames, "size": (shape.side,) * 2},
            audio={"rate": RATE, "samples": shape.samples},
            text={
                "vocab": VOCAB,
                "length": shape.words,
                "candidates": shape.candidates,
            },
            drop_token=shape.drop_token,
            pooled_width=shape.pooled_width,
            word_width=300,
            dropout=0.0,
            **model,
        )
        heads = models.build_heads(kind="official")
        losses = {"vatt": objectives.OBJECTIVES["contrastive"](heads=heads)}
        optimizer = factory.make_optimizer(steps=1000)
        devices = mesh_lib.make_mesh({mesh: -1})
        self._rows = mesh_lib.batch_sharding(devices)
        self._harmonizer = harmonizer
        self._init = functools.partial(
            state_lib.init_state,
            init_params=built.init,
            objectives=losses,
            widths=built.widths,
            harmonizer=harmonizer,
            tx=optimizer.tx,
        )
        step = step_lib.make_step(
            prepare=built.prepare,
            encode=built.encode,
            record=built.record,
            objectives=losses,
            harmonizer=harmonizer,
            tx=optimizer.tx,
            schedule=optimizer.schedule,
        )
        self._split = rules.state_shardings(self.state_shapes, devices)
        self._step = jax.jit(
            mesh_lib.ambient(devices, step),
            donate_argnums=0,
            in_shardings=(self._split, self._rows),
            out_shardings=(self._split, None),
        )
        self._raw_shapes = raw_shapes(shape, batch)

    @functools.cached_property
    def state_shapes(self) -> Any:
        """Shapes and dtypes of the state."""
        return jax.eval_shape(self._init, jax.random.key(0))

    @functools.cached_property
    def lowered(self) -> Any:
        """The traced step, as XLA gets it."""
        return self._step.lower(self.state_shapes, self._raw_shapes)

    @functools.cached_property
    def compiled(self) -> Any:
        return self.lowered.compile()

    @property
    def temporary_bytes(self) -> int:
        """What the step needs beside its arguments and results."""
        return int(self.compiled.memory_analysis().temp_size_in_bytes)

    def initial(self) -> tuple[Any, RawBatch]:
        """A state, and a batch of noise: all arms of one shape can start from them."""
        init = jax.jit(self._init, out_shardings=self._split)
        raw = jax.device_put(synthetic(self._raw_shapes), self._rows)
        return init(jax.random.key(0)), raw

    def start(self, state: Any, raw: RawBatch) -> dict[str, float]:
        """Takes the first step from a copy of `state`; its metrics."""
        state = dataclasses.replace(state, harmonizer=self._harmonizer.init())
        state = jax.tree.map(jnp.copy, state)
        self._state, self._raw = jax.device_put(state, self._split), raw
        return {name: float(value) for name, value in self._take().items()}

    def _take(self) -> Any:
        self._state, out = self.compiled(self._state, self._raw)
        jax.block_until_ready((self._state, out))
        return out.metrics

    def __call__(self) -> None:
        self._take()


def raw_shapes(shape: Shape, rows: int) -> RawBatch:
    """A batch's media, `jax.ShapeDtypeStruct` in place of arrays."""

    def made(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype)

    media = {
        "video": made(jnp.uint8, shape.frames, shape.side, shape.side, 3),
        "audio": made(jnp.float32, shape.samples),
        "text": made(jnp.int32, shape.candidates, shape.words),
    }
    present = {name: made(jnp.bool_) for name in media}
    return RawBatch(media=media, present=present, example_id=made(jnp.uint32))


def synthetic(shapes: RawBatch) -> RawBatch:
    """Noise and random words, everything present."""
    rng = np.random.default_rng(0)

    def fill(shape: Any) -> np.ndarray:
        if shape.dtype == np.bool_:
            return np.ones(shape.shape, np.bool_)
        if shape.dtype == np.float32:
            return rng.normal(0, 0.1, shape.shape).astype(np.float32)
        high = {"uint8": 256, "int32": VOCAB, "uint32": 2**32}[str(shape.dtype)]
        return rng.integers(1, high, shape.shape).astype(shape.dtype)

    return jax.tree.map(fill, shapes)


@dataclasses.dataclass(frozen=True)
class Materialise(gradients.Engine):
    """The usual way in JAX: vmap of one VJP per loss, all gradients held at once."""

    def vjp(
        self,
        towers: Mapping[str, gradients.Tower],
        params: Any,
        rows: Any,
        *,
        group: int,
    ) -> tuple[dict[str, Any], Callable[..., Pulled]]:
        assert group == 1
        encoded = {name: tower.encode(params, rows) for name, tower in towers.items()}

        def pullback(c: Cotangents, weigh: Weigh, state: Any, step: Any) -> Pulled:
            del step

            def of_row(row: Any, cotangents: Any) -> dict[int, Any]:
                row = jax.tree.map(lambda x: x[None], row)
                total: dict[int, Any] = {}
                for name, tower in towers.items():
                    pull = jax.vjp(lambda p, f=tower.encode: f(p, row), params)[1]
                    for k in c.reaching(name):
                        own = jax.tree.map(lambda x, k=k: x[k][None], cotangents[name])
                        (g,) = pull(own)
                        total[k] = (
                            jax.tree.map(jnp.add, total[k], g) if k in total else g
                        )
                return total

            per_loss = jax.vmap(of_row, in_axes=(0, 1))(rows, c.encoded)
            shared = {k: g["shared"] for k, g in per_loss.items()}
            gram = products.gram_of(shared, len(c.names))
            weights = weigh(gram)
            grads = products.combined(per_loss, weights)
            return Pulled(grads, gram, weights, state, {})

        return encoded, pullback

    def held(self, params: Any, groups: int) -> int:
        return groups * trees.size(params)


def pcgrad(engine: gradients.Engine, **options: Any) -> gradients.Harmonizer:
    """PCGrad with Gramians of `engine`."""
    rule = gradients.WEIGHTINGS["pcgrad"]()
    return gradients.Harmonizer(weighting=rule, engine=engine, **options)


SUBSET = gradients.Subset(audit_every=0)
TOLERANT = gradients.Subset(rmse=math.inf, sign=0.0, effect=math.inf)
"""Audits, and never falls back."""


def arms(batch: int) -> dict[str, gradients.Harmonizer]:
    """By name; `exact_batch` is PCGrad of the batch's gradients."""
    return {
        "plain": gradients.Harmonizer(),
        "subset": pcgrad(SUBSET),
        "exact": pcgrad(gradients.Exact()),
        "exact_group_8": pcgrad(gradients.Exact(), group=8),
        "exact_batch": pcgrad(gradients.Exact(), group=0),
        "last_k": pcgrad(gradients.LastK()),
        "sketch": pcgrad(gradients.Sketch()),
        # No weighting may use it: watched only.
        "embedding": gradients.Harmonizer(engine=gradients.Embedding(), monitor=True),
        "vmap": pcgrad(gradients.Vmap(chunk=batch)),
        "materialise": pcgrad(Materialise()),
    }
