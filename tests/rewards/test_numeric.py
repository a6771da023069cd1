"""`numeric` finds the final number in a completion as a careful reader would."""

import json
from decimal import Decimal

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify, verify_all
from svf_rl.rewards.numeric import extract_number


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


def test_rewards_are_correct_or_wrong_for_each_row() -> None:
    completions = ["#### 7", "#### 8", "", "7.0"]
    assert load_reward("numeric")(completions=completions, answer=["7"] * 4) == [1.0, 0.0, 0.0, 1.0]
    signed = load_reward({"name": "numeric", "correct": 1, "wrong": -1})
    assert signed(completions=completions, answer=["7"] * 4) == [1, -1, -1, 1]


def test_chat_completions_are_scored_by_the_last_assistant_message() -> None:
    chat = [
        {"role": "assistant", "content": "#### 1"},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": "#### 2"},
    ]
    verdicts = verify_all("numeric", [chat, chat, []], ["2", "1", "2"])
    assert [verdict.correct for verdict in verdicts] == [True, False, False]


def test_gold_answers_may_be_numbers_and_in_any_column() -> None:
    gold = load_reward({"name": "numeric", "column": "gold"})
    assert gold(completions=["2", "0.5", "100"], gold=[2, 0.5, 1e2]) == [1.0, 1.0, 1.0]
    assert verify("numeric", "1" + "0" * 22, 1e22).correct


@pytest.mark.parametrize("gold", ["no idea", "", None, ["7"], True])
def test_a_gold_answer_that_nothing_could_equal_is_refused(gold: object) -> None:
    with pytest.raises(SVFError, match=r"numeric: (the|an) answer"):
        verify("numeric", "7", gold)


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_solution_is_its_own_right_answer(shared_data, split: str, rows: int) -> None:
    lines = (shared_data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["answer"] for line in lines]
    assert len(gold) == rows
    # The reading of the file's own description, without our pattern: an integer, with commas or a minus sign perhaps.
    expected = [int(answer.split("\n#### ")[1].replace(",", "")) for answer in gold]
    assert [extract_number(answer) for answer in gold] == expected
    assert all(verdict.correct for verdict in verify_all("numeric", gold, gold))
    off_by_one = [f"It is {value + 1:,}." for value in expected]
    assert not any(verdict.correct for verdict in verify_all("numeric", off_by_one, gold))
