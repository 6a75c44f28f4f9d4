"""An encoder as data: its towers and projections, for readers without mmssl.

Every default is filled in and every name resolved, so that code in another framework
needs no table of ours. `standalone/torch_encoder.py` builds itself from it.
"""

import dataclasses
from typing import Any

from mmssl import models
from mmssl.export import program as program_lib
from mmssl.export import spaces
from mmssl.models import tokenize


def describe(program: program_lib.Program) -> dict[str, Any]:
    """`architecture` of config.json.

    Returns:
      towers: by modality, `tokenizer` (its kind and geometry), `grid`, `axes`,
        `channels` or `vocab`, `encoder` (where its layers are), `form` ("vit" or
        "t5"), `shared`, the encoder's size and the widths of the words and of the
        pooled features.
      chains: by objective, the linear maps from space to space ("" = pooled).
      places: space -> (objective, the name of the space in its chains).
      default_spaces: modality -> space.
    """
    return {
        "towers": {name: _tower(program.model, name) for name in program.modalities},
        "chains": {
            objective: {n: dataclasses.asdict(c) for n, c in head.chains.items()}
            for objective, head in program.heads.items()
        },
        "places": program.places,
        "default_spaces": spaces.defaults(program.spaces),
    }


def _tower(model: models.Model, name: str) -> dict[str, Any]:
    module, spec = model.module, model.specs[name]
    size = dict(module.sizes[name])
    t5 = bool(spec.vocab) and not module.shared
    tower = {
        "tokenizer": _tokenizer(model.tokenizers[name]),
        "grid": spec.grid,
        "axes": model.tokenizers[name].axes,
        "channels": spec.channels,
        "vocab": spec.vocab,
        "encoder": "shared" if module.shared else f"{name}_encoder",
        "form": "t5" if t5 else "vit",
        "shared": module.shared,
        **size,
        "pooled_width": model.widths[name],
    }
    if spec.vocab:
        tower["word_width"] = module.word_width or size["width"]
    return tower


def _tokenizer(tokenizer: tokenize.Tokenizer) -> dict[str, Any]:
    settings = dataclasses.asdict(tokenizer)
    if isinstance(tokenizer, tokenize.LogMelTokenizer):
        return {"kind": "log_mel", **settings, **tokenizer.options}
    kinds = {
        tokenize.VideoTokenizer: "video",
        tokenize.WaveTokenizer: "wave",
        tokenize.TextIds: "text",
    }
    return {"kind": kinds[type(tokenizer)], **settings}
