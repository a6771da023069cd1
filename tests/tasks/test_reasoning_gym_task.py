"""Task `reasoning_gym`: all data sets, the same rows everywhere, splits that never overlap."""

import json
import sys
from collections import Counter

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.reasoning_gym import split_of

pytest.importorskip("reasoning_gym", reason="pip install 'svf-rl[reasoning]'")
from reasoning_gym.factory import DATASETS

TASK = find_task("reasoning_gym")
FEW = {"train_items": 4, "validation_items": 2, "test_items": 3}
# What reasoning-gym itself refuses without a configuration
REFUSED = {"composite": "reasoning-gym refuses composite: AssertionError: Must specify at least one dataset"}
# Each fifth, and those that are different from the others; the rest, some of whose puzzles take long to make, is slow
QUICK = {*sorted(DATASETS)[::5], "composite", "game_of_life_halting", "bf", "rush_hour"} - {
    "knight_swap",
    "zebra_puzzles",
}


def _questions(rows) -> list[str]:
    return [prompt[-1]["content"] for prompt in rows["prompt"]]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(DATASETS)]
)
def test_every_data_set_loads_and_its_scorer_takes_its_answers(name: str) -> None:
    options = TaskOptions(dataset=name, **FEW)
    if name in REFUSED:
        with pytest.raises(SVFError, match=REFUSED[name]):
            TASK.load(options)
        return
    splits = TASK.load(options)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 2, "test": 3}
    assert all(split_of(question) == split for split, rows in splits.items() for question in _questions(rows))
    for row in splits["test"]:
        if row["answer"]:
            assert verify("reasoning_gym", row["answer"], row["entry"]).correct, row
        assert verify("reasoning_gym", "no answer at all", row["entry"]).correct is False


def test_rows_are_the_same_every_time_and_no_question_is_in_two_splits() -> None:
    options = TaskOptions(dataset="number_sorting", config={"min_numbers": 2, "max_numbers": 3}, test_items=64)
    splits = TASK.load(options)
    assert TASK.load(options)["train"].to_list() == splits["train"].to_list()
    questions = [question for rows in splits.values() for question in _questions(rows)]
    assert len(set(questions)) == len(questions) == 1024 + 128 + 64


def test_what_one_run_is_tested_on_another_configuration_does_not_train_on() -> None:
    small = TASK.load(TaskOptions(dataset="number_sorting", config={"min_numbers": 2, "max_numbers": 2}))
    large = TASK.load(TaskOptions(dataset="number_sorting", config={"min_numbers": 2, "max_numbers": 4}))
    assert not set(_questions(small["test"])) & set(_questions(large["train"]))


def test_a_data_set_with_few_questions_has_fewer_rows() -> None:
    config = {"min_words": 1, "max_words": 1}
    splits = TASK.load(TaskOptions(dataset="word_sequence_reversal", config=config, train_items=100_000))
    assert 100 < len(splits["train"]) < 100_000


@pytest.mark.parametrize("items", [0, -5])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_fewer_rows_than_one_are_refused_before_any_is_drawn(split: str, items: int) -> None:
    options = TaskOptions(dataset="word_sorting", **{f"{split}_items": items})
    for read in (TASK.load, TASK.read):
        with pytest.raises(SVFError, match=f"^{split}_items must be at least 1, not {items}$"):
            read(options)


def test_fewer_worked_examples_than_none_are_refused() -> None:
    with pytest.raises(SVFError, match="shots must be at least 0"):
        TASK.load(TaskOptions(dataset="word_sorting", shots=-5, **FEW))


def test_several_data_sets_are_a_mixture() -> None:
    options = TaskOptions(
        mixture={"reasoning_gym:word_sorting": 2, "reasoning_gym:number_sorting": 1},
        config={"word_sorting": {"min_words": 2, "max_words": 2}},
        shots=1, train_items=9, validation_items=3, test_items=6,
    )  # fmt: skip
    rows = find_task("mixture").load(options)["test"]
    assert Counter(rows["task"]) == {"reasoning_gym:word_sorting": 4, "reasoning_gym:number_sorting": 2}
    for row in rows:
        named = json.loads(row["answer"])
        assert named["config"] == ({"min_words": 2, "max_words": 2} if named["dataset"] == "word_sorting" else {})
        assert len(row["prompt"]) == 3
    graded = load_reward("verified")(
        completions=rows["target"][:], answer=rows["answer"][:], verifier=rows["verifier"][:]
    )
    assert graded == [1.0] * 6


def test_a_mixture_keeps_partial_scores_where_a_part_has_them() -> None:
    options = TaskOptions(
        mixture={"reasoning_gym:word_sequence_reversal": 1, "quickstart:math": 1}, **{**FEW, "test_items": 4}
    )
    task = find_task("mixture")
    rows = task.load(options)["test"]
    (spec,) = task.rewards(options)
    reward, metrics = load_reward(spec), {}
    scores = reward(
        completions=[f"{target} and" for target in rows["target"]],
        answer=rows["answer"][:], verifier=rows["verifier"][:], log_metric=metrics.__setitem__,
    )  # fmt: skip
    assert reward.full == 1.0
    for task_of_row, score in zip(rows["task"], scores, strict=True):
        assert (0.8 < score < 1) == (task_of_row == "reasoning_gym:word_sequence_reversal")
    assert metrics["reward/partial"] == 0.5
    assert task.rewards(TaskOptions(mixture={"quickstart:math": 1})) == ({"name": "verified"},)


def test_partial_scores_are_kept_in_training_and_are_not_correct() -> None:
    row = TASK.load(TaskOptions(dataset="word_sequence_reversal", **FEW))["test"][0]
    (spec,) = TASK.rewards(TaskOptions(dataset="word_sequence_reversal"))
    reward, metrics = load_reward(spec), {}
    almost = f"{row['answer']} and"
    scores = reward(completions=[row["answer"], almost], entry=[row["entry"]] * 2, log_metric=metrics.__setitem__)
    assert scores[0] == reward.full == 1.0
    assert 0.8 < scores[1] < 1
    assert metrics["reward/partial"] == 0.5
    assert verify("reasoning_gym", almost, row["entry"], partial=True).correct is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task reasoning_gym needs the name of a data set"),
        ({"dataset": "word_sortin"}, "refuses word_sortin: ValueError: there is no data set 'word_sortin'; there"),
        ({"dataset": "word_sorting", "config": {"words": 2}}, "has no key 'words' here; it has: min_words, max_words"),
        ({"dataset": "word_sorting", "config": {"seed": 2}}, "has no key 'seed' here"),
        ({"dataset": "word_sorting", "config": {"min_words": 9, "max_words": 2}}, "word_sorting: AssertionError"),
        ({"dataset": "word_sorting", "config": {"min_words": "two"}}, "refuses word_sorting: TypeError"),
        ({"dataset": "count_bits", "config": {"min_n": 1, "max_n": 1}}, "too few different questions"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(options: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message) as caught:
        TASK.load(TaskOptions(**options))
    assert "\n" not in str(caught.value)


def test_without_the_package_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SVFError, match=r"pip install 'svf-rl\[reasoning\]'"):
        TASK.load(TaskOptions(dataset="word_sorting"))
