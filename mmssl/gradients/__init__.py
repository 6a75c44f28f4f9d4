"""Gradients per sample and loss: cotangents, weightings, the harmonized backward."""

from mmssl.gradients.harmonize import Backward, Harmonizer, backward
from mmssl.gradients.weightings import WEIGHTINGS, Fixed, Sum, Weighting

__all__ = [
    "WEIGHTINGS",
    "Backward",
    "Fixed",
    "Harmonizer",
    "Sum",
    "Weighting",
    "backward",
]
