"""What the tasks on public benchmarks share: where their rows come from and how a file is divided into splits."""

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


def find_local_folder(options: TaskOptions, folder: str) -> Path | None:
    """The folder with the task's files: `data_path`, or its `folder` in `data_dir`; `None` for the Hub.

    Raises:
        SVFError: there is no such folder, or it is a file.
    """
    if not is_local(options):
        return None
    path = Path(options.data_dir or "", folder) if options.data_path is None else Path(options.data_path)
    if path.is_file():
        raise SVFError(
            f"{path} is a file: give the folder that contains it (each file in svf_rl/tasks says what it reads)"
        )
    if not path.is_dir():
        raise SVFError(f"data folder {path} does not exist (working directory: {Path.cwd()})")
    return path


def choose_hub_dataset(options: TaskOptions, hub: Hub) -> tuple[str, str | None]:
    """Name and configuration of the dataset on the Hub: those of `options`, or the task's. The task's configuration
    belongs to the task's dataset only: another dataset has other ones."""
    if options.dataset_name is None:
        return hub.name, options.dataset_config or hub.config
    return options.dataset_name, options.dataset_config


def alternate(rows: Dataset) -> tuple[Dataset, Dataset]:
    """The even rows and the odd rows: training and validation for a benchmark without a validation split."""
    even, odd = (rows.select(range(start, len(rows), 2)) for start in (0, 1))
    return even, odd


def as_splits(options: TaskOptions, train: Dataset | None, validation: Dataset | None, test: Dataset | None) -> Splits:
    """The splits, each limited to the number of rows that `options` give."""
    tables = {"train": train, "validation": validation, "test": test}
    return {
        split: None if rows is None else limit_rows(split, rows, getattr(options, f"{split}_items"))
        for split, rows in tables.items()
    }


def choose_system_prompt(options: TaskOptions, default: str, reference: str) -> str:
    """The system message of `options`, or else the task's for the profile."""
    if options.system_prompt is not None:
        return options.system_prompt
    return reference if options.profile == "reference" else default


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Rows of the same columns as a table."""
    return Dataset.from_list([dict(row) for row in rows])
