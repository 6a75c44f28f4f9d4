"""The weightings' values beside TorchJD's, an independent implementation in PyTorch.

    python benchmarks/weightings.py --out weightings.json

Random gradients, one update per sample from each: ours in float32 from the Gramian,
theirs in float32 or float64 from the gradients. An error is the distance between the
two updates over the sum of |w_k| |g_k|. Ours are on the scale of the plain sum; for the
comparison that is undone:

- mgda, upgrad, aligned_mtl: theirs times k, the number of losses.
- cagrad: ours times (1 + c) / k.
- imtl_g: ours with weights that sum to 1.
- fairgrad: ours over (k m^2)^(alpha / (1 + alpha)), m the mean gradient length.
- nash_mtl: both at length 1; theirs solves the problem up to a factor.
- pcgrad: nothing; only two losses, since for more each draws its own order.

TorchJD's epsilons are finer than its defaults, so that they do not decide the error.
Its Nash-MTL and MGDA iterate, and sometimes stop early; the figures `unequal` (zero at
the optimum) and `length_theirs_over_ours` (MGDA's update is the shortest) say whose
update is off.
"""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from mmssl.errors import UserError
from mmssl.gradients.weightings import WEIGHTINGS

DIMENSION = 64
C = 0.4
ALPHA = 2.0
LOSSES: dict[str, tuple[int, ...]] = {
    "pcgrad": (2,),
    "mgda": (2, 3, 4),
    "cagrad": (2, 3, 4),
    "imtl_g": (2, 3, 4),
    "aligned_mtl": (2, 3, 4),
    "nash_mtl": (2, 3, 4),
    "fairgrad": (2, 3, 4),
    "upgrad": (2, 3, 4),
}
OPTIONS: dict[str, dict[str, Any]] = {"cagrad": {"c": C}, "fairgrad": {"alpha": ALPHA}}
NEEDED = ("torchjd", "torch", "cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "weightings",
        about="Distance between the updates of the weightings and those of TorchJD.",
        example="python benchmarks/weightings.py --out weightings.json",
    )
    made.add_argument(
        "--samples", metavar="N", type=int, help="default: 100 (quick: 5)"
    )
    return made


def torchjd() -> tuple[Any, Any, Any]:
    """The modules torch, torchjd.aggregation and torchjd.linalg."""
    try:
        for name in NEEDED:
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"this benchmark needs the package {error.name}; install into an "
            "environment of its own: pip install -e . "
            "'torchjd[cagrad,fairgrad,nash_mtl,quadprog_projector]==0.18.0' "
            "clarabel"
        ) from error
    names = ("torch", "torchjd.aggregation", "torchjd.linalg")
    torch, aggregation, linalg = map(importlib.import_module, names)
    return torch, aggregation, linalg


def gradients(samples: int, k: int) -> np.ndarray:
    """[n, k, d]: with a shared part of either sign, so that half of them conflict."""
    rng = np.random.default_rng(k)
    shared = rng.normal(size=(samples, 1, DIMENSION)) * rng.choice(
        [-1, 0, 1], (samples, k, 1)
    )
    j = rng.normal(size=(samples, k, DIMENSION)) + shared
    # Both sides get the same float32 numbers.
    j = j * 10 ** rng.uniform(-0.5, 0.5, (samples, k, 1))
    return j.astype(np.float32).astype(np.float64)


def ours(kind: str, j: np.ndarray) -> np.ndarray:
    """Weights [n, k], on the scale of the paper."""
    k = j.shape[1]
    rule = WEIGHTINGS[kind](**OPTIONS.get(kind, {}))
    gram = jnp.asarray(np.einsum("nkd,nld->nkl", j, j), jnp.float32)
    names = tuple(f"loss{i}" for i in range(k))
    answer = jax.jit(lambda g: rule(g, names=names, key=jax.random.key(0)))(gram)
    w = np.asarray(answer, np.float64)
    if kind == "cagrad":
        return w * (1 + C) / k
    if kind == "imtl_g":
        return w / w.sum(-1, keepdims=True)
    if kind == "fairgrad":
        mean = np.linalg.norm(j, axis=-1).mean(-1, keepdims=True)
        return w / (k * mean**2) ** (ALPHA / (1 + ALPHA))
    return w


