"""Where a task's rows come from and how many are used: the part of a recipe that every task reads."""

from dataclasses import dataclass
from typing import Any, Literal

from svf_rl.described import described


@dataclass
class TaskOptions:
    """Options of a task, each described in its `help`. A task reads those that concern it."""

    skill: str = described("math", "Task quickstart: math, choice, code, tools or dispatch.")
    wording: Literal["standard", "reworded"] = described(
        "standard",
        "Tasks quickstart and exam: reworded asks in sentences that the bundled model was not trained on.",
    )
    data_path: str | None = described(
        None, "The task's own files instead of the Hub: a folder (each task says which files), or one file."
    )
    data_dir: str | None = described(
        None,
        "A folder with one folder for each benchmark (gsm8k, math, mbpp, humaneval, arc), instead of the Hub for all "
        "tasks at once. data_path takes precedence; tasks without such a folder ignore it.",
    )
    dataset_name: str | None = described(None, "Name of a dataset on the Hub.")
    dataset_config: str | None = described(None, "Configuration of the Hub's dataset, where it has several.")
    prompt_column: str = described(
        "prompt", "Task columns: the column with the question, as text or as a list of chat messages."
    )
    answer_column: str | None = described(None, "Task columns: the column that rewards get as `answer`.")
    system_prompt: str | None = described(None, "System message, instead of the task's own; '' for none.")
    stop_strings: list[str] | None = described(
        None, "A completion ends before the first of these strings, instead of the task's own; [] for none."
    )
    profile: Literal["default", "reference"] = described(
        "default",
        "reference uses the splits, prompts and stop strings of the published code of Transformer², to compare with "
        "its figures. Answers that this code graded wrongly are graded correctly here.",
    )
    dataset: str | None = described(None, "Task reasoning_gym: the name of one of its data sets, such as word_sorting.")
    config: dict[str, Any] | None = described(
        None,
        "Task reasoning_gym: the data set's own settings, as in {min_words: 2, max_words: 3}; in a mixture, and in "
        "classes, by set.",
    )
    curriculum: dict[str, list[Any]] | None = described(
        None,
        "Task reasoning_gym: settings of the data set by level, as in {min_words: [2, 3], max_words: [2, 4]}; training "
        "starts at the first and goes on to the next by curriculum_accuracy. Other rows are of the last level.",
    )
    shots: int = described(
        0,
        "Worked examples before each question, as turns of the conversation: the first training rows, which are then "
        "not trained on.",
    )
    mixture: dict[str, float] | None = described(
        None, "Task mixture: the tasks and the weight of each, as in {gsm8k: 2, mbpp: 1}."
    )
    classes: dict[str, Any] | None = described(
        None,
        "Task dispatch: the classes and the task of each, as in {maths: gsm8k, sorting: 'reasoning_gym:word_sorting'}, "
        "or with what the system message says of it, {task: gsm8k, description: calculations}.",
    )
    validation_share: float = described(
        0.1,
        "Task columns: the share of the training rows held out where there is no validation split. Which rows depends "
        "only on the data and not on the run's seed, so runs with different seeds can be compared.",
    )
    train_items: int | None = described(None, "Use only this many training rows, the first ones.")
    validation_items: int | None = described(None, "Use only this many validation rows, the first ones.")
    test_items: int | None = described(None, "Use only this many test rows, the first ones.")
