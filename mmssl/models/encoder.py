"""The Transformer encoder: attention, blocks, unrolled or scanned over layers, remat.

Two forms. `vit` (VATT's shared, video and audio encoders): LayerNorm before attention
and MLP, biases, logits scaled by 1/sqrt(d_kv). `t5` (the text tower of the
modality-specific models): RMSNorm before attention, LayerNorm before the MLP, no
biases in Dense, no scaling, one relative-position bias computed once and used by all
layers. Both: exact GELU, residuals, a final norm, dropout on attention weights, on
sub-layer outputs and on the MLP's hidden units.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from mmssl.models import layers

REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a rematerialised block keeps: nothing; every product; weight products only."""


ATTENTION = ("xla", "cudnn")
"""`xla`: products and a softmax that XLA compiles for any platform. `cudnn`: cuDNN's
fused kernels, which never hold the [t, t] weights; NVIDIA GPUs, bfloat16."""


def fused_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b t h c"],
    value: Float[Array, "b t h c"],
    valid: Bool[Array, "b t"],
    *,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "b t h c"]:
    """`jax.nn.dot_product_attention`, logits not scaled.

    Padding goes in as lengths, so it must come last; with a mask cuDNN would take even
    numbers of tokens only.
    """
    lengths = valid.sum(-1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=1.0,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


class Attention(nn.Module):
    """Multi-head self-attention, softmax in float32: [b, t, d] -> [b, t, d].

    Attributes:
      kind: a name in `ATTENTION`; the t5 form's learnt bias takes "xla" always.
      dropout: rate on the attention weights; 0 for a fused kind.
    """

    heads: int
    form: str
    kind: str
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        valid: Bool[Array, "b t"],
        bias: Float[Array, "b h|1 t|1 t"],
        keys: Key[Array, "b"] | None,
    ) -> Float[Array, "b t d"]:
        rows, tokens, width = x.shape
        d_kv = width // self.heads
        t5 = self.form == "t5"

        def split(name: str, init: Any = layers.glorot) -> jax.Array:
            flat = layers.Dense(
                width, use_bias=not t5, dtype=self.dtype, kernel_init=init, name=name
            )(x)
            return flat.reshape(rows, tokens, self.heads, d_kv)

        # Without the 1/sqrt(d_kv) of the logits, T5 puts it into the initialiser.
        query_init = (
            nn.initializers.normal((width * d_kv) ** -0.5) if t5 else layers.glorot
        )
        query, key, value = split("query", query_init), split("key"), split("value")
        if not t5:
            query = query * jnp.asarray(d_kv**-0.5, self.dtype)
        if self.kind == "xla" or t5:
            logits = jnp.einsum(
                "bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32
            )
            weights = jax.nn.softmax(logits + bias, axis=-1).astype(self.dtype)
            weights = layers.dropout(
                weights, rate=self.dropout, keys=keys, site="attention_weights"
            )
            mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
        else:
            kind: Any = self.kind
            mixed = fused_attention(query, key, value, valid, implementation=kind)
        return layers.Dense(width, use_bias=not t5, dtype=self.dtype, name="output")(
            mixed.reshape(rows, tokens, width)
        )


class Block(nn.Module):
    """One pre-norm layer. Returns (x, None): the signature scan wants."""

    mlp: int
    heads: int
    form: str
    attention: str
    dropout: float
    attention_dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        layer: int | Int[Array, ""],
        valid: Bool[Array, "b t"],
        bias: Float[Array, "b h|1 t|1 t"],
        keys: Key[Array, "b"] | None,
    ) -> tuple[Float[Array, "b t d"], None]:
        t5 = self.form == "t5"
        if keys is not None and (self.dropout or self.attention_dropout):
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, layer)

        def drop(value: jax.Array, site: str) -> jax.Array:
            return layers.dropout(value, rate=self.dropout, keys=keys, site=site)

        norm = layers.RMSNorm if t5 else layers.LayerNorm
        y = norm(dtype=self.dtype, name="attention_norm")(x)
        y = Attention(
            heads=self.heads,
            form=self.form,
            kind=self.attention,
            dropout=self.attention_dropout,
            dtype=self.dtype,
            name="attention",
        )(y, valid, bias, keys)
        x = x + drop(y, "attention")
        y = layers.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = layers.Dense(self.mlp, use_bias=not t5, dtype=self.dtype, name="mlp_in")(y)
        y = drop(layers.gelu(y), "mlp_hidden")
        y = layers.Dense(
            x.shape[-1], use_bias=not t5, dtype=self.dtype, name="mlp_out"
        )(y)
        return x + drop(y, "mlp"), None


class Encoder(nn.Module):
    """[b, t, d] tokens -> [b, t, d], final norm and dropout applied.

    Parameters of layer i are under `layer_ii`; with `scan` those of all layers are
    stacked on a leading axis under `layers` (see `stack_layers`). Both give the same
    outputs, dropout included.

    Attributes:
      form: "vit" or "t5", see the module's text.
      attention: a name in ATTENTION.
      dropout: rate of all sites but the attention weights.
      attention_dropout: rate on those.
      scan: compile one layer and loop over it.
      remat: a name in REMAT.
    """

    depth: int
    mlp: int
    heads: int
    form: str
    attention: str
    dropout: float
    attention_dropout: float
    dtype: jnp.dtype
    scan: bool
    remat: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        valid: Bool[Array, "b t"],
        positions: Int[Array, "b t"],
        keys: Key[Array, "b"] | None,
    ) -> Float[Array, "b t d"]:
        """Padding is never attended to; `positions` matter to the t5 form only."""
        bias = layers.padding_bias(valid)
        if self.form == "t5":
            bias = bias + layers.RelativePositionBias(
                heads=self.heads, width=x.shape[-1], name="relative_position"
            )(positions)
        block: Any = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not self.scan)
        fields = {
            "mlp": self.mlp,
            "heads": self.heads,
            "form": self.form,
            "attention": self.attention,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "dtype": self.dtype,
        }
        if self.scan:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, "inputs": 0, "taps": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=self.depth,
            )
            x, _ = scanned(**fields, name="layers")(
                x, jnp.arange(self.depth), valid, bias, keys
            )
        else:
            for i in range(self.depth):
                x, _ = block(**fields, name=f"layer_{i:02d}")(x, i, valid, bias, keys)
        norm = layers.RMSNorm if self.form == "t5" else layers.LayerNorm
        x = norm(dtype=self.dtype, name="norm")(x)
        return layers.dropout(x, rate=self.dropout, keys=keys, site="encoder_output")


def stack_layers(params: Any) -> Any:
    """Parameters of unrolled encoders -> those of scanned ones, anywhere in a tree."""
    if not isinstance(params, dict):
        return params
    names = [name for name in params if name.startswith("layer_")]
    names.sort(key=lambda name: int(name.removeprefix("layer_")))  # 100 after 11
    rest = {k: stack_layers(v) for k, v in params.items() if k not in names}
    if names:
        rest["layers"] = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *[params[name] for name in names]
        )
    return rest


def unstack_layers(params: Any) -> Any:
    """The inverse of `stack_layers`."""
    if not isinstance(params, dict):
        return params
    rest = {k: unstack_layers(v) for k, v in params.items() if k != "layers"}
    if "layers" in params:
        depth = jax.tree.leaves(params["layers"])[0].shape[0]
        for i in range(depth):
            rest[f"layer_{i:02d}"] = jax.tree.map(lambda x, i=i: x[i], params["layers"])
    return rest
