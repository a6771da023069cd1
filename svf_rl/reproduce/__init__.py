"""`svf-rl reproduce`: the comparison of Transformer² (arXiv 2501.06252, tables 1 to 3) on any model and tasks."""
