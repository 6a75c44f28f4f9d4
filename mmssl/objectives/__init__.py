"""Objectives: everything that couples the samples of a batch."""

from mmssl.objectives import contrastive

OBJECTIVES = {
    "contrastive": contrastive.CrossModalContrast,
}
