"""Verifiers and rewards: what checks a completion, and the one place where both are looked up by name.

To add a reward, put a file with a `@reward("my_name")` function here, or write it anywhere and name it in the recipe
as `package.module:function` or `path/to/file.py:function`. A check of one completion against one reference is better
written as a verifier (copy `verifiers/exact_match.py`), which is a reward of the same name too.
"""

from svf_rl.errors import InfrastructureError
from svf_rl.rewards.registry import load_reward, reward
from svf_rl.rewards.reward import Reward, completion_text, required_columns
from svf_rl.rewards.verifier import Verdict, verifier, verify, verify_all

__all__ = [
    "InfrastructureError", "Reward", "Verdict", "completion_text", "load_reward", "required_columns", "reward",
    "verifier", "verify", "verify_all",
]  # fmt: skip
