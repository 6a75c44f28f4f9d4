"""VATT: one Transformer shared by all modalities, or one tower for each.

Source: VATT (arXiv 2104.11178) in the wiring of its official code, google-research
`vatt/`: `uvatt.py` for the shared backbone, `vitx3d.py`, `autx1d.py` and `t5.py` for
the specific one.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key

from mmssl import errors, rng, trees, types
from mmssl.models import backbone as backbones
from mmssl.models import colour, encoder, presets, record, tokenize


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Pure functions over plain parameter dicts, and what they were built for.

    Attributes:
      specs: per modality, its tokens without DropToken.
      widths: per modality, the width of `Encoded.pooled`.
      tokenizers: per modality, raw media -> ModalityBatch.
      keep: per modality with DropToken, how many tokens stay in training.
      drop_per_sample: DropToken chooses per sample, not once per call.
      module: the Linen module; `params` are its "params" collection.
    """

    specs: Mapping[str, types.ModalitySpec]
    widths: Mapping[str, int]
    tokenizers: Mapping[str, tokenize.Tokenizer]
    keep: Mapping[str, int]
    drop_per_sample: bool
    module: backbones.Vatt

    @property
    def heads(self) -> dict[str, int]:
        """Per modality, the attention heads of its encoder."""
        return {name: size["heads"] for name, size in self.module.sizes.items()}

    def init(self, key: Key[Array, ""]) -> types.Params:
        """Float32 parameters, the same numbers with and without scan."""
        return _init(self.module, key)

    def prepare(
        self, raw: types.RawBatch, *, key: Key[Array, ""] | None = None
    ) -> types.Batch:
        """Tokenizes each of the model's modalities that `raw` has, then DropToken.

        Args:
          raw: media on the device.
          key: the source of DropToken; None = evaluation, nothing dropped.

        Raises:
          ValueError: media of another shape than the model was built for.
        """
        modalities = {}
        for name, tokenizer in self.tokenizers.items():
            if name not in raw.media:
                continue
            media = raw.media[name]
            if name == "video" and raw.colour is not None:
                media = colour.jitter(media, raw.colour)
            mb = tokenizer(media, raw.present[name])
            if key is not None and name in self.keep:
                mb = tokenize.drop_tokens(
                    mb,
                    key=rng.stream(key, f"drop_token/{name}"),
                    keep=self.keep[name],
                    per_sample=self.drop_per_sample,
                )
            modalities[name] = mb
        return types.Batch(modalities=modalities, example_id=raw.example_id)

    def encode(
        self,
        params: types.Params,
        batch: types.Batch,
        *,
        keys: Key[Array, "b"] | None = None,
    ) -> types.Encoded:
        """Encodes the modalities in `batch`, row by row.

        Args:
          params: what `init` returned.
          batch: what `prepare` returned.
          keys: one key per row for dropout; None = evaluation.
        """
        encoded = self.module.apply({"params": params}, batch, keys)
        assert isinstance(encoded, types.Encoded)
        return encoded

    def record(
        self,
        params: types.Params,
        batch: types.Batch,
        *,
        keys: Key[Array, "b"] | None = None,
        select: Callable[[types.Encoded], Any],
    ) -> types.Recorded:
        """`encode`, keeping what per-sample gradients need; see `record.record`."""
        return record.record(self.module, params, batch, keys, select=select)

    def describe(self) -> dict[str, Any]:
        """Counts without allocating: `parameters`, `frozen`, `parts`, `modalities`.

        `parts` maps `shared`, `video/patch`, `video/position`, ... to numbers of
        parameters; `frozen` counts those that never get a gradient.
        """
        params = jax.eval_shape(self.init, jax.random.key(0))
        parts: dict[str, int] = {}
        for path, leaf in trees.named_leaves(params).items():
            first, second, *_ = path.split("/")
            part = f"{first}/{second}" if first in self.specs else first
            parts[part] = parts.get(part, 0) + int(leaf.size)
        return {
            "parameters": trees.size(params),
            "frozen": parts.get("text/word", 0) if self.module.frozen_words else 0,
            "parts": parts,
            "modalities": {
                name: {
                    "tokens": spec.tokens,
                    "grid": list(spec.grid),
                    "kept_in_training": self.keep.get(name, spec.tokens),
                    "pooled_width": self.widths[name],
                }
                for name, spec in self.specs.items()
            },
        }