def theirs(kind: str, modules: tuple[Any, Any, Any]) -> Callable[[Any], Any]:
    """Gradients [k, d] -> weighted sum [d], a tensor."""
    _, aggregation, linalg = modules
    if kind == "pcgrad":
        return aggregation.PCGrad()
    if kind == "imtl_g":
        return aggregation.IMTLG()
    if kind == "cagrad":
        return aggregation.CAGrad(c=C, norm_eps=1e-12)
    if kind == "fairgrad":
        return aggregation.FairGrad(alpha=ALPHA)
    if kind == "nash_mtl":

        def fresh(j: Any) -> Any:
            made = aggregation.NashMTL(len(j), max_norm=0.0, optim_niter=20)
            return made(j)

        return fresh
    if kind == "mgda":
        scaled = aggregation.MGDA(epsilon=1e-9, max_iters=1000)
    elif kind == "aligned_mtl":
        scaled = aggregation.AlignedMTL()
    else:
        projector = linalg.QuadprogProjector(norm_eps=1e-12, reg_eps=1e-8)
        scaled = aggregation.UPGrad(projector=projector)
    return lambda j: scaled(j) * len(j)


def updates(
    kind: str, j: np.ndarray, modules: Any, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ours [n, d], theirs [n, d], and the lengths [n] that ours is added up from."""
    torch = modules[0]
    w = ours(kind, j)
    mine = np.einsum("nk,nkd->nd", w, j)
    size = (np.abs(w) * np.linalg.norm(j, axis=-1)).sum(-1)
    rule = theirs(kind, modules)
    found = np.stack(
        [rule(torch.tensor(x, dtype=getattr(torch, dtype))).numpy() for x in j]
    ).astype(np.float64)
    if kind == "nash_mtl":
        length = np.linalg.norm(mine, axis=-1)
        mine, size = mine / length[:, None], size / length
        found = found / np.linalg.norm(found, axis=-1, keepdims=True)
    return mine, found, size


def bargain(j: np.ndarray, d: np.ndarray) -> list[float]:
    """How unequal are w_k <g_k, d>, which Nash-MTL makes equal: 1 - least / largest."""
    w = np.stack([np.linalg.lstsq(x.T, y)[0] for x, y in zip(j, d, strict=True)])
    shares = w * np.einsum("nkd,nd->nk", j, d)
    return list(1 - shares.min(-1) / shares.max(-1))


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """Every rule that both have, for two to four losses."""
    modules = torchjd()
    samples = arguments.samples or (5 if arguments.quick else 100)
    summary = {}
    for kind, counts in LOSSES.items():
        for k in counts:
            j = gradients(samples, k)
            for dtype in ("float32", "float64"):
                name = f"{kind}_{k}_losses_{dtype}"
                mine, found, size = updates(kind, j, modules, dtype)
                error = list(np.linalg.norm(mine - found, axis=-1) / size)
                tail = float(np.quantile(error, 0.9))
                summary[name] = {**harness.spread(error), "quantile_90": tail}
            # Where iterations disagree: who is nearer to the optimum?
            name = f"{kind}_{k}_losses"
            if kind == "nash_mtl":
                summary[f"{name}_unequal_ours"] = harness.spread(bargain(j, mine))
                summary[f"{name}_unequal_theirs"] = harness.spread(bargain(j, found))
            if kind == "mgda":
                lengths = (np.linalg.norm(d, axis=-1) for d in (found, mine))
                ratio = harness.ratios(*map(list, lengths))
                summary[f"{name}_length_theirs_over_ours"] = harness.spread(ratio)
    settings = {
        "samples": samples,
        "dimension": DIMENSION,
        "options": OPTIONS,
        "peers": {n: importlib.metadata.version(n) for n in NEEDED},
    }
    return harness.Measured(summary, settings)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
