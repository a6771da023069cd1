"""`choice` finds the named option in a completion as a careful reader would."""

import json

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import verify, verify_all
from svf_rl.rewards.choice import extract_choice


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("8, so the answer is (C)", "C"),
        ("The answer is (A). No, the answer is (b).", "B"),
        ("(A) is wrong, (D) is right", "D"),
        ("the answer is (B), not (A)", "B"),
        ("The Answer is: **B**", "B"),
        ("the answer is 3", "3"),
        ("the answer is (3).", "3"),
        (" c. ", "C"),
        ("2", "2"),
    ],
)
def test_a_choice_is_the_stated_answer_else_the_last_in_brackets_else_a_lone_label(text: str, label: str) -> None:
    assert extract_choice(text) == label


@pytest.mark.parametrize("text", ["", "the answer is a number", "the answer is 3.5 metres", "A or B", "(none)"])
def test_text_without_a_label_has_no_choice(text: str) -> None:
    assert extract_choice(text) is None


@pytest.mark.parametrize("gold", ["maybe", "", None, 2])
def test_a_gold_answer_that_nothing_could_equal_is_refused(gold: object) -> None:
    with pytest.raises(SVFError, match=r"choice: (the|an) answer"):
        verify("choice", "(A)", gold)


@pytest.mark.parametrize(
    "name", [f"ARC-{level}-{split}" for level in ("Easy", "Challenge") for split in ("Train", "Test")]
)
def test_every_arc_label_is_recognised_in_a_stated_answer(shared_data, name: str) -> None:
    lines = (shared_data / "arc" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["answerKey"] for line in lines]
    stated = [f"Not (A) nor (1), so the answer is ({label})." for label in gold]
    assert all(verdict.correct for verdict in verify_all("choice", stated, gold))
