"""`export`: trained parameters to a folder that needs nothing else, or to nothing."""

import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax

import mmssl
from mmssl import files
from mmssl.errors import UserError
from mmssl.export import architecture, card, encoder, forward, manifest, weights
from mmssl.export import stablehlo as programs

_PREPROCESSING = ("seconds", "video", "audio", "text")

_TORCH = pathlib.Path(__file__).parent / "standalone" / "torch_encoder.py"

_MARKER = "forward.safetensors"
"""By this file an export is known; others have a manifest.json too."""


def export(
    *,
    params: Any,
    heads: Mapping[str, tuple[Any, Any]],
    model_kwargs: Mapping[str, Any],
    heads_kwargs: Mapping[str, Mapping[str, Any]],
    data_kwargs: Mapping[str, Any],
    tokenizer_path: str | os.PathLike[str] | None,
    run_info: card.RunInfo,
    out: str | os.PathLike[str],
    dtype: str = "float32",
    stablehlo: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes weights, config.json, tokenizer, README.md, torch_encoder.py and hashes.

    The folder is written beside `out`, read back through the same code as `mmssl.load`,
    and renamed: it is there whole or not at all.

    Args:
      params: encoder parameters.
      heads: objective name -> (head parameters, head state).
      model_kwargs: of `models.build_model`, as JSON.
      heads_kwargs: objective name -> keyword arguments of `models.build_heads`.
      data_kwargs: the preprocessing: `seconds`, and under `video`, `audio` and `text`
        the keyword arguments of `data.views`; other keys are left out.
      tokenizer_path: the tokenizer file; None for a model without text.
      run_info: what the card tells.
      out: the folder to write.
      dtype: of the stored weights, "float32" or "bfloat16"; head statistics stay.
      stablehlo: also programs that JAX alone runs; see `stablehlo.save`.
      overwrite: replace an earlier export at `out`.

    Returns:
      The manifest.

    Raises:
      UserError: `out` exists and is not empty (unless an export to overwrite), values
        that are not finite, no tokenizer for a text model, weights that do not fit the
        keyword arguments, or a disk that fails.
      ValueError: heads and heads_kwargs that differ in names, or data of another
        geometry than the model's.
    """
    if heads.keys() != heads_kwargs.keys():
        raise ValueError(
            f"heads are of {sorted(heads)}, heads_kwargs of {sorted(heads_kwargs)}"
        )
    _check_geometry(model_kwargs, data_kwargs)
    tokenizer = _tokenizer(model_kwargs, tokenizer_path)
    tree = {
        "model": params,
        "heads": {n: {"params": p, "state": s} for n, (p, s) in heads.items()},
    }
    arrays = weights.flatten(tree, dtype=dtype)
    versions = {
        "mmssl": mmssl.__version__,
        "jax": jax.__version__,
        "flax": importlib.metadata.version("flax"),
    }
    config = {
        "format": manifest.FORMAT,
        "format_version": manifest.FORMAT_VERSION,
        "model": model_kwargs,
        "heads": heads_kwargs,
        "preprocessing": {k: v for k, v in data_kwargs.items() if k in _PREPROCESSING},
        "tokenizer": None if tokenizer is None else f"tokenizer{tokenizer.suffix}",
        "weights": dtype,
    }
    with files.whole_folder(out, marker=_MARKER, overwrite=overwrite) as folder:
        _write_json(folder / "config.json", config)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / f"tokenizer{tokenizer.suffix}")
        weights.save(arrays, folder / "model.safetensors")
        with encoder.from_folder(folder) as built:
            outputs = built.fixed_outputs()
            config = {
                **built.config,
                "spaces": built.spaces,
                "architecture": architecture.describe(built.program),
            }
            _write_json(folder / "config.json", config)
            text = card.write_card(
                run_info,
                config=config,
                spaces=built.spaces,
                default_spaces=built.default_spaces,
                parameters=sum(int(x.size) for x in arrays.values()),
                versions=versions,
            )
        weights.save(outputs, folder / _MARKER)
        shutil.copyfile(_TORCH, folder / _TORCH.name)
        if stablehlo:
            programs.save(folder)
        (folder / "README.md").write_text(text, encoding="utf-8")
        compute = str(model_kwargs.get("dtype", "float32"))
        return manifest.seal(
            folder,
            {
                "mmssl_version": mmssl.__version__,
                "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
                "tensors": weights.checksums(arrays),
                "forward": {
                    "outputs": {n: list(x.shape) for n, x in outputs.items()},
                    "crc32": weights.checksums(outputs),
                    "tolerance": forward.TOLERANCE[compute],
                },
            },
        )


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _check_geometry(model: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """What files are decoded to must be what the model reads."""
    seconds = data.get("seconds")
    if seconds is None:
        raise ValueError(f"data_kwargs lacks seconds; it has {sorted(data)}")
    expected, found = {}, {}
    if model.get("video") is not None:
        for key in ("frames", "size"):
            expected[f"video.{key}"] = model["video"][key]
            found[f"video.{key}"] = data["video"][key]
    if model.get("audio") is not None:
        rate = data["audio"]["rate"]
        expected["audio.rate"], found["audio.rate"] = model["audio"]["rate"], rate
        expected["audio samples"] = model["audio"]["samples"]
        found["audio samples"] = round(seconds * rate)
    for key, value in expected.items():
        if json.dumps(value) != json.dumps(found[key]):
            raise ValueError(
                f"the model reads {key} {value}, data_kwargs decode {found[key]}"
            )


def _tokenizer(
    model_kwargs: Mapping[str, Any], path: str | os.PathLike[str] | None
) -> pathlib.Path | None:
    if model_kwargs.get("text") is None:
        return None
    if not path or not pathlib.Path(path).is_file():
        raise UserError(
            f"export: the model reads text, and its tokenizer file {path or ''!r} does "
            "not exist; set data.tokenizer to the file it was trained with"
        )
    return pathlib.Path(path)
