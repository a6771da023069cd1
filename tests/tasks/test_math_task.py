"""MATH: where the answer comes from, and which rows are left out."""

import json
import logging
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.math import last_boxed

TASK = find_task("math")


def write(folder: Path, **splits: list[dict]) -> TaskOptions:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TaskOptions(data_path=str(folder))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{2}, or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"the set \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 5$ apples", "5"),
        (r"\boxed{ x + y }", "x + y"),
        (r"\boxed{never closed", None),
        ("no box", None),
        ("", None),
    ],
)
def test_the_last_box(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


def test_a_worked_solution_goes_before_a_bare_answer(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "solution": r"\boxed{1}", "answer": "2"},
        {"problem": "b", "solution": "", "answer": "3"},
        {"problem": "c", "solution": None, "answer": " 4 "},
    ]
    assert TASK.load(write(tmp_path, test=rows))["test"]["answer"][:] == ["1", "3", "4"]


def test_rows_without_an_answer_and_test_problems_are_left_out_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = [{"problem": f"p{i}", "answer": str(i)} for i in range(4)]
    train += [{"problem": "p 9\n", "answer": "9"}, {"problem": "p5", "answer": " "}]
    options = write(tmp_path, train=train, test=[{"problem": "p9", "answer": "9"}])
    with caplog.at_level(logging.WARNING):
        splits = TASK.load(options)
    assert splits["train"]["answer"][:] == ["0", "2"]
    assert splits["validation"]["answer"][:] == ["1", "3"]
    assert "1 rows have no answer" in caplog.text
    assert "1 rows are test problems too" in caplog.text


def test_test_rows_alone_will_do(tmp_path: Path) -> None:
    splits = TASK.load(write(tmp_path, test=[{"problem": "p", "answer": "1"}]))
    assert (splits["train"], splits["validation"], len(splits["test"])) == (None, None, 1)


def test_what_a_source_must_have(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match="no test file"):
        TASK.load(write(tmp_path, train=[{"problem": "p", "answer": "1"}]))
    with pytest.raises(SVFError, match="neither a column 'solution' nor 'answer'; it has: problem, gold"):
        TASK.load(write(tmp_path, test=[{"problem": "p", "gold": "1"}]))
    with pytest.raises(SVFError, match="no column 'problem'"):
        TASK.load(write(tmp_path, test=[{"question": "p", "answer": "1"}]))


def test_the_real_files(shared_data: Path) -> None:
    splits = TASK.load(TaskOptions(data_dir=str(shared_data)))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3748, "validation": 3748, "test": 5000}
    solutions = {row["problem"]: row["answer"] for row in map(json.loads, (shared_data / "math/math500.jsonl").open())}
    ours = {row["prompt"][-1]["content"]: row["answer"] for row in splits["test"]}
    assert {problem: ours[problem] for problem in solutions} == solutions
