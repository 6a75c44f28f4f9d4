"""PCGrad per sample of two losses through one ViT: ours beside TorchJD and Opacus.

    python benchmarks/harmonize_peers.py --out harmonize_peers.json

The same encoder (pre-norm, exact GELU, weights copied), tokens and losses on both
sides, float32, the gradient alone without an optimizer. All compare the gradients of
all of the encoder's parameters, `subset` a twelfth of the kernels.

- torchjd: `autogram.Engine` gives the Gramian of all samples' losses, as in its
  example of instance-wise multi-task learning; its diagonal blocks give the weights.
- opacus: per-sample gradients by hooks, one forward and backward per loss, since the
  hooks take each activation once; then their products and their weighted sum.

Before anything is timed the three exact gradients must agree, and so must the weights
and TorchJD's own PCGrad.
"""

import argparse
import importlib
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from mmssl import gradients, trees
from mmssl.errors import UserError
from mmssl.models import encoder, record

NEEDED = ("torch", "torchjd", "opacus")
SMALL = {"depth": 4, "mlp": 1024, "heads": 4, "width": 256}
TINY = {"depth": 1, "mlp": 128, "heads": 2, "width": 64}
CELLS = {"": (362, 8), "_t64_b32": (64, 32)}
"""End of the figures' names: tokens, rows."""

OUTPUTS = 16
"""Of each loss: half the squared distance of a linear map to a target."""

EXACT = ("exact", "torchjd", "opacus")
Gradient = dict[str, np.ndarray]


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "harmonize_peers",
        about="Time of per-sample PCGrad through one ViT: mmssl, TorchJD, Opacus.",
        example="python benchmarks/harmonize_peers.py --out harmonize_peers.json",
    )
    made.add_argument("--rounds", metavar="N", type=int, help="default: 10 (quick: 3)")
    return made


def packages() -> dict[str, Any]:
    """The peers' modules, by package."""
    try:
        found = {name: importlib.import_module(name) for name in NEEDED}
        for name in ("torchjd.autogram", "torchjd.aggregation"):
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"this benchmark needs the package {error.name}; install into an "
            "environment of its own: pip install -e . torchjd==0.18.0 opacus==1.6.0"
        ) from error
    return found


class Problem:
    """Numbers that both sides get: parameters, tokens, targets."""

    def __init__(self, size: Mapping[str, int], *, tokens: int, rows: int) -> None:
        self.size = size
        rng = np.random.default_rng(0)
        width = size["width"]

        def noise(*shape: int, scale: float = 1.0) -> np.ndarray:
            return rng.normal(0, scale, shape).astype(np.float32)

        self.x = noise(rows, tokens, width)
        self.maps = noise(2, width, OUTPUTS, scale=width**-0.5)
        self.targets = noise(2, rows, OUTPUTS)
        self.module = encoder.Encoder(
            depth=size["depth"],
            mlp=size["mlp"],
            heads=size["heads"],
            form="vit",
            attention="xla",
            dropout=0.0,
            attention_dropout=0.0,
            dtype=jnp.dtype("float32"),
            scan=False,
            remat="none",
        )
        self.valid = np.ones((rows, tokens), bool)
        self.positions = np.zeros((rows, tokens), np.int32)
        init = jax.jit(self.module.init)(jax.random.key(0), *self.inputs(self.x))
        self.params = init["params"]

    def inputs(self, x: Any) -> tuple[Any, ...]:
        """The module's arguments for some of the rows."""
        rows = len(x)
        return x, self.valid[:rows], self.positions[:rows], None


def ours(problem: Problem, harmonizer: gradients.Harmonizer) -> Callable[[], Gradient]:
    """One jitted gradient."""

    def encode(params: Any, x: Any) -> jax.Array:
        y = problem.module.apply({"params": params}, *problem.inputs(x))
        return jnp.asarray(y)[:, 0]

    def recorded(params: Any, x: Any) -> Any:
        inputs = problem.inputs(x)
        return record.record(problem.module, params, *inputs, select=lambda y: y[:, 0])

    def losses(heads: Any, encoded: Any) -> tuple[dict[str, jax.Array], Any]:
        del heads
        off = jnp.einsum("bd,kde->kbe", encoded["vit"], problem.maps) - problem.targets
        return {f"loss_{k}": 0.5 * (own * own).sum() for k, own in enumerate(off)}, {}

    @jax.jit
    def gradient(params: Any, x: jax.Array) -> Any:
        return gradients.backward(
            {"vit": gradients.Tower(encode, recorded)},
            params,
            x,
            losses,
            {},
            harmonizer=harmonizer,
            state=harmonizer.init(),
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key(0),
        ).params

    params, x = jax.device_put((problem.params, problem.x))
    return lambda: jax.block_until_ready(gradient(params, x))


