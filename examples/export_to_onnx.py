"""An export to ONNX, one file per modality, each checked under onnxruntime.

jax2onnx needs an orbax-checkpoint older than mmssl's, so it lives in an environment of
its own, where mmssl is on the path and not installed:

    python -m venv .venv-onnx
    .venv-onnx/bin/pip install jax==0.10.1 jax2onnx==0.17.1 onnxruntime safetensors
    PYTHONPATH=. .venv-onnx/bin/python examples/export_to_onnx.py ENCODER OUT

ENCODER is a folder of `mmssl export`. The files take any number of rows of the media
that its config.json describes, and hold the weights. A log-mel tower is left out:
jax2onnx 0.17.1 fails on its FFT.
"""

import argparse
import functools
import json
import logging
import pathlib

import jax
import jax.export
import onnxruntime
from jax2onnx import to_onnx

from mmssl import models
from mmssl.export import forward, manifest, weights
from mmssl.export import program as programs
from mmssl.models import tokenize


def convert(folder: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """Writes OUT/MODALITY.onnx.

    Args:
      folder: the export; its hashes are checked first.
      out: where to write.

    Returns:
      `modality/output` -> the largest relative distance of a row from what the exporter
      computed, on the fixed input of forward.safetensors.
    """
    manifest.verify(folder)
    config = json.loads((folder / "config.json").read_text())
    arrays = weights.read(folder / "model.safetensors")
    held = weights.fit(arrays, programs.build(config).abstract(), what=str(folder))
    held["model"] = models.unstack_layers(held["model"])
    # In float32: few runtimes have every operation in bfloat16.
    program = programs.build(config, attention="xla", dtype="float32", scan=False)
    expected = weights.read(folder / "forward.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    far = {}
    for modality, tokenizer in program.model.tokenizers.items():
        if isinstance(tokenizer, tokenize.LogMelTokenizer):
            print(f"{modality}: left out, jax2onnx does not convert log-mel's FFT")
            continue
        like = program.media(modality, forward.ROWS)
        run = functools.partial(program, modality, held)
        names = list(jax.eval_shape(run, like))

        def ordered(media, run=run, names=names):
            found = run(media)
            return tuple(found[name] for name in names)

        path = out / f"{modality}.onnx"
        spec = program.media(modality, jax.export.symbolic_shape("B")[0])
        to_onnx(
            ordered,
            [spec],
            model_name=f"mmssl_{modality}",
            input_names=[modality],
            output_names=names,
            return_mode="file",
            output_path=path,
        )
        session = onnxruntime.InferenceSession(path)
        vocab = tokenizer.spec.vocab
        media = forward.fixed_input(modality, like.shape, vocab=vocab)
        for count in (forward.ROWS, 1):
            found = session.run(names, {modality: media[:count]})
            gaps = forward.difference(
                {f"{modality}/{n}": x for n, x in zip(names, found)},
                {f"{modality}/{n}": expected[f"{modality}/{n}"][:count] for n in names},
            )
            far |= {n: max(gap, far.get(n, 0.0)) for n, gap in gaps.items()}
    return far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # a line for each shape
    far = convert(arguments.encoder, arguments.out)
    for name, gap in far.items():
        print(f"{name:24} {gap:.1e}")
    config = json.loads((arguments.encoder / "config.json").read_text())
    rounded = config["model"].get("dtype") == "bfloat16"  # the exporter, not the file
    if max(far.values()) > (forward.TOLERANCE["bfloat16"] if rounded else 1e-4):
        raise SystemExit("these files do not compute what the exporter did")


if __name__ == "__main__":
    main()
