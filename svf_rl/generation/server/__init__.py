"""vLLM servers as generators, and the update of their weights."""
