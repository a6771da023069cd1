"""Rewards: plain functions that score completions, and the one place where they are looked up by name.

To add one, put a file with a `@reward("my_name")` function beside `exact_match.py`, or write it anywhere and name it
in the recipe as `package.module:function` or `path/to/file.py:function`.
"""

from svf_rl.rewards.registry import load_reward, reward
from svf_rl.rewards.reward import Reward, completion_text, required_columns

__all__ = ["Reward", "completion_text", "load_reward", "required_columns", "reward"]
