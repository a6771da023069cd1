"""Reinforcement learning on the singular values of language-model weights."""

__version__ = "0.1.0"
