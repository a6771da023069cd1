"""A mixture: proportions, order, one grader a row, and what cannot be mixed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward
from svf_rl.tasks import TaskOptions, find_task

TASK = find_task("mixture")
SKILLS = {"quickstart:math": 2, "quickstart:choice": 1}
SORTING = {"reasoning_gym:word_sorting": 1}
CLASSES = {"sums": "quickstart:math", "sorting": "reasoning_gym:word_sorting"}


def test_rows_come_in_proportion_and_in_turn_until_one_task_has_no_more() -> None:
    splits = TASK.load(TaskOptions(mixture=SKILLS))
    # 2048 training rows of each skill: those of math are used up first
    assert Counter(splits["train"]["task"]) == {"quickstart:math": 2048, "quickstart:choice": 1024}
    assert Counter(splits["test"]["task"]) == {"quickstart:math": 512, "quickstart:choice": 256}
    for count in (3, 30, 300):
        assert Counter(splits["train"]["task"][:count])["quickstart:choice"] == count / 3
    prompts = [json.dumps(prompt) for prompt in splits["train"]["prompt"]]
    assert len(set(prompts)) == len(prompts)


def test_weights_may_be_fractions_and_rows_are_the_same_every_time() -> None:
    options = TaskOptions(mixture={"quickstart:math": 0.3, "quickstart:choice": 0.1}, train_items=40)
    rows = TASK.load(options)["train"]
    assert Counter(rows["task"]) == {"quickstart:math": 30, "quickstart:choice": 10}
    assert TASK.load(options)["train"].to_list() == rows.to_list()


def test_the_smallest_weight_is_one_too() -> None:
    rows = TASK.load(TaskOptions(mixture={"quickstart:math": 1, "quickstart:choice": 1e-9}))["test"]
    assert set(rows["task"]) == {"quickstart:math"}


def test_each_row_names_its_verifier_and_gold_answers_are_right() -> None:
    rows = TASK.load(TaskOptions(mixture={**SKILLS, "quickstart:code": 1}, train_items=16))["train"]
    assert dict(zip(rows["task"], rows["verifier"], strict=True)) == {
        "quickstart:math": "numeric", "quickstart:choice": "choice", "quickstart:code": "exact_match",
    }  # fmt: skip
    (spec,) = TASK.rewards(TaskOptions())
    columns = {"answer": rows["answer"][:], "verifier": rows["verifier"][:]}
    assert load_reward(spec)(completions=rows["answer"][:], **columns) == [1.0] * 16


def test_real_tasks_of_different_kinds(shared_data: Path) -> None:
    mixture = {"gsm8k": 2, "mbpp": 1, "arc_easy": 1}
    splits = TASK.load(TaskOptions(data_dir=str(shared_data), mixture=mixture))
    # MBPP has 374, 90 and 500 rows
    assert Counter(splits["test"]["task"]) == {"gsm8k": 1002, "mbpp": 500, "arc_easy": 500}
    by_task = {row["task"]: row for row in splits["train"].select(range(4))}
    assert by_task["mbpp"]["prompt"][-1]["role"] == "assistant"
    assert set(json.loads(by_task["mbpp"]["answer"])) == {"test_list", "test_setup_code", "test_imports"}
    assert "####" in by_task["gsm8k"]["answer"]
    assert TASK.is_local(TaskOptions(data_dir="x", mixture=mixture))
    assert not TASK.is_local(TaskOptions(mixture=mixture))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": SKILLS, "curriculum": {"min_words": [2, 3]}}, "curriculum is for one data set"),
        ({}, r"as in mixture: \{gsm8k: 2, mbpp: 1\}"),
        ({"mixture": {"gsm8k": 0}}, "the weight of gsm8k must be a number above 0, not 0"),
        ({"mixture": {"gsm8k": "two"}}, "the weight of gsm8k must be a number above 0, not 'two'"),
        ({"mixture": {"gsm8k": float("inf")}}, "above 0"),
        ({"mixture": {"gsm9k": 1}}, "unknown task 'gsm9k'"),
        ({"mixture": {"gsm8k:hard": 1}}, "task 'gsm8k:hard': only quickstart has skills"),
        ({"mixture": {"reasoning_gym": 1}}, "reasoning_gym needs the name of a data set"),
        ({"mixture": {"columns": 1}}, "columns cannot be a part"),
        ({"mixture": {"mixture": 1}}, "mixture cannot be a part"),
        ({"mixture": {"quickstart:chess": 1}}, "chess"),
        ({"mixture": {"gsm8k": 1}, "data_path": "x"}, "give data_dir"),
        ({"mixture": {"dispatch": 1, **SKILLS}, "classes": CLASSES}, "train it alone with task: dispatch, or leave"),
        ({"mixture": {"dispatch": 1}, "classes": CLASSES, "config": {"word_sorting": {}}}, "dispatch with classes"),
        ({"mixture": SORTING, "config": {"word_sortin": {}}}, "'word_sortin', .* parts; did you mean 'word_sorting'"),
        ({"mixture": SORTING, "config": {"min_words": 2}}, "config has 'min_words', which is no data set of its parts"),
        ({"mixture": SORTING, "config": {"word_sorting": 3}}, "config of word_sorting must be a mapping"),
        ({"mixture": SKILLS, "config": {"math": {}}}, "config has 'math', .* known: none"),
    ],
)
def test_what_cannot_be_mixed(options: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message):
        TASK.load(TaskOptions(**options))


def test_a_task_without_training_rows_cannot_be_mixed(shared_data: Path) -> None:
    with pytest.raises(SVFError, match="humaneval has no train rows: leave it out"):
        TASK.load(TaskOptions(data_dir=str(shared_data), mixture={"humaneval": 1}))
