"""A cell of a benchmark's file that is of another type than it should be is one line, which names the row."""

import json
from pathlib import Path
from typing import Any

import pytest

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions, find_task

GSM8K = {"question": "How many?", "answer": "#### 1"}
MATH = {"problem": "How many?", "solution": r"\boxed{1}"}
MBPP = {"task_id": 11, "text": "Add.", "code": "f = 1", "test_list": ["assert f(1)"], "test_setup_code": ""}
HUMANEVAL = {"prompt": "def f():\n", "test": "def check(c): pass", "entry_point": "f", "canonical_solution": "pass"}


def load(task: str, folder: Path, row: dict[str, Any], good: dict[str, Any]) -> Any:
    files = {"mbpp": ["mbpp.jsonl"], "humaneval": ["HumanEval.jsonl"]}.get(task, ["train.jsonl", "test.jsonl"])
    for file in files:
        (folder / file).write_text("".join(json.dumps(one) + "\n" for one in (good, row)))
    return find_task(task).load(TaskOptions(data_path=str(folder)))


@pytest.mark.parametrize(
    ("task", "good", "cells"),
    [
        ("gsm8k", GSM8K, {"question": None}),
        ("gsm8k", GSM8K, {"answer": None}),
        ("gsm8k", GSM8K, {"answer": " "}),
        ("math", MATH, {"problem": None}),
        ("math", {**MATH, "solution": [1]}, {"solution": [5]}),
        ("mbpp", MBPP, {"text": ""}),
        ("mbpp", MBPP, {"text": None}),
        ("mbpp", MBPP, {"task_id": None}),
        ("mbpp", MBPP, {"test_list": None}),
        ("mbpp", MBPP, {"test_list": []}),
        ("humaneval", HUMANEVAL, {"prompt": None}),
        ("humaneval", HUMANEVAL, {"test": ""}),
    ],
)
def test_a_cell_of_another_type_is_one_line(
    task: str, good: dict[str, Any], cells: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SVFError, match=r"row [01]: .* must be ") as error:
        load(task, tmp_path, {**good, **cells}, good)
    assert "\n" not in str(error.value)
    assert "list" in str(error.value) or next(iter(cells)) in str(error.value)


def test_a_column_of_numbers_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match="row 0: answer must be text, not 18"):
        load("gsm8k", tmp_path, {**GSM8K, "answer": 18}, {**GSM8K, "answer": 18})


def test_numbers_are_answers_of_math(tmp_path: Path) -> None:
    rows = [{"problem": "How many?", "answer": 0}, {"problem": "And here?", "answer": 7}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_task("math").load(TaskOptions(data_path=str(tmp_path)))["test"]["answer"][:] == ["0", "7"]
