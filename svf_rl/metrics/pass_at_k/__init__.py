"""Metric `pass_at_k` of Hugging Face `evaluate`."""
