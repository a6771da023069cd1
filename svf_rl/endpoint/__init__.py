"""An OpenAI-compatible server that adapts itself to each request: experts, mixtures of them, and `auto`."""
