"""The fixtures of a small trainer, for this folder."""

from tiny_trainers import make_trainer, parity_reward, scripted, tiny_llama, tokenizer

__all__ = ["make_trainer", "parity_reward", "scripted", "tiny_llama", "tokenizer"]
