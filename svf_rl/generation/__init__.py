"""CompletionGenerator: one interface over a colocated vLLM and over transformers, and the weight sync between."""

from svf_rl.generation.sampling import Completion, CompletionGenerator, Sampling, SyncReport, cut_at_stop, sample_seed

__all__ = ["Completion", "CompletionGenerator", "Sampling", "SyncReport", "cut_at_stop", "sample_seed"]
