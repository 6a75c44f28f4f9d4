"""Hand-over: a trained encoder as safetensors, and back."""
