"""GSM8K from local files: the split, the prompt, and a gold answer that its reward understands in every row."""

import json
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward
from svf_rl.tasks import TaskOptions, find_task

TASK = find_task("gsm8k")


def write(path: Path, count: int, columns: tuple[str, str] = ("question", "answer")) -> None:
    lines = [json.dumps({columns[0]: f"Question {i}?", columns[1]: f"Work.\n#### {i}"}) for i in range(count)]
    path.write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", 5)
    write(tmp_path / "test.jsonl", 3)
    return tmp_path


def test_even_rows_train_and_odd_rows_validate(folder: Path) -> None:
    splits = TASK.load(TaskOptions(data_path=str(folder)))
    questions = {name: [row["prompt"][-1]["content"] for row in rows] for name, rows in splits.items()}
    assert questions["train"] == ["Question 0?", "Question 2?", "Question 4?"]
    assert questions["validation"] == ["Question 1?", "Question 3?"]
    assert len(questions["test"]) == 3
    assert splits["validation"]["answer"][:] == ["Work.\n#### 1", "Work.\n#### 3"]


def test_the_system_prompt_asks_for_the_mark_and_can_be_replaced(folder: Path) -> None:
    def roles_and_first(system_prompt: str | None) -> tuple[list[str], str]:
        prompt = TASK.load(TaskOptions(data_path=str(folder), system_prompt=system_prompt))["train"][0]["prompt"]
        return [message["role"] for message in prompt], prompt[0]["content"]

    roles, first = roles_and_first(None)
    assert roles == ["system", "user"]
    assert "#### 42" in first
    assert roles_and_first("Short.") == (["system", "user"], "Short.")
    assert roles_and_first("") == (["user"], "Question 0?")


def test_splits_can_be_cut_short(folder: Path) -> None:
    options = TaskOptions(data_path=str(folder), train_items=2, validation_items=1, test_items=99)
    assert [len(rows) for rows in TASK.load(options).values()] == [2, 1, 3]


def test_missing_folder_file_or_column(tmp_path: Path) -> None:
    options = TaskOptions(data_path=str(tmp_path))
    with pytest.raises(SVFError, match="does not exist"):
        TASK.load(TaskOptions(data_path=str(tmp_path / "none")))
    with pytest.raises(SVFError, match=r"data folder .*/gsm8k does not exist"):
        TASK.load(TaskOptions(data_dir=str(tmp_path)))
    with pytest.raises(SVFError, match="no training file"):
        TASK.load(options)
    write(tmp_path / "train.jsonl", 2)
    with pytest.raises(SVFError, match="is a file: give the folder"):
        TASK.load(TaskOptions(data_path=str(tmp_path / "train.jsonl")))
    with pytest.raises(SVFError, match="no test file"):
        TASK.load(options)
    write(tmp_path / "test.jsonl", 2, columns=("problem", "answer"))
    with pytest.raises(SVFError, match=r"no column 'question'; it has: problem, answer"):
        TASK.load(options)


def test_the_hub_is_not_asked_in_a_dry_run_and_its_absence_is_one_line() -> None:
    assert not TASK.is_local(TaskOptions())
    with pytest.raises(SVFError, match="data_path") as caught:  # the tests run offline
        TASK.load(TaskOptions(dataset_name="nobody/no-such-dataset"))
    assert "\n" not in str(caught.value)


def test_the_real_files(shared_data: Path) -> None:
    splits = TASK.load(TaskOptions(data_path=str(shared_data / "gsm8k")))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3737, "validation": 3736, "test": 1319}
    reward = load_reward(TASK.rewards(TaskOptions())[0])
    for rows in splits.values():
        answers = rows["answer"][:]
        # commas and minus signs included: the mark and what follows it is right, another number is wrong
        finals = [answer.rpartition("####")[2] for answer in answers]
        assert set(reward(completions=[f"So #### {final}" for final in finals], answer=answers)) == {1.0}
        assert set(reward(completions=["#### 0.123"] * len(answers), answer=answers)) == {0.0}


@pytest.mark.parametrize("task", ["gsm8k", "math", "mbpp", "humaneval", "arc_easy", "columns"])
def test_a_path_that_the_system_does_not_take_is_one_line(task: str, tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"File name too long|long does not exist"):
        find_task(task).load(TaskOptions(data_path=str(tmp_path / ("long" * 100))))
