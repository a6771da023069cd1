"""Whether a recipe fits its GPUs."""
