"""Task `arc_easy`: the easier of AI2's science questions (data, prompt and splits: `arc.py`)."""

from functools import partial

from svf_rl.tasks.arc import HUB_NAME, load_arc
from svf_rl.tasks.benchmark import is_local
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Hub, RewardSpec, Task


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    return ({"name": "choice"},)


TASK = Task(
    "arc_easy",
    partial(load_arc, "ARC-Easy"),
    rewards,
    is_local,
    columns=frozenset({"prompt", "answer", "target"}),
    hub=Hub(HUB_NAME, "ARC-Easy"),
    folder="arc",
)
