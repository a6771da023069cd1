"""A plain model as one GGUF file."""

TYPES = ("f32", "f16", "bf16", "q8_0")
"""What the matrices are stored as; vectors stay in fp32, as llama.cpp wants them."""