def vit(problem: Problem, torch: Any) -> Any:
    """The same encoder in PyTorch: x [b, t, d] -> losses [b, 2]."""
    nn, width, heads = torch.nn, problem.size["width"], problem.size["heads"]
    maps, targets = torch.tensor(problem.maps), torch.tensor(problem.targets)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("query", "key", "value", "output"):
                self.add_module(name, nn.Linear(width, width))

        def forward(self, x: Any) -> Any:
            q, k, v = (
                getattr(self, name)(x).unflatten(-1, (heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            logits = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
            mixed = torch.softmax(logits, -1) @ v
            return self.output(mixed.transpose(1, 2).flatten(-2))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm(width, eps=1e-6)
            self.attention = Attention()
            self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
            self.mlp_in = nn.Linear(width, problem.size["mlp"])
            self.mlp_out = nn.Linear(problem.size["mlp"], width)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.attention_norm(x))
            hidden = nn.functional.gelu(self.mlp_in(self.mlp_norm(x)))
            return x + self.mlp_out(hidden)

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(problem.size["depth"]):
                self.add_module(f"layer_{i:02d}", Block())
            self.norm = nn.LayerNorm(width, eps=1e-6)

        def forward(self, x: Any) -> Any:
            for layer in self.children():
                x = layer(x)
            off = torch.einsum("bd,kde->kbe", x[:, 0], maps) - targets
            return 0.5 * (off * off).sum(-1).T

    made = ViT()
    values = trees.named_leaves(problem.params)
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.copy_(torch.tensor(transposed(np.asarray(values[path(name)]))))
    return made


def path(name: str) -> str:
    """PyTorch's name of a parameter -> ours."""
    own = name.replace(".", "/").removeprefix("_module/")
    return re.sub(r"weight$", "scale" if "norm/" in own else "kernel", own)


def transposed(value: np.ndarray) -> np.ndarray:
    """Kernels lie the other way round in PyTorch."""
    return value.T if value.ndim == 2 else value


def pcgrad(gram: Any) -> Any:
    """Weights [b, 2] of PCGrad from Gramians [b, 2, 2], closed form for two losses."""
    conflict = gram[:, 0, 1].clamp(max=0.0)[:, None]
    return 1 - conflict / gram.diagonal(dim1=1, dim2=2)


def gradient_of(model: Any) -> Gradient:
    """Of the last backward, under our names."""
    return {
        path(name): transposed(p.grad.numpy()) for name, p in model.named_parameters()
    }


def plain_torch(problem: Problem, modules: Mapping[str, Any]) -> Callable[[], Any]:
    """The gradient of the sum of all losses."""
    torch = modules["torch"]
    model, x = vit(problem, torch), torch.tensor(problem.x)

    def run() -> Any:
        model.zero_grad()
        model(x).sum().backward()
        return model

    return run


def torchjd(problem: Problem, modules: Mapping[str, Any]) -> Callable[[], Any]:
    """Gramian by the autogram engine, then one weighted backward."""
    torch = modules["torch"]
    model, x = vit(problem, torch), torch.tensor(problem.x)
    engine = modules["torchjd"].autogram.Engine(model, batch_dim=0)
    rows = torch.arange(len(x))
    theirs = modules["torchjd"].aggregation.PCGrad().gramian_weighting
    checked = False

    def run() -> Any:
        nonlocal checked
        model.zero_grad()
        losses = model(x)
        whole = engine.compute_gramian(losses)
        gram = whole.reshape(len(x), 2, len(x), 2)[rows, :, rows]
        weights = pcgrad(gram)
        if not checked:
            expected = torch.stack([theirs(own) for own in gram])
            if not torch.allclose(weights, expected, rtol=1e-4):
                raise UserError("PCGrad's closed form is not what TorchJD computes")
            checked = True
        losses.backward(weights)
        return model

    return run


def opacus(problem: Problem, modules: Mapping[str, Any]) -> Callable[[], Any]:
    """All per-sample gradients by hooks, then their products and weighted sum."""
    torch = modules["torch"]
    model, x = vit(problem, torch), torch.tensor(problem.x)
    hooked = modules["opacus"].GradSampleModule(model, loss_reduction="sum")

    def run() -> Any:
        per_loss = []
        for k in (0, 1):
            hooked.zero_grad()
            hooked(x)[:, k].sum().backward()
            per_loss.append([p.grad_sample.flatten(1) for p in model.parameters()])

        def product(k: int, l: int) -> Any:
            pairs = zip(per_loss[k], per_loss[l], strict=True)
            return sum((g * h).sum(-1) for g, h in pairs)

        mixed = product(0, 1)
        gram = torch.stack([product(0, 0), mixed, mixed, product(1, 1)], -1)
        w = pcgrad(gram.unflatten(-1, (2, 2)))
        for p, g, h in zip(model.parameters(), *per_loss, strict=True):
            p.grad = (w[:, 0] @ g + w[:, 1] @ h).reshape(p.shape)
        return model

    return run


def check_equal(found: Mapping[str, Gradient]) -> float:
    """The largest distance to ours, relative to its length.

    Raises:
      UserError: one above 1e-4.
    """
    expected = found["exact"]
    length = np.sqrt(sum((g * g).sum() for g in expected.values()))
    worst = 0.0
    for name, gradient in found.items():
        square = sum(((gradient[n] - g) ** 2).sum() for n, g in expected.items())
        off = float(np.sqrt(square) / length)
        if not off < 1e-4:
            raise UserError(f"the gradient of {name!r} is {off:.1e} away from ours")
        worst = max(worst, off)
    return worst


def cell(
    problem: Problem, modules: Mapping[str, Any], *, rounds: int, end: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(summary, details) of one number of tokens and rows."""
    rule = gradients.WEIGHTINGS["pcgrad"]()
    engines = {
        "exact": gradients.Exact(scope=".*"),
        "subset": gradients.Subset(scope=".*", audit_every=0),
    }
    arms: dict[str, Callable[[], Any]] = {
        "plain_jax": ours(problem, gradients.Harmonizer()),
        **{
            n: ours(problem, gradients.Harmonizer(rule, engine=e))
            for n, e in engines.items()
        },
        "plain_torch": plain_torch(problem, modules),
        "torchjd": torchjd(problem, modules),
        "opacus": opacus(problem, modules),
    }
    gradient = {"exact": trees.named_leaves(jax.device_get(arms["exact"]()))}
    gradient |= {name: gradient_of(arms[name]()) for name in ("torchjd", "opacus")}
    off = check_equal(gradient)
    taken = harness.interleave(arms, rounds=rounds, warmup=2)
    rows = len(problem.x)
    summary = {
        f"samples_per_second_{name}{end}": harness.spread(
            [rows / s for s in seconds], unit="1/s"
        )
        for name, seconds in taken.items()
    }
    pairs = [(peer, own) for peer in ("torchjd", "opacus") for own in engines]
    pairs += [(own, "plain_jax") for own in engines]
    pairs += [("torchjd", "plain_torch"), ("opacus", "plain_torch")]
    pairs += [("plain_torch", "plain_jax")]
    for above, below in pairs:
        ratio = harness.ratios(taken[above], taken[below])
        summary[f"{above}_over_{below}{end}"] = harness.spread(ratio)
    return summary, {"seconds": taken, "largest_difference": off}


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """Rounds of all arms, for each cell."""
    modules = packages()
    # The tokens are no parameter: true, and no matter.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    quick = arguments.quick
    rounds = arguments.rounds or (3 if quick else 10)
    modules["torch"].set_num_threads(harness.machine()["cores"])
    summary: dict[str, Any] = {}
    details: dict[str, Any] = {}
    cells = {"": (16, 4)} if quick else CELLS
    for end, (tokens, rows) in cells.items():
        problem = Problem(TINY if quick else SMALL, tokens=tokens, rows=rows)
        own, details[end or "main"] = cell(problem, modules, rounds=rounds, end=end)
        summary |= own
    settings = {
        "size": TINY if quick else SMALL,
        "cells": {end or "main": list(sizes) for end, sizes in cells.items()},
        "rounds": rounds,
        "peers": {name: importlib.metadata.version(name) for name in NEEDED},
    }
    return harness.Measured(summary, settings, {"cells": details})


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
