"""CompletionGenerator: one interface over a colocated vLLM and over transformers, and the weight sync between."""

from svf_rl.generation.sampling import Completion, CompletionGenerator, Sampling, SyncReport, sample_seed, until_stop

__all__ = ["Completion", "CompletionGenerator", "Sampling", "SyncReport", "sample_seed", "until_stop"]
