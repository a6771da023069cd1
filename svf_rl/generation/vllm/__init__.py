"""The vLLM engine in the process of the trainer."""
