"""A plain model as one GGUF file."""
