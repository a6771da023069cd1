"""Tasks: one file each, found by name. To add one, copy `gsm8k.py` and give its `TASK` a new name."""

from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Splits, Task, find_task

__all__ = ["Splits", "Task", "TaskOptions", "find_task"]
