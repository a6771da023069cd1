"""Self-adaptation (Transformer², arXiv 2501.06252, section 3.2): from a set of experts to the model for a task."""
