"""Small exports of every kind, for the tests of their formats."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmssl import models, trees
from mmssl.export import encoder as encoders
from mmssl.export import select
from mmssl.export.safetensors_export import export

WORDS = ("red", "ball", "bounces", "blue", "box", "slides")
SIZE = {"layers": 2, "width": 16, "mlp": 32, "heads": 2}
VIDEO = {"frames": 4, "size": [16, 24], "patch": [2, 8, 8]}
TEXT = {"vocab": len(WORDS) + 2, "length": 20, "candidates": 3}
WAVE = {"samples": 800, "rate": 1600, "patch": 80}
LOG_MEL = {
    "tokenizer": "log_mel",
    "samples": 1536,
    "rate": 3200,
    "hop": 64,
    "mels": 10,
    "patch": [4, 5],
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Keyword arguments of a model and of its heads, by objective."""

    model: dict[str, Any]
    heads: dict[str, Any]
    dtype: str = "float32"


VARIANTS = {
    "specific": Variant(
        model={
            "backbone": "specific",
            "size": {"video": SIZE, "audio": SIZE | {"width": 8}, "text": SIZE},
            "video": VIDEO,
            "audio": WAVE,
            "text": TEXT,
            "word_width": 12,
        },
        heads={"contrast": {"kind": "official", "va": 8, "vt": 6}},
    ),
    "shared": Variant(
        model={
            "size": SIZE,
            "video": VIDEO | {"motion": True},
            "audio": LOG_MEL,
            "text": TEXT,
            "word_width": 12,
            "pooled_width": 10,
            "scan": True,
        },
        heads={
            "a": {"kind": "joint", "features": 6, "hidden": 12},
            "b": {"kind": "joint", "features": 5, "norm": False},
        },
    ),
    "sound": Variant(
        model={"size": SIZE, "audio": WAVE},
        heads={},
        dtype="bfloat16",
    ),
    "paper": Variant(
        model={"backbone": "specific", "size": SIZE, "video": VIDEO, "text": TEXT},
        heads={"a": {"kind": "paper", "modalities": ["video", "text"]}},
    ),
}


def stirred(tree: Any, seed: int) -> Any:
    """No array keeps its initial zeros or ones: what is left out would not show."""
    rng = np.random.default_rng(seed)
    return trees.map_named(
        lambda _, x: x + 0.1 * np.abs(rng.standard_normal(x.shape)).astype(x.dtype),
        tree,
    )


def parts(variant: Variant) -> dict[str, Any]:
    """A model and its heads with parameters, as keyword arguments of `export`."""
    model = models.build_model(**variant.model)
    heads = {name: models.build_heads(**kw) for name, kw in variant.heads.items()}
    made = {n: head.init(jax.random.key(1), model.widths) for n, head in heads.items()}
    audio = variant.model.get("audio", WAVE)
    data: dict[str, Any] = {"seconds": audio["samples"] / audio["rate"]}
    seen = {"video": ("frames", "size"), "audio": ("rate",), "text": ("length",)}
    for modality, keys in seen.items():
        if modality in variant.model:
            data[modality] = {key: variant.model[modality][key] for key in keys}
    return {
        "params": stirred(model.init(jax.random.key(0)), 0),
        "heads": {n: (stirred(p, 1), stirred(s, 2)) for n, (p, s) in made.items()},
        "model_kwargs": variant.model,
        "heads_kwargs": variant.heads,
        "data_kwargs": data,
    }


def write(
    out: pathlib.Path,
    variant: Variant,
    *,
    modalities: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """The export of a variant, or of some of its modalities; options of `export`."""
    words = out.with_suffix(".txt")
    words.write_text("\n".join(WORDS) + "\n")
    given = parts(variant)
    if modalities is not None:
        given = select.only(modalities, **given)
    export(
        **given,
        tokenizer_path=words,
        run_info={},
        out=out,
        dtype=variant.dtype,
        **options,
    )


def media(encoder: encoders.Encoder) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kwargs = encoder.config["model"]
    out: dict[str, np.ndarray] = {}
    if kwargs.get("video"):
        shape = (3, kwargs["video"]["frames"], *kwargs["video"]["size"], 3)
        out["video"] = rng.integers(0, 256, shape, np.uint8)
    if kwargs.get("audio"):
        shape = (3, kwargs["audio"]["samples"])
        out["audio"] = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    if kwargs.get("text"):
        out["text"] = rng.integers(1, len(WORDS) + 2, (3, 20)).astype(np.int32)
        out["text"][1, 5:] = out["text"][2, 1:] = 0
    return out
