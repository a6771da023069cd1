"""The trainer and its settings."""
