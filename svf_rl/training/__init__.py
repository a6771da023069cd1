"""The trainer, its checkpoints and how it resumes."""
