"""Local files and datasets of the Hub as tables. Local files are read into memory: no cache is written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import csv, parquet

from svf_rl.errors import SVFError
from svf_rl.storage.json_files import read_json_lines
from svf_rl.tasks.task import SPLITS

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz")


def read_file(path: Path) -> Dataset:
    """The rows of one .jsonl (or .jsonl.gz), .json (a list of objects), .parquet or .csv file.

    Raises:
        SVFError: no such file, another kind of file, or not readable as its kind.
    """
    if not path.is_file():
        raise SVFError(f"data file {path} does not exist (working directory: {Path.cwd()})")
    if not path.name.endswith(SUFFIXES):
        raise SVFError(f"data file {path} must be one of {', '.join(SUFFIXES)}")
    try:
        match path.suffix:
            case ".csv":
                return Dataset(csv.read_csv(path))
            case ".parquet":
                return Dataset(parquet.read_table(path))
            case ".json":
                return _from_objects(json.loads(path.read_text(encoding="utf-8")), path)
            case _:
                return _from_objects(read_json_lines(path, lambda row: row, "correct that line", torn_ok=False), path)
    # pyarrow's errors derive from ValueError, and so do those of JSON and of UTF-8; OSError and EOFError are gzip's
    except (ValueError, TypeError, OSError, EOFError, pyarrow.ArrowException) as error:
        raise error if isinstance(error, SVFError) else SVFError(f"data file {path}: {_one_line(error)}") from error


def read_folder(path: Path, needed: Sequence[str] = ("train",)) -> dict[str, Dataset]:
    """The splits of a folder with `train`, `validation` and `test` files of any known kind.

    Raises:
        SVFError: a split missing that is needed, or two files for one split.
    """
    found: dict[str, Dataset] = {}
    for split in SPLITS:
        files = [file for suffix in SUFFIXES if (file := path / f"{split}{suffix}").is_file()]
        if len(files) > 1:
            raise SVFError(f"data folder {path} has two {split} files: keep one of {', '.join(f.name for f in files)}")
        if files:
            found[split] = read_file(files[0])
    for split in needed:
        if split not in found:
            kind = "training" if split == "train" else split
            raise SVFError(f"data folder {path} has no {kind} file: it needs {split}{f', {split}'.join(SUFFIXES)}")
    return found


def read_hub(name: str, config: str | None = None, needed: Sequence[str] = ("train",)) -> dict[str, Dataset]:
    """All splits of a dataset on the Hub, from the local cache if it is there; or of a local folder with its layout.

    Raises:
        SVFError: it cannot be loaded, or lacks a needed split.
    """
    try:
        splits = load_dataset(name, config)
    except (OSError, ValueError, DatasetsError) as error:
        raise SVFError(
            f"dataset {name!r} could not be loaded ({_one_line(error)}); check dataset_name and dataset_config, or "
            "give local files as data_dir or data_path"
        ) from error
    for split in needed:
        if split not in splits:
            raise SVFError(f"dataset {name!r} has no {split} split; it has: {', '.join(splits)}")
    return dict(splits)


def _from_objects(rows: Any, path: Path) -> Dataset:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SVFError(f"data file {path} must contain objects, such as {{'prompt': ..., 'answer': ...}}")
    # rows may differ in their columns; a missing value is null
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