@functools.partial(jax.jit, static_argnums=0)
def _init(module: backbones.Vatt, key: Key[Array, ""]) -> types.Params:
    modalities = {}
    for name, spec in module.specs.items():
        lead = (1, spec.candidates) if spec.candidates else (1,)
        shape = (*lead, spec.tokens)
        modalities[name] = types.ModalityBatch(
            tokens=jnp.zeros(shape, jnp.int32)
            if spec.vocab
            else jnp.zeros((*shape, spec.channels)),
            positions=jnp.zeros((*shape, len(spec.grid)), jnp.int32),
            valid=jnp.ones(shape, bool),
            present=jnp.ones(1, bool),
        )
    batch = types.Batch(modalities=modalities, example_id=jnp.zeros(1, jnp.uint32))
    # Unrolled first, so that a seed means the same model in both layouts.
    params = module.clone(scan=False, remat="none").init(key, batch, None)["params"]
    return encoder.stack_layers(params) if module.scan else params


AUDIO_TOKENIZERS = ("wave", "log_mel")

TOKENIZERS: dict[str, Callable[..., tokenize.Tokenizer]] = {
    "video": tokenize.VideoTokenizer,
    "wave": tokenize.WaveTokenizer,
    "log_mel": tokenize.LogMelTokenizer,
    "text": tokenize.TextIds,
}


def build_model(
    *,
    backbone: str = "shared",
    size: str | Mapping[str, Any] = "tiny",
    video: Mapping[str, Any] | None = None,
    audio: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    drop_token: float | Mapping[str, float] = 0.5,
    drop_per_sample: bool = False,
    dropout: float = 0.1,
    attention: str = "xla",
    attention_dropout: float | None = None,
    pooled_width: int | None = None,
    word_width: int | None = None,
    frozen_words: bool = False,
    dtype: str = "float32",
    scan: bool = False,
    remat: str = "none",
) -> Model:
    """Builds a VATT for the modalities that are given.

    Args:
      backbone: "shared" (VATT-MA: one encoder for all) or "specific" (one each; the
        text tower in T5's form).
      size: a name in `presets.SIZES`, a dict of layers, width, mlp and heads, or, for
        "specific", a dict of those by modality.
      video: keyword arguments of `tokenize.VideoTokenizer`; None = no video.
      audio: `tokenizer` ("wave" or "log_mel") and the keyword arguments of
        `tokenize.WaveTokenizer` or `tokenize.LogMelTokenizer`; None = no audio.
      text: keyword arguments of `tokenize.TextIds`; None = no text.
      drop_token: share of video and audio tokens dropped in training, one for both or
        by modality. Text is never dropped.
      drop_per_sample: DropToken chooses per sample; False = once per call (official).
      dropout: rate of all dropout sites.
      attention: a name in `encoder.ATTENTION`. Where the platform lacks it, "xla" takes
        its place, and a line on stderr says so.
      attention_dropout: rate on the attention weights; None = `dropout`. A fused
        attention has none: 0.
      pooled_width: width of the shared backbone's post-projections (official: 1024,
        the width of Medium); None = the encoder's width.
      word_width: columns of the word table (official: 300); None = encoder's width.
      frozen_words: the word table gets no gradient (official, with word2vec).
      dtype: "float32" or "bfloat16", of compute. Parameters, softmax, statistics of
        norms and `Encoded.pooled` are float32.
      scan: compile one layer and loop over it.
      remat: a name in `encoder.REMAT`.

    Raises:
      UserError: an unknown name or key, a number out of range, or a geometry that
        does not divide.
    """
    _choice("model.backbone", backbone, ("shared", "specific"))
    _choice("model.dtype", dtype, ("float32", "bfloat16"))
    _choice("model.remat", remat, encoder.REMAT)
    _share("model.dropout", dropout)
    if attention_dropout is None:
        attention_dropout = dropout
    _share("model.attention_dropout", attention_dropout)
    tokenizers = _tokenizers(video=video, audio=audio, text=text)
    names = tuple(tokenizers)
    specs = {name: tokenizer.spec for name, tokenizer in tokenizers.items()}
    shared = backbone == "shared"
    if shared and not isinstance(size, str) and set(size) & set(presets.MODALITIES):
        raise errors.UserError(
            "model.size: a shared backbone has one size; found one by modality "
            "(use backbone 'specific' for that)"
        )
    if pooled_width is not None and not shared:
        raise errors.UserError(
            "model.pooled_width: only the shared backbone has post-projections; "
            "leave it out with backbone 'specific'"
        )
    sizes = presets.sizes_by_modality(size, names)
    module = backbones.Vatt(
        specs=nn.FrozenDict(specs),  # pyright: ignore[reportArgumentType]
        axes=nn.FrozenDict({name: t.axes for name, t in tokenizers.items()}),  # pyright: ignore[reportArgumentType]
        sizes=nn.FrozenDict(sizes),  # pyright: ignore[reportArgumentType]
        shared=shared,
        post_width=pooled_width or 0,
        word_width=word_width or 0,
        frozen_words=frozen_words,
        attention=_attention(attention, dtype, attention_dropout, sizes),
        dropout=dropout,
        attention_dropout=attention_dropout,
        dtype=jnp.dtype(dtype),
        scan=scan,
        remat=remat,
    )
    return Model(
        specs=specs,
        widths={name: pooled_width or sizes[name]["width"] for name in names},
        tokenizers=tokenizers,
        keep=_keep(drop_token, specs),
        drop_per_sample=drop_per_sample,
        module=module,
    )


