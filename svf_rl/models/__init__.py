"""Base models, tokenizers and adapters, as a recipe names them."""
