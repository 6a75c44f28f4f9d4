"""The forward pass of an export: parameters and media to embeddings, a pure function.

What `Encoder` compiles, and what is written down for other runtimes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from mmssl import models
from mmssl.export import spaces as spaces_lib
from mmssl.types import RawBatch

POOLED = "pooled"
"""The output that is the backbone's feature, in no space."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Encodes one modality at a time.

    Attributes:
      model: built for one text candidate per row.
      heads: by objective.
    """

    model: models.Model
    heads: Mapping[str, models.Heads]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.model.tokenizers)

    @functools.cached_property
    def places(self) -> dict[str, tuple[str, str]]:
        """Space -> (objective, the name of the space in its heads)."""
        return spaces_lib.places(self.heads)

    @functools.cached_property
    def spaces(self) -> dict[str, tuple[str, ...]]:
        """Space -> the modalities in it."""
        return {
            space: self.heads[objective].spaces[inner]
            for space, (objective, inner) in self.places.items()
        }

    def abstract(self) -> Any:
        """Shapes of everything model.safetensors must hold."""
        key = jax.random.key(0)

        def init(head: models.Heads) -> dict[str, Any]:
            params, state = head.init(key, self.model.widths)
            return {"params": params, "state": state}

        shapes: dict[str, Any] = {"model": jax.eval_shape(self.model.init, key)}
        shapes["heads"] = {
            name: jax.eval_shape(functools.partial(init, head))
            for name, head in self.heads.items()
        }
        return shapes

    def media(self, modality: str, rows: Any) -> jax.ShapeDtypeStruct:
        """The input: uint8 [b, f, h, w, 3], float32 [b, s] or int32 ids [b, t].

        Args:
          modality: one of the model's.
          rows: b, a number or a symbolic size.
        """
        tokenizer: Any = self.model.tokenizers[modality]
        if modality == "video":
            shape, dtype = (tokenizer.frames, *tokenizer.size, 3), jnp.uint8
        elif modality == "audio":
            shape, dtype = (tokenizer.samples,), jnp.float32
        else:
            shape, dtype = (tokenizer.length,), jnp.int32
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    def __call__(
        self, modality: str, held: Any, media: jax.Array
    ) -> dict[str, Float32[Array, "b e"]]:
        """POOLED, and a row of unit norm in every space of the modality.

        Args:
          modality: of the media.
          held: arrays like `abstract`.
          media: like `media`.
        """
        present = jnp.ones(media.shape[0], bool)
        if modality == "text":
            media = media[:, None]  # one candidate
        raw = RawBatch(
            media={modality: media},
            present={modality: present},
            example_id=jnp.zeros(media.shape[0], jnp.uint32),
        )
        encoded = self.model.encode(held["model"], self.model.prepare(raw))
        pooled = encoded.pooled[modality]
        if modality == "text":
            pooled = pooled[:, 0]
        pooled = pooled.astype(jnp.float32)
        out = {POOLED: pooled}
        for objective, head in self.heads.items():
            own = held["heads"][objective]
            found, _ = head.apply(
                own["params"],
                own["state"],
                {modality: pooled},
                {modality: present},
                train=False,
            )
            for space, (owner, inner) in self.places.items():
                if owner == objective and modality in found[inner]:
                    out[space] = _unit(found[inner][modality])
        return out


def _unit(x: jax.Array) -> jax.Array:
    norm = jnp.sqrt((x * x).sum(-1, keepdims=True))
    return x / jnp.maximum(norm, 1e-12)


def build(config: Mapping[str, Any], **changes: Any) -> Program:
    """The program of an export's config.json.

    Args:
      config: what it holds.
      **changes: to the keyword arguments of `models.build_model` that change no
        parameter, like `attention`.
    """
    kwargs = {**config["model"], **changes}
    if kwargs.get("text") is not None:
        # Strings are encoded one by one; parameters do not depend on candidates.
        kwargs["text"] = {**kwargs["text"], "candidates": 1}
    model = models.build_model(**kwargs)
    heads = {
        name: models.build_heads(**kw).only(tuple(model.tokenizers))
        for name, kw in config["heads"].items()
    }
    return Program(model=model, heads=heads)
