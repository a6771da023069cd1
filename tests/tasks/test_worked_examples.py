"""Worked examples (`shots`): from training rows, in the same form in every split, for every task."""

import pytest
from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.examples import with_examples

QUICKSTART = find_task("quickstart")


def _rows(*questions: str, **columns: list) -> Dataset:
    prompts = [[{"role": "system", "content": "S"}, {"role": "user", "content": q}] for q in questions]
    return Dataset.from_dict({"prompt": prompts, **columns})


def test_examples_are_turns_between_the_system_message_and_the_question() -> None:
    train = _rows("1+1", "2+2", "3+3", answer=["2", "4", "6"])
    splits = with_examples({"train": train, "test": _rows("4+4", answer=["8"]), "validation": None}, 2, "sums")
    assert splits["test"]["prompt"][0] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "4+4"},
    ]
    assert splits["train"]["answer"][:] == ["6"]  # a row is never its own example
    assert splits["validation"] is None


def test_a_target_is_shown_rather_than_an_answer() -> None:
    train = _rows("1+1", "2+2", answer=["2", "4"], target=["It is 2", "It is 4"])
    splits = with_examples({"train": train}, 1, "sums")
    assert splits["train"]["prompt"][0][2] == {"role": "assistant", "content": "It is 2"}


def test_the_beginning_of_an_answer_is_continued() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer is "}]
    train = Dataset.from_dict({"prompt": [turns, turns], "answer": ["7", "8"]})
    prompt = with_examples({"train": train}, 1, "sums")["train"]["prompt"][0]
    assert prompt == [turns[0], {"role": "assistant", "content": "The answer is 7"}, *turns]


@pytest.mark.parametrize("task", ["quickstart", "exam"])
def test_every_task_takes_them(task: str) -> None:
    plain = find_task(task).load(TaskOptions(test_items=8))
    if plain["train"] is None:
        with pytest.raises(SVFError, match=f"task {task} has no training rows"):
            find_task(task).load(TaskOptions(shots=2, test_items=8))
        return
    shown = find_task(task).load(TaskOptions(shots=2, test_items=8))
    for before, after in zip(plain["test"]["prompt"], shown["test"]["prompt"], strict=True):
        assert len(after) == len(before) + 4
        assert after[-1] == before[-1]


def test_the_rows_of_a_mixture_have_examples_of_their_own_task() -> None:
    options = TaskOptions(mixture={"quickstart:math": 1, "quickstart:choice": 1}, shots=1, test_items=2)
    rows = find_task("mixture").load(options)["test"]
    for row in rows:
        own = QUICKSTART.load(TaskOptions(skill=row["task"].partition(":")[2], shots=1))["test"]
        assert row["prompt"][:-1] == own["prompt"][0][:-1]
        assert len(row["prompt"]) == 3


@pytest.mark.parametrize("shots", [-1, 4, 5])
def test_there_must_be_enough_training_rows(shots: int) -> None:
    with pytest.raises(SVFError, match=f"not {shots}: task quickstart has"):
        with_examples({"train": _rows("a", "b", "c", "d", answer=["1"] * 4)}, shots, "quickstart")


def test_a_prompt_without_a_question_is_no_example() -> None:
    rows = Dataset.from_list([{"prompt": [{"role": "system", "content": "Add."}], "answer": "1"}] * 2)
    with pytest.raises(SVFError, match="has no question: leave shots out"):
        with_examples({"train": rows}, 1, "sums")


def test_examples_are_not_counted_among_the_training_rows() -> None:
    assert len(find_task("quickstart").load(TaskOptions(train_items=8, shots=3))["train"]) == 8


def test_a_task_without_answers_as_text_has_no_examples() -> None:
    with pytest.raises(SVFError, match="no answer as text: leave shots out"):
        with_examples({"train": _rows("a", "b", answer=[{"x": 1}, {"x": 2}])}, 1, "programs")
