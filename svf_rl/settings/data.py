"""What a recipe says of the task, of its rows and of the rewards."""

from dataclasses import dataclass
from typing import Any

from svf_rl.described import described
from svf_rl.tasks.options import TaskOptions


@dataclass
class DataArguments(TaskOptions):
    """The task, where its rows come from ([`svf_rl.tasks.TaskOptions`]), and the rewards."""

    task: str = described("columns", "A file of svf_rl/tasks; columns is your own dataset.")
    rewards: list[str | dict[str, Any]] | str | dict[str, Any] | None = described(
        None, "Names, or mappings of name, weight and the reward's arguments; default: the task's."
    )

    def __post_init__(self) -> None:
        if isinstance(self.rewards, str | dict):
            self.rewards = [self.rewards]
