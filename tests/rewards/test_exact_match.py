"""`exact_match` finds the final answer in a completion as a careful reader would."""

import json
from decimal import Decimal

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards.exact_match import exact_match, extract_choice, extract_number, extract_text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6-4=2, 2+5=7 #### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -5", "-5"),
        ("#### −5", "-5"),
        ("#### $1,234.50.", "1234.5"),
        ("#### 3 apples and 4 pears", "3"),
        ("#### 3\n#### 4", "4"),
        ("so there are 12 of them.", "12"),
        ("it rose by 3.50%", "3.5"),
        ("a loss of -$20", "-20"),
        ("a loss of $-20", "-20"),
        ("6-4", "4"),
        ("(6)-4", "4"),
        ("6 - 4", "4"),
        ("x = -4", "-4"),
        ("either 3,4", "4"),
        ("1,000,000 people", "1000000"),
        ("1,2345", "2345"),
        (".5", "0.5"),
        ("12 m2", "12"),
        ("5kg", "5"),
        ("7.", "7"),
    ],
)
def test_a_number_is_the_one_after_the_mark_or_the_last(text: str, number: str) -> None:
    assert extract_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "#### ", "5 #### unknown", "x2"])
def test_text_without_a_final_number_has_none(text: str) -> None:
    assert extract_number(text) is None


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


def test_text_is_compared_without_regard_to_white_space_and_unicode_form() -> None:
    assert extract_text(" def g(x):\n\treturn x ") == "def g(x): return x"
    assert extract_text("cafe\u0301") == extract_text("caf\u00e9")
    assert extract_text(" \n") is None


def test_rewards_are_correct_or_wrong_for_each_row() -> None:
    completions = ["#### 7", "#### 8", "", "7.0"]
    assert exact_match(completions, kind="number", answer=["7"] * 4) == [1.0, 0.0, 0.0, 1.0]
    assert exact_match(completions, kind="number", correct=1, wrong=-1, answer=["7"] * 4) == [1, -1, -1, 1]


def test_chat_completions_are_scored_by_the_last_assistant_message() -> None:
    chat = [
        {"role": "assistant", "content": "#### 1"},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": "#### 2"},
    ]
    assert exact_match([chat, chat, []], kind="number", answer=["2", "1", "2"]) == [1.0, 0.0, 0.0]


def test_gold_answers_may_be_numbers_and_in_any_column() -> None:
    assert exact_match(["2", "0.5", "100"], kind="number", column="gold", gold=[2, 0.5, 1e2]) == [1.0, 1.0, 1.0]
    assert exact_match(["1" + "0" * 22], kind="number", answer=[1e22]) == [1.0]


@pytest.mark.parametrize(("kind", "gold"), [("number", "no idea"), ("choice", "maybe"), ("text", " "), ("text", None)])
def test_a_gold_answer_that_nothing_could_equal_is_refused_and_shown(kind: str, gold: str | None) -> None:
    with pytest.raises(SVFError, match=f"column 'answer' holds {gold!r}, in which there is no {kind}"):
        exact_match(["7"], kind=kind, answer=[gold])  # type: ignore[arg-type]


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_solution_is_its_own_right_answer(shared_data, split: str, rows: int) -> None:
    lines = (shared_data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["answer"] for line in lines]
    assert len(gold) == rows
    # The reading of the file's own description, without our pattern: an integer, with commas or a minus sign perhaps.
    expected = [int(answer.split("\n#### ")[1].replace(",", "")) for answer in gold]
    assert [extract_number(answer) for answer in gold] == expected
    assert exact_match(gold, kind="number", answer=gold) == [1.0] * rows
    assert exact_match([f"It is {value + 1:,}." for value in expected], kind="number", answer=gold) == [0.0] * rows


@pytest.mark.parametrize("name", ["ARC-Easy-Test", "ARC-Challenge-Test"])
def test_every_arc_label_is_recognised_in_a_stated_answer(shared_data, name: str) -> None:
    lines = (shared_data / "arc" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["answerKey"] for line in lines]
    stated = [f"Not (A) nor (1), so the answer is ({label})." for label in gold]
    assert exact_match(stated, kind="choice", answer=gold) == [1.0] * len(gold)
