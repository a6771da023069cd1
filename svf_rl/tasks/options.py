"""Where a task's rows come from and how many are taken: the part of a recipe that every task reads."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TaskOptions:
    """
    Options of a task. A task reads those that concern it.

    Args:
        skill (`str`, *optional*, defaults to `"math"`): Task `quickstart`: `math`, `choice`, `code` or `dispatch`.
        wording (`str`, *optional*, defaults to `"standard"`): Tasks `quickstart` and `exam`: `reworded` asks in
            sentences that the bundled model was not trained on.
        data_path (`str`, *optional*):
            The task's own files in place of the Hub: a folder (each task says which files), or one file.
        data_dir (`str`, *optional*):
            A folder that holds one folder a benchmark (`gsm8k`, `math`, `mbpp`, `humaneval`, `arc`), in place of the
            Hub for all tasks at once. `data_path` goes before it; tasks without a folder of that kind ignore it.
        dataset_name (`str`, *optional*): Name of a dataset on the Hub.
        dataset_config (`str`, *optional*): Its configuration, where it has several.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Task `columns`: the column with the question, as text or as chat messages.
        answer_column (`str`, *optional*): Task `columns`: a column that rewards are to find as `answer`.
        system_prompt (`str`, *optional*): The system message, in place of the task's own; `""` for none.
        stop_strings (`list[str]`, *optional*):
            A completion ends before the first of these, in place of the task's own; `[]` for none.
        profile (`str`, *optional*, defaults to `"default"`):
            `"reference"` takes splits, prompts and stop strings as the published code of Transformer² has them, for
            comparison with its figures; what that code graded wrongly is graded rightly all the same.
        mixture (`dict[str, float]`, *optional*): Task `mixture`: the tasks and the weight of each.
        validation_share (`float`, *optional*, defaults to `0.1`):
            Task `columns`: the share of the training rows held out where there is no validation split. The choice
            depends on the data alone, not on the run's seed, so that runs of several seeds compare.
        train_items, validation_items, test_items (`int`, *optional*): Take only the first so many rows of a split.
    """

    skill: str = field(default="math", metadata={"help": "Task quickstart: math, choice, code or dispatch."})
    wording: Literal["standard", "reworded"] = field(
        default="standard", metadata={"help": "Tasks quickstart and exam: reworded asks in sentences never trained on."}
    )
    data_path: str | None = field(default=None, metadata={"help": "Local folder or file, in place of the Hub."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with a folder a benchmark (gsm8k, math, ...), in place of the Hub."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Name of a dataset on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub's dataset."})
    prompt_column: str = field(default="prompt", metadata={"help": "Task columns: the column with the question."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Task columns: the column that rewards are to find as `answer`."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message, in place of the task's own; '' for none."}
    )
    stop_strings: list[str] | None = field(
        default=None, metadata={"help": "Strings that end a completion, in place of the task's own; [] for none."}
    )
    profile: Literal["default", "reference"] = field(
        default="default", metadata={"help": "reference: splits and prompts as in the code of Transformer²."}
    )
    mixture: dict[str, float] | None = field(
        default=None, metadata={"help": "Task mixture: tasks and their weights, as in {gsm8k: 2, mbpp: 1}."}
    )
    validation_share: float = field(
        default=0.1, metadata={"help": "Task columns: share of the training rows held out for validation."}
    )
    train_items: int | None = field(default=None, metadata={"help": "Take only so many training rows."})
    validation_items: int | None = field(default=None, metadata={"help": "Take only so many validation rows."})
    test_items: int | None = field(default=None, metadata={"help": "Take only so many test rows."})
