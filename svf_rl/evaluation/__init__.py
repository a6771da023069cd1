"""Evaluation of a model and its adapters on tasks: `svf_rl.evaluation.run.evaluate`, or `svf-rl eval` in a shell."""
