"""What the tasks on public benchmarks share: where their rows come from and how a file is divided into splits."""

from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.files import kind_of_path, read_folder, read_hub
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Hub, Splits, has_files


def read_benchmark(
    options: TaskOptions,
    hub: Hub,
    needed: Sequence[str],
    read_files: Callable[[Path], dict[str, Dataset]] | None = None,
) -> tuple[dict[str, Dataset], str]:
    """
    The splits of a benchmark, and where they come from: from the folder `data_path`, or the benchmark's in `data_dir`,
    or else from the Hub.

    Args:
        options ([`TaskOptions`]): the files, or name and configuration of another dataset on the Hub.
        hub ([`Hub`]): the benchmark.
        needed (`Sequence[str]`): the splits that must be there.
        read_files (`Callable`, *optional*): reads the folder; default: one file for each split.

    Raises:
        SVFError: there is no such folder or dataset, or it lacks a needed split.
    """
    if not has_files(options):
        name, config = options.dataset_name, options.dataset_config
        if name is None:  # the benchmark's configuration belongs to its own dataset only: another one has other ones
            name, config = hub.name, config or hub.config
        return read_hub(name, config, needed), name
    path = Path(options.data_dir or "", hub.folder) if options.data_path is None else Path(options.data_path)
    kind = kind_of_path(path)
    if kind == "file":
        raise SVFError(
            f"{path} is a file: give the folder that contains it (each file in svf_rl/tasks says what it reads)"
        )
    if kind != "folder":
        raise SVFError(f"data folder {path} does not exist (working directory: {Path.cwd()})")
    return read_folder(path, needed) if read_files is None else read_files(path), str(path)


def alternate(rows: Dataset) -> Splits:
    """Training and validation for a benchmark without a validation split: the even rows and the odd rows."""
    return {split: rows.shard(2, i, contiguous=False) for i, split in enumerate(("train", "validation"))}


def choose_system_prompt(options: TaskOptions, default: str, reference: str | None = None) -> str:
    """The system message of `options`, or else the task's for the profile."""
    if options.system_prompt is not None:
        return options.system_prompt
    return reference if reference and options.profile == "reference" else default
