"""The forward passes as StableHLO programs that JAX alone runs, weights apart.

One file per modality by `jax.export`, for CPUs, NVIDIA GPUs and TPUs and any number of
rows. A program takes what model.safetensors holds and the media, so it is small, and
fine-tuned weights of the same names run in it. It is no archive: `jax.export` promises
six months (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import datetime
import functools
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
import jax.export

from mmssl import trees
from mmssl.export import program as program_lib
from mmssl.export import weights

PLATFORMS = ("cpu", "cuda", "tpu")

NAME = "stablehlo.json"

WINDOW = datetime.timedelta(days=182)
"""What `jax.export` promises; counted from the build of jaxlib, which is no later than
the export."""


def save(folder: pathlib.Path) -> None:
    """Writes MODALITY.stablehlo and stablehlo.json into the folder of an export.

    Args:
      folder: with config.json, model.safetensors and the tokenizer.
    """
    config = json.loads((folder / "config.json").read_bytes())
    # Fused attention is one platform's; products and a softmax are everybody's.
    program = program_lib.build(config, attention="xla")
    stored = weights.read(folder / "model.safetensors")
    specs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in stored.items()}
    (rows,) = jax.export.symbolic_shape("b")
    programs = {}
    for modality in program.modalities:
        media = program.media(modality, rows)
        run = jax.jit(functools.partial(_by_name, program, modality))
        made = jax.export.export(run, platforms=PLATFORMS)(specs, media)
        name = f"{modality}.stablehlo"
        (folder / name).write_bytes(made.serialize())
        outputs = jax.tree.unflatten(made.out_tree, made.out_avals)
        programs[modality] = {
            "file": name,
            "input": _described(media),
            "outputs": {space: _described(x) for space, x in outputs.items()},
            "calling_convention_version": made.calling_convention_version,
        }
    today = datetime.datetime.now(datetime.UTC).date()
    described = {
        "programs": programs,
        "arguments": "all tensors of model.safetensors by name, then the media",
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "exported": today.isoformat(),
        "expires": (today + WINDOW).isoformat(),
        "expiry": "jax.export promises that releases of jax up to six months newer "
        "than the jaxlib above, and up to three weeks older, run these files. The "
        "promise ends at `expires` at the latest, earlier if that jaxlib was not new. "
        "model.safetensors does not expire.",
    }
    (folder / NAME).write_text(json.dumps(described, indent=1) + "\n")


def _by_name(
    program: program_lib.Program,
    modality: str,
    tensors: dict[str, jax.Array],
    media: jax.Array,
) -> dict[str, jax.Array]:
    held = trees.map_named(
        lambda name, like: tensors[name].astype(like.dtype), program.abstract()
    )
    return program(modality, held, media)


def _described(x: Any) -> dict[str, Any]:
    shape = [n if isinstance(n, int) else str(n) for n in x.shape]
    return {"shape": shape, "dtype": x.dtype.name}
