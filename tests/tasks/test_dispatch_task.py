"""The dispatch task: balanced classes, made from training rows alone, and nothing shared between splits."""

from collections import Counter
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.other_requests import FORMS, TOPICS, other_requests

TASK = find_task("dispatch")
CLASSES = ("code", "math", "other", "reasoning")


def questions(rows) -> set[str]:
    users = (next(m["content"] for m in prompt if m["role"] == "user") for prompt in rows["prompt"])
    return {"".join(user.split()) for user in users}


def test_400_prompts_a_class_4_to_1_and_a_test_beside_them(shared_data: Path) -> None:
    splits = TASK.load(TaskOptions(data_dir=str(shared_data)))
    for split, size in (("train", 320), ("validation", 80), ("test", 64)):
        assert Counter(splits[split]["answer"]) == dict.fromkeys(CLASSES, size)
        # cutting a split short keeps the classes balanced
        assert sorted(splits[split]["answer"][:4]) == list(CLASSES)
    seen = [questions(rows) for rows in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 4 * 464


def test_no_prompt_is_one_that_an_expert_is_tested_on(shared_data: Path) -> None:
    options = TaskOptions(data_dir=str(shared_data))
    used = set.union(*(questions(rows) for rows in TASK.load(options).values()))
    for name in ("gsm8k", "math", "mbpp", "humaneval", "arc_easy", "arc_challenge"):
        assert not used & questions(find_task(name).load(options)["test"])


def test_the_prompt_is_the_question_alone_after_the_description_of_the_classes(shared_data: Path) -> None:
    rows = TASK.load(TaskOptions(data_dir=str(shared_data), train_items=8))["train"]
    assert {tuple(message["role"] for message in prompt) for prompt in rows["prompt"]} == {("system", "user")}
    system = rows[0]["prompt"][0]["content"]
    assert all(name in system for name in (*CLASSES, "\\boxed{"))


def test_the_reference_has_three_classes_of_rows(shared_data: Path) -> None:
    splits = TASK.load(TaskOptions(data_dir=str(shared_data), profile="reference"))
    for split, size in (("train", 160), ("validation", 160), ("test", 80)):
        assert Counter(splits[split]["answer"]) == dict.fromkeys(("code", "math", "reasoning"), size)


def test_one_folder_cannot_hold_three_tasks() -> None:
    for options in (TaskOptions(data_path="x"), TaskOptions(dataset_name="x")):
        with pytest.raises(SVFError, match="give data_dir"):
            TASK.load(options)


def test_other_requests_of_two_splits_share_no_form() -> None:
    every = [other_requests(split, len(FORMS[split]) * len(TOPICS)) for split in FORMS]
    assert len(set().union(*every)) == sum(map(len, every)) == 464
    assert other_requests("test", 5) == other_requests("test", 64)[:5]
    with pytest.raises(SVFError, match="64 test requests"):
        other_requests("test", 65)