def _choice(what: str, value: str, options: Any) -> None:
    if value not in options:
        raise errors.UserError(
            f"{what}: unknown {value!r}{errors.nearest(str(value), options)} "
            f"(known: {', '.join(options)})"
        )


def _attention(
    kind: str, dtype: str, dropout: float, sizes: Mapping[str, Mapping[str, int]]
) -> str:
    """The attention to use: `kind`, or "xla" where this platform lacks it."""
    _choice("model.attention", kind, encoder.ATTENTION)
    if kind == "xla":
        return kind
    if dropout:
        raise errors.UserError(
            f"model.attention {kind!r} drops no attention weights, found a rate of "
            f"{dropout}: set model.attention_dropout=0"
        )
    if dtype != "bfloat16":
        raise errors.UserError(
            f"model.attention {kind!r} computes in bfloat16, found model.dtype "
            f"{dtype!r}: set model.dtype='bfloat16', or take 'xla'"
        )
    for name, size in sizes.items():
        width = size["width"] // size["heads"]
        if width % 8 or width > 128:
            raise errors.UserError(
                f"model.attention {kind!r} takes heads of 8, 16, ... 128 dimensions; "
                f"those of {name} have {width}: change model.size, or take 'xla'"
            )
    if jax.default_backend() != "gpu":
        _say(
            f"model.attention {kind!r} needs an NVIDIA GPU; this is "
            f"{jax.default_backend()}, using 'xla'"
        )
        return "xla"
    return kind


@functools.cache
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _share(what: str, rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise errors.UserError(f"{what}: expected 0 <= rate < 1, found {rate}")


def _tokenizers(
    **settings: Mapping[str, Any] | None,
) -> dict[str, tokenize.Tokenizer]:
    result = {}
    for name, given in settings.items():
        if given is None:
            continue
        arguments = dict(given)
        kind = name
        if name == "audio":
            kind = arguments.pop("tokenizer", "wave")
            _choice("model.audio.tokenizer", kind, AUDIO_TOKENIZERS)
        build = TOKENIZERS[kind]
        known = inspect.signature(build).parameters
        for key in arguments:
            if key not in known:
                raise errors.UserError(
                    f"model.{name}.{key}: not an argument of {build.__name__}"
                    f"{errors.nearest(key, known)} (known: {', '.join(known)})"
                )
        for key, parameter in known.items():
            if parameter.default is parameter.empty and key not in arguments:
                raise errors.UserError(
                    f"model.{name}.{key}: missing; {build.__name__} needs it"
                )
        lists = {
            k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()
        }
        try:
            result[name] = build(**lists)
            _ = result[name].spec
        except ValueError as fault:
            raise errors.UserError(f"model.{name}: {fault}") from fault
    if not result:
        raise errors.UserError("model: give at least one of video, audio and text")
    return result


def _keep(
    rate: float | Mapping[str, float], specs: Mapping[str, types.ModalitySpec]
) -> dict[str, int]:
    """Tokens kept per modality that drops any."""
    continuous = [name for name, spec in specs.items() if not spec.vocab]
    if isinstance(rate, Mapping):
        for name in rate:
            if name not in continuous:
                raise errors.UserError(
                    f"model.drop_token.{name}: tokens are dropped only from "
                    f"{', '.join(continuous) or 'video and audio'}; remove it"
                )
        rates = dict(rate)
    else:
        rates = dict.fromkeys(continuous, rate)
    keep = {}
    for name, share in rates.items():
        _share(f"model.drop_token.{name}", share)
        if share:
            keep[name] = max(1, round(specs[name].tokens * (1.0 - share)))
    return keep
