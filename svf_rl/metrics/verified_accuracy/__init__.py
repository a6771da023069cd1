"""Metric `verified_accuracy` of Hugging Face `evaluate`."""
