"""Rollouts: one interface over a colocated vLLM and over transformers, and the weight sync between."""

from svf_rl.generation.sampling import Completion, Rollouts, Sampling, SyncReport, sample_seed, until_stop

__all__ = ["Completion", "Rollouts", "Sampling", "SyncReport", "sample_seed", "until_stop"]
