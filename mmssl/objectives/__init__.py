"""Objectives: everything that couples the samples of a batch."""

from mmssl.objectives import contrastive, fine_grained

OBJECTIVES = {
    "contrastive": contrastive.CrossModalContrast,
    "fine_grained": fine_grained.FineGrained,
}
