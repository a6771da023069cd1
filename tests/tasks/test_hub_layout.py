"""Each benchmark from the local files and from a folder in the layout of its Hub dataset: the same rows."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.files import read_hub

Rows = list[dict[str, Any]]


def lines(path: Path) -> Rows:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().split("\n") if line.strip()]


def gsm8k(data: Path) -> dict[str, Rows]:
    return {split: lines(data / f"gsm8k/{split}.jsonl") for split in ("train", "test")}


def math(data: Path) -> dict[str, Rows]:
    """On the Hub training rows have solutions too; the files have their answers alone."""
    train = lines(data / "math/train.jsonl")
    for row in train:
        row["solution"] = rf"First $\boxed{{{{}}}}$, then $\boxed{{{row.pop('answer')}}}$."
    columns = ("problem", "level", "solution", "type")
    splits = {"train": train, "test": lines(data / "math/test.jsonl")}
    return {split: [{name: row[name] for name in columns} for row in rows] for split, rows in splits.items()}


def mbpp(data: Path, file: str = "mbpp.jsonl") -> dict[str, Rows]:
    ids = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
    rows = lines(data / "mbpp" / file) if file.endswith("jsonl") else json.loads((data / "mbpp" / file).read_text())
    return {split: [row for row in rows if row["task_id"] in ids[split]] for split in ids}


def sanitized_mbpp(data: Path) -> dict[str, Rows]:
    return mbpp(data, "sanitized-mbpp.json")


def humaneval(data: Path) -> dict[str, Rows]:
    return {"test": lines(data / "humaneval/HumanEval.jsonl.gz")}


def arc(data: Path, subset: str) -> dict[str, Rows]:
    def on_the_hub(row: dict[str, Any]) -> dict[str, Any]:
        choices = row["question"]["choices"]
        return {
            "id": row["id"],
            "question": row["question"]["stem"],
            "choices": {name: [choice[name] for choice in choices] for name in ("text", "label")},
            "answerKey": row["answerKey"],
        }

    files = {"train": "Train", "validation": "Dev", "test": "Test"}
    return {split: [on_the_hub(row) for row in lines(data / f"arc/{subset}-{f}.jsonl")] for split, f in files.items()}


LAYOUTS: dict[str, tuple[str, Callable[[Path], dict[str, Rows]], dict[str, Any]]] = {
    "gsm8k": ("gsm8k", gsm8k, {}),
    "math": ("math", math, {}),
    "mbpp": ("mbpp", mbpp, {}),
    "sanitized mbpp": ("mbpp", sanitized_mbpp, {"dataset_config": "sanitized"}),
    "reference mbpp": ("mbpp", sanitized_mbpp, {"profile": "reference"}),
    "humaneval": ("humaneval", humaneval, {}),
    "arc_easy": ("arc_easy", lambda data: arc(data, "ARC-Easy"), {}),
    "arc_challenge": ("arc_challenge", lambda data: arc(data, "ARC-Challenge"), {}),
    "reference arc_easy": ("arc_easy", lambda data: arc(data, "ARC-Easy"), {"profile": "reference"}),
}


def without(rows: Dataset, name: str) -> Rows:
    return (rows.remove_columns("target") if name == "math" else rows).to_list()


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_hub_gives_the_rows_of_the_files(name: str, shared_data: Path, tmp_path: Path) -> None:
    task_name, layout, options = LAYOUTS[name]
    task = find_task(task_name)
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    splits = layout(shared_data)
    # one schema for all splits, some of which hold nothing but empty lists
    schema = pa.Table.from_pylist([row for rows in splits.values() for row in rows]).schema
    for split, rows in splits.items():
        parquet.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / f"{split}-00000-of-00001.parquet")
    # a folder stands for one configuration, so it has no name
    hub = task.load(TaskOptions(dataset_name=str(folder), **{k: v for k, v in options.items() if k == "profile"}))
    files = task.load(TaskOptions(data_dir=str(shared_data), **options))
    assert hub.keys() == files.keys()
    for split, rows in files.items():
        assert (rows is None) == (hub[split] is None)
        if rows is not None:
            # the files of MATH have no worked solutions to train on
            assert without(hub[split], name) == without(rows, name)


@pytest.mark.parametrize("name", ["gsm8k", "math", "mbpp", "humaneval", "arc_easy", "arc_challenge"])
def test_data_dir_and_data_path_name_the_same_files(name: str, shared_data: Path) -> None:
    task = find_task(name)
    assert task.hub is not None
    few = {"train_items": 3, "validation_items": 3, "test_items": 3}
    by_dir = task.load(TaskOptions(data_dir=str(shared_data), **few))
    by_path = task.load(TaskOptions(data_path=str(shared_data / task.hub.folder), data_dir="elsewhere", **few))
    assert by_dir["test"].to_list() == by_path["test"].to_list()
    assert task.is_local(TaskOptions(data_dir="x"))
    assert not task.is_local(TaskOptions())
    assert set(by_dir["test"].column_names) == task.columns


def test_csv_on_the_hub_whose_cells_become_numbers_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt,answer\nWhich agent?,007\n")
    with pytest.warns(UserWarning, match=r"cells of answer \(train\) were read as int64, so that 007 is 7"):
        assert read_hub(str(tmp_path))["train"]["answer"][:] == [7]


def test_csv_on_the_hub_that_is_text_is_not(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "train.csv").write_text("prompt,answer\nWhich agent?,Bond\n")
    assert read_hub(str(tmp_path))["train"]["answer"][:] == ["Bond"]
    assert [warning for warning in recwarn if "dataset" in str(warning.message)] == []
