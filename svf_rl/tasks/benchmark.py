"""What the tasks on public benchmarks share: where their rows come from and how a file is cut into splits."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Hub, Splits, limit_rows


def is_local(options: TaskOptions) -> bool:
    """Whether the rows are local files."""
    return options.data_path is not None or options.data_dir is not None


def local_folder(options: TaskOptions, folder: str) -> Path | None:
    """The folder with the task's files: `data_path`, or its `folder` in `data_dir`; `None` for the Hub.

    Raises:
        SVFError: there is no such folder, or it is a file.
    """
    if not is_local(options):
        return None
    path = Path(options.data_dir or "", folder) if options.data_path is None else Path(options.data_path)
    if path.is_file():
        raise SVFError(
            f"{path} is a file: name the folder that holds it (each file in svf_rl/tasks says what it reads)"
        )
    if not path.is_dir():
        raise SVFError(f"data folder {path} does not exist (working directory: {Path.cwd()})")
    return path


def choose_hub_dataset(options: TaskOptions, hub: Hub) -> tuple[str, str | None]:
    """Name and configuration of the dataset on the Hub: those of `options`, or the task's own. Another dataset has
    other configurations, so the task's configuration goes with the task's dataset alone."""
    if options.dataset_name is None:
        return hub.name, options.dataset_config or hub.config
    return options.dataset_name, options.dataset_config


def alternate(rows: Dataset) -> tuple[Dataset, Dataset]:
    """The even rows and the odd rows: training and validation of a benchmark that has no validation split."""
    even, odd = (rows.select(range(start, len(rows), 2)) for start in (0, 1))
    return even, odd


def as_splits(options: TaskOptions, train: Dataset | None, validation: Dataset | None, test: Dataset) -> Splits:
    """The splits, each cut to the number of rows that `options` ask for."""
    return {
        "train": None if train is None else limit_rows("train", train, options.train_items),
        "validation": None if validation is None else limit_rows("validation", validation, options.validation_items),
        "test": limit_rows("test", test, options.test_items),
    }


def system_prompt(options: TaskOptions, default: str, reference: str) -> str:
    """The system message: that of `options`, or the task's for the profile."""
    if options.system_prompt is not None:
        return options.system_prompt
    return reference if options.profile == "reference" else default


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Rows of the same columns as a table."""
    return Dataset.from_list([dict(row) for row in rows])
