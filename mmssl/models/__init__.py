"""Models: raw media -> tokens -> encodings, and projection heads.

The only package that imports Flax. What leaves it are pure functions over plain dicts.
"""

from mmssl.models.encoder import stack_layers, unstack_layers
from mmssl.models.heads import Heads, build_heads
from mmssl.models.presets import SIZES
from mmssl.models.vatt import Model, build_model

__all__ = [
    "SIZES",
    "Heads",
    "Model",
    "build_heads",
    "build_model",
    "stack_layers",
    "unstack_layers",
]
