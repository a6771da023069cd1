"""The unseen mixture of the quickstart: balanced, reproducible, apart from what experts are trained on."""

from collections import Counter

import pytest
from datasets import Dataset

from svf_rl.quickstart import SKILLS, make_rows
from svf_rl.quickstart.skills import make_examples
from svf_rl.rewards import verify_all
from svf_rl.tasks import TaskOptions, find_task


def rows(split: str, **options: str) -> Dataset:
    loaded = find_task("exam").load(TaskOptions(**options))[split]
    assert loaded is not None
    return loaded


def questions(table: Dataset) -> list[str]:
    return [prompt[-1]["content"] for prompt in table["prompt"]]


def test_there_are_rows_to_adapt_with_and_to_report_but_none_to_train_on() -> None:
    splits = find_task("exam").load(TaskOptions())
    assert splits["train"] is None
    assert (len(splits["validation"]), len(splits["test"])) == (256, 512)


def test_the_skills_take_turns() -> None:
    tasks = rows("test")["task"][:]
    assert set(tasks[:3]) == {f"quickstart:{skill}" for skill in SKILLS}
    assert max(Counter(tasks).values()) - min(Counter(tasks).values()) <= 1


@pytest.mark.parametrize("wording", ["standard", "reworded"])
def test_no_question_is_one_that_an_expert_trains_on(wording: str) -> None:
    trained = {row["prompt"] for skill in SKILLS for row in make_rows(skill, "train", 2048)}
    parts = [set(questions(rows(split, wording=wording))) for split in ("validation", "test")]
    assert not trained & (parts[0] | parts[1])
    assert not parts[0] & parts[1]


def test_rows_are_the_same_every_time_and_other_in_other_words() -> None:
    assert questions(rows("test")) == questions(rows("test"))
    assert not set(questions(rows("test"))) & set(questions(rows("test", wording="reworded")))


def test_each_row_is_graded_by_its_own_skill() -> None:
    right = {e.prompt: e.completion for skill in SKILLS for e in make_examples(skill, "test", 171, seed=20)}
    table = rows("test")
    for row, question in zip(table, questions(table), strict=True):
        assert verify_all(row["verifier"], [right[question]], [row["answer"]])[0].correct, row


@pytest.mark.parametrize("wording", ["standard", "reworded"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_dispatch_asks_for_the_class_of_every_skill_and_of_other_requests(split: str, wording: str) -> None:
    table = find_task("quickstart").load(TaskOptions(skill="dispatch", wording=wording))[split]
    assert table is not None
    counts = Counter(table["answer"])
    assert set(counts) == {"math", "reasoning", "code", "other"}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(set(questions(table))) == len(table)


def test_dispatch_trains_on_no_question_that_an_expert_is_tested_on() -> None:
    trained = set(questions(find_task("quickstart").load(TaskOptions(skill="dispatch"))["train"]))
    tested = {row["prompt"] for skill in SKILLS for row in make_rows(skill, "test", 512)}
    assert not trained & tested
    assert not trained & set(questions(rows("test")))
