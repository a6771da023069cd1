"""ARC: options under their own labels, digits too, and an answer that is one of them."""

import json
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward
from svf_rl.tasks import TaskOptions, find_task

EASY, CHALLENGE = find_task("arc_easy"), find_task("arc_challenge")
LETTERS = {"id": "a", "stem": "Which floats?", "labels": "ABCDE", "answerKey": "E"}
DIGITS = {"id": "b", "stem": "Which sinks?", "labels": "1234", "answerKey": "3"}


def row(id: str, stem: str, labels: str, answerKey: str) -> dict:
    choices = [{"text": f"thing {label}", "label": label} for label in labels]
    return {"id": id, "question": {"stem": stem, "choices": choices}, "answerKey": answerKey}


def write(folder: Path, *rows: dict, subset: str = "ARC-Easy") -> TaskOptions:
    for split in ("Train", "Test"):
        (folder / f"{subset}-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TaskOptions(data_path=str(folder))


def test_options_stand_under_their_own_labels(tmp_path: Path) -> None:
    test = EASY.load(write(tmp_path, row(**LETTERS), row(**DIGITS)))["test"]
    assert test["answer"][:] == ["E", "3"]
    question = test[1]["prompt"][-1]["content"]
    assert question == "Which sinks?\n\n(1) thing 1\n(2) thing 2\n(3) thing 3\n(4) thing 4"


def test_the_reference_profile_letters_them_and_asks_for_the_letter_shown(tmp_path: Path) -> None:
    options = write(tmp_path, row(**LETTERS), row(**DIGITS))
    options.profile = "reference"
    test = EASY.load(options)["test"]
    assert test["answer"][:] == ["E", "C"]
    assert "C. thing 3\n" in test[1]["prompt"][-1]["content"]


def test_an_answer_that_is_no_option_and_another_layout_are_named_by_row(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"ARC-Easy \(train\), row 1: the answer 'F' is not among the labels A, B, C"):
        EASY.load(write(tmp_path, row(**LETTERS), row(**{**LETTERS, "answerKey": "F"})))
    with pytest.raises(SVFError, match="row 0 has neither the layout"):
        EASY.load(write(tmp_path, {"question": "Which?", "answerKey": "A"}))
    for labels, texts, said in (
        ([1, 2], ["a", "b"], "a label must be text"),
        (["A", "B"], ["a", None], "an option must be text"),
        (["A", "B"], ["a"], "2 labels and 1 options"),
        (None, None, "neither the layout"),
    ):
        choices = {"label": labels, "text": texts}
        with pytest.raises(SVFError, match=f"row 0:? .*{said}"):
            EASY.load(write(tmp_path, {"question": "Which?", "answerKey": "A", "choices": choices}))


@pytest.mark.parametrize(("task", "sizes"), [(EASY, [1126, 1125, 2376]), (CHALLENGE, [560, 559, 1172])])
def test_the_real_files_and_every_gold_answer_by_its_own_reward(shared_data: Path, task, sizes: list[int]) -> None:
    splits = task.load(TaskOptions(data_dir=str(shared_data)))
    assert [len(rows) for rows in splits.values()] == sizes
    reward = load_reward(task.rewards(TaskOptions())[0])
    for rows in splits.values():
        answers = rows["answer"][:]
        assert {"1", "2", "3", "4"} & set(answers)
        said = [f"It is clear. The answer is ({answer})." for answer in answers]
        assert reward(completions=said, answer=answers) == [1.0] * len(answers)
        wrong = [f"The answer is ({'B' if answer == 'A' else 'A'})." for answer in answers]
        assert reward(completions=wrong, answer=answers) == [0.0] * len(answers)
