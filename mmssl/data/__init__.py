"""Media to batches: build, validate, decode, sample, stream. NumPy only."""
