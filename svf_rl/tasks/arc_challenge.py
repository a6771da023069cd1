"""Task `arc_challenge`: the harder of AI2's science questions (data, prompt and splits: `arc.py`)."""

from svf_rl.tasks.arc import make_task

TASK = make_task("arc_challenge", "ARC-Challenge")
