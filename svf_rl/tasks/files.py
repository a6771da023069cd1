"""Local files and datasets of the Hub as tables. Local files are read into memory: no cache is written."""

import json
import warnings
import zlib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import parquet

from svf_rl.errors import SVFError, one_line
from svf_rl.storage.json_files import read_json_lines
from svf_rl.storage.loading_errors import loading_error
from svf_rl.tasks.csv_files import read_csv
from svf_rl.tasks.task import SPLITS

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".jsonl.gz")


class _Written(float):
    """A number of a JSON file with a point or an exponent, and how it is written there."""

    def __new__(cls, text: str) -> "_Written":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def kind_of_path(path: Path) -> str:
    """`"file"`, `"folder"`, or `""` where there is nothing. Raises `SVFError` where the system does not say it: a name
    that is too long, a folder of another user."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else ""
    except OSError as error:
        raise SVFError(f"data path {path} cannot be read: {error.strerror}") from error


def read_file(path: Path, references: str | None = None) -> Dataset:
    """The rows of one .jsonl (or .jsonl.gz), .json (a list of objects), .parquet, .csv or .tsv file.

    The cells of a .csv or .tsv are text. The numbers of a column of JSON become text, as they are written there, where
    64 bits would change a value of the column.

    Args:
        path (`Path`): the file.
        references (`str`, *optional*): a column whose numbers become text also where they would be written in another
            way alone: `0.50` as `0.5`, or `7` beside `7.5` as `7.0`.

    Raises:
        SVFError: no such file, another kind of file, or not readable as its kind.
    """
    if kind_of_path(path) != "file":
        raise SVFError(f"data file {path} does not exist (working directory: {Path.cwd()})")
    if not path.name.endswith(SUFFIXES):
        raise SVFError(f"data file {path} must be one of {', '.join(SUFFIXES)}")
    try:
        match path.suffix:
            case ".csv" | ".tsv":
                return Dataset.from_dict(read_csv(path))
            case ".parquet":
                return Dataset(parquet.read_table(path))
            case ".json":
                text = path.read_text(encoding="utf-8-sig")
                return _from_objects(json.loads(text, parse_float=_Written), path, references)
            case _:
                rows: list[Any] = read_json_lines(
                    path, lambda row: row, "correct that line", torn_ok=False, parse_float=_Written
                )
                return _from_objects(rows, path, references)
    except SVFError:
        raise
    # pyarrow's errors derive from ValueError, and so do those of JSON and of UTF-8; OSError, EOFError and zlib's are
    # gzip's, OverflowError is of a huge number within a list or an object
    except (
        ValueError, TypeError, OSError, EOFError, zlib.error, OverflowError, RecursionError, pyarrow.ArrowException,
    ) as error:  # fmt: skip
        raise SVFError(f"data file {path}: {type(error).__name__}: {one_line(error)}") from error


def read_folder(path: Path, needed: Sequence[str] = ("train",), references: str | None = None) -> dict[str, Dataset]:
    """The splits of a folder with `train`, `validation` and `test` files of any kind that [`read_file`] reads.

    Raises:
        SVFError: a split missing that is needed, or two files for one split.
    """
    found: dict[str, Dataset] = {}
    for split in SPLITS:
        files = [file for suffix in SUFFIXES if kind_of_path(file := path / f"{split}{suffix}") == "file"]
        if len(files) > 1:
            raise SVFError(f"data folder {path} has two {split} files: keep one of {', '.join(f.name for f in files)}")
        if files:
            found[split] = read_file(files[0], references)
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
    # a loading script is a RuntimeError, a column of a package that is not here an ImportError
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        why = loading_error("dataset", name, error)
        raise SVFError(
            f"{why}; check dataset_name and dataset_config, or give local files as data_dir or data_path"
        ) from error
    for split in needed:
        if split not in splits:
            raise SVFError(f"dataset {name!r} has no {split} split; it has: {', '.join(splits)}")
    for split, rows in splits.items():
        typed = [column for column, feature in rows.features.items() if "string" not in str(feature)]
        if rows.info.builder_name == "csv" and typed:
            warnings.warn(
                f"dataset {name!r}: the cells of {typed[0]} ({split}) were read as {rows.features[typed[0]].dtype}, so "
                "that 007 is 7; give its CSV files as data_dir or data_path, and every cell is as it is written",
                stacklevel=2,
            )
            break
    return dict(splits)


def _from_objects(rows: Any, path: Path, references: str | None) -> Dataset:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SVFError(f"data file {path} must contain objects, such as {{'prompt': ..., 'answer': ...}}")
    # rows may differ in their columns; a missing value is null
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Dataset.from_dict({name: _keep_numbers(column, name == references) for name, column in columns.items()})


def _keep_numbers(column: list[Any], as_written: bool) -> list[Any]:
    """`column`, or the text of its numbers where 64 bits would not hold each, or with `as_written` change its form."""
    numbers = [value for value in column if value is not None]
    if not all(type(value) in (int, _Written) for value in numbers):
        return column
    floats = any(type(value) is _Written for value in numbers)
    if all(_is_kept(value, floats, as_written) for value in numbers):
        return column
    return [None if value is None else getattr(value, "text", str(value)) for value in column]


def _is_kept(number: int | _Written, as_float: bool, as_written: bool) -> bool:
    if not as_float:
        return -(2**63) <= number < 2**63
    text = getattr(number, "text", str(number))
    try:
        held = str(float(text))
        return text == held if as_written else Decimal(text) == Decimal(held)
    except ArithmeticError:  # of an exponent without bounds
        return False
