"""Tasks by name, and the quickstart's."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

import svf_rl.tasks
from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, required_columns
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.task import load_tasks


def test_each_file_with_a_task_is_found() -> None:
    found, folder = set(load_tasks()), Path(svf_rl.tasks.__file__).parent
    assert found == {file.stem for file in folder.glob("*.py") if "\nTASK = " in file.read_text()}
    assert found >= {
        "arc_challenge", "arc_easy", "columns", "dispatch", "exam", "gsm8k", "humaneval", "math", "mbpp", "mixture",
        "quickstart",
    }  # fmt: skip


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(SVFError, match=r"unknown task 'gsm9k': use one of .*gsm8k"):
        find_task("gsm9k")


def test_a_task_reads_the_options_that_are_described_as_its_own() -> None:
    described = {f.name: f.metadata["help"] for f in fields(TaskOptions)}
    for task in load_tasks().values():
        assert task.reads <= described.keys()
        own = {key for key, text in described.items() if re.match(rf"Tasks? (\w+ and )?{task.name}\b", text)}
        assert own <= task.reads


@pytest.mark.parametrize("skill", ["math", "choice", "code"])
def test_quickstart_rows_are_conversations_with_what_their_reward_reads(skill: str) -> None:
    task = find_task("quickstart")
    options = TaskOptions(skill=skill, train_items=8, validation_items=4, test_items=6)
    splits = task.load(options)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 8, "validation": 4, "test": 6}
    (spec,) = task.rewards(options)
    reward = load_reward(spec)
    for rows in splits.values():
        assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
        assert required_columns(reward) <= set(rows.column_names)
        # a gold answer is right by its own reward
        assert reward(completions=rows["answer"][:], answer=rows["answer"][:]) == [1.0] * len(rows)


def test_quickstart_takes_a_system_prompt() -> None:
    options = TaskOptions(system_prompt="Be careful.", train_items=1, validation_items=1, test_items=1)
    prompt = find_task("quickstart").load(options)["train"][0]["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_an_unknown_skill_or_too_many_rows() -> None:
    task = find_task("quickstart")
    with pytest.raises(SVFError, match="maths"):
        task.rewards(TaskOptions(skill="maths"))
    with pytest.raises(SVFError, match="rows"):
        task.load(TaskOptions(train_items=10_000_000))
    with pytest.raises(SVFError, match="train_items must be at least 1"):
        task.load(TaskOptions(train_items=0))
