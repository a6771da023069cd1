"""The dispatch task: balanced classes, made from training rows alone, and nothing shared between splits."""

from collections import Counter
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward
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


# ---- classes of other tasks ------------------------------------------------------------------------------------------

SKILLS = {"sums": {"task": "quickstart:math", "description": "a small sum"}, "options": "quickstart:choice"}


def test_classes_of_any_tasks_take_turns_and_share_no_question_with_their_tests() -> None:
    splits = TASK.load(TaskOptions(classes=SKILLS))
    for split, size in (("train", 320), ("validation", 80), ("test", 64)):
        assert splits[split]["answer"][:] == ["sums", "options"] * size
    seen = [questions(rows) for rows in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 2 * 464
    for name in SKILLS.values():
        skill = (name if isinstance(name, str) else name["task"]).partition(":")[2]
        assert not set.union(*seen) & questions(find_task("quickstart").load(TaskOptions(skill=skill))["test"])


def test_the_system_message_describes_each_class_and_rewards_know_them() -> None:
    options = TaskOptions(classes=SKILLS, shots=2, train_items=4)
    rows = TASK.load(options)["train"]
    system, *turns = rows[0]["prompt"]
    assert "\n- sums: a small sum\n- options\n" in system["content"]
    # the first training rows are worked examples, one of each class
    assert [turn["content"] for turn in turns if turn["role"] == "assistant"] == [r"\boxed{sums}", r"\boxed{options}"]
    (spec,) = TASK.rewards(options)
    score = load_reward(spec)(completions=[r"\boxed{options}"] * 4, answer=rows["answer"][:])
    assert score == [float(answer == "options") for answer in rows["answer"]]
    assert TASK.is_local(options)
    assert not TASK.is_local(TaskOptions(classes={**SKILLS, "maths": "gsm8k"}))


def test_settings_of_reasoning_gym_are_given_by_data_set() -> None:
    pytest.importorskip("reasoning_gym")
    classes = {"sorting": "reasoning_gym:word_sorting", "sums": "quickstart:math"}
    options = TaskOptions(classes=classes, config={"word_sorting": {"min_words": 7, "max_words": 7}}, test_items=2)
    sorting, _ = TASK.load(options)["test"]["prompt"]
    assert sorting[-1]["content"].rpartition(":")[2].count(",") == 6


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"sums": "quickstart:math", "code": "chess"}, "unknown task 'chess'"),
        ({"sums": "quickstart:math", "code": "mixture"}, "dispatch: mixture cannot be a part"),
        ({"sums": "quickstart:math", "code": "dispatch"}, "dispatch: dispatch cannot be a part"),
        ({"sums": "quickstart:math"}, "at least two different names"),
        ({}, "at least two different names"),
        ({"sums": "quickstart:math", "any": "exam"}, "class any: task exam has no train rows"),
        ({"sums": "quickstart:math", "same": "quickstart:math"}, "classes sums and same share questions"),
        ({"sums": "quickstart:math", "Options": "quickstart:choice"}, "class 'Options': name it by lower-case words"),
        ({"sums": "quickstart:math", "logic": "quickstart:choice", "a}": "gsm8k"}, "class 'a}'"),
        ({"sums": "quickstart:math", "options": 3}, "class options: give a task"),
        ({"sums": "quickstart:math", "options": {"description": "x"}}, "class options: give a task"),
    ],
)
def test_classes_that_cannot_be(classes: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message) as error:
        TASK.load(TaskOptions(classes=classes))
    assert "\n" not in str(error.value)


def test_settings_of_a_data_set_that_is_no_class() -> None:
    classes = {"sorting": "reasoning_gym:word_sorting", "sums": "quickstart:math"}
    with pytest.raises(SVFError, match="dispatch: config has 'words', which is no data set of its parts"):
        TASK.load(TaskOptions(classes=classes, config={"words": {"min_words": 7}}))


def test_a_class_with_too_few_rows_is_named() -> None:
    pytest.importorskip("reasoning_gym")
    classes = {"sums": "quickstart:math", "few": "reasoning_gym:number_filtering"}
    config = {"min_numbers": 1, "max_numbers": 1, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 9}
    with pytest.raises(SVFError, match="464 training rows of each class: few has"):
        TASK.load(TaskOptions(classes=classes, config={"number_filtering": config}))


def test_other_requests_of_two_splits_share_no_form() -> None:
    every = [other_requests(split, len(FORMS[split]) * len(TOPICS)) for split in FORMS]
    assert len(set().union(*every)) == sum(map(len, every)) == 464
    assert other_requests("test", 5) == other_requests("test", 64)[:5]
    with pytest.raises(SVFError, match="64 test requests"):
        other_requests("test", 65)
