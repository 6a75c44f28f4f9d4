"""Gradients per sample and loss: cotangents, weightings, the harmonized backward."""

from mmssl.gradients.curriculum import Curriculum
from mmssl.gradients.engines import Embedding, Engine, Plain, Tower, Vmap
from mmssl.gradients.harmonize import Backward, Harmonizer, backward
from mmssl.gradients.tapped import ENGINES, Exact, LastK, Sketch, Subset
from mmssl.gradients.trim import Trim
from mmssl.gradients.weightings import WEIGHTINGS, Fixed, Sum, Weighting

__all__ = [
    "ENGINES",
    "WEIGHTINGS",
    "Backward",
    "Curriculum",
    "Embedding",
    "Engine",
    "Exact",
    "Fixed",
    "Harmonizer",
    "LastK",
    "Plain",
    "Sketch",
    "Subset",
    "Sum",
    "Tower",
    "Trim",
    "Vmap",
    "Weighting",
    "backward",
]
