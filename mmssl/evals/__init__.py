"""Judging embeddings: retrieval, nearest neighbours, linear probes, chance."""
