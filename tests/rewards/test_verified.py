"""Rows of several tasks, each graded by its own verifier; and answers that are refused before a run."""

import json

import pytest

from svf_rl.errors import InfrastructureError, SVFError
from svf_rl.rewards import load_reward, required_columns
from svf_rl.rewards.registry import as_reward
from svf_rl.rewards.verified import check_answers, parse_reference
from svf_rl.rewards.verifier import Verdict, verifier, verify

ROWS = {"verifier": ["numeric", "choice", "numeric", "exact_match"], "answer": ["5", "B", "#### 7", "B"]}


def test_each_row_is_graded_by_its_own_verifier_in_the_order_of_the_rows() -> None:
    reward = load_reward({"name": "verified", "wrong": -1.0})
    assert reward(completions=["It is 5.", "the answer is (B)", "6", "B"], **ROWS) == [1.0, 1.0, -1.0, 1.0]
    assert reward(completions=["B", "5", "7", "the answer is (B)"], **ROWS) == [-1.0, -1.0, 1.0, -1.0]


def test_what_a_right_answer_gets_is_known_where_others_get_a_part_of_it() -> None:
    assert load_reward("verified").full is None
    assert load_reward({"name": "verified", "partial": True, "correct": 2.0}).full == 2.0

    def own(completions: list, correct: str = "yes", partial: bool = True) -> list[float]:
        return [0.0 for _ in completions]

    assert as_reward(own).full is None  # words of its own


def test_it_needs_both_columns() -> None:
    assert required_columns(load_reward("verified")) == {"answer", "verifier"}
    named = load_reward({"name": "verified", "column": "gold", "verifier_column": "grader"})
    assert required_columns(named) == {"gold", "grader"}


def test_a_mapping_comes_as_json_and_any_other_text_stays() -> None:
    tests = {"test_list": ["assert f(1) == 2"]}
    assert parse_reference(json.dumps(tests)) == tests
    for text in ("5", r"\{1, 2\}", "{1, 2}", '{"', "[1]", '{"a": ', '{"a":' * 10**5, '{"a": ' + "1" * 5000 + "}"):
        assert parse_reference(text) == text


def test_json_is_text_for_verifiers_of_text() -> None:
    text = '{"a": 1}'
    assert parse_reference(text) == {"a": 1}
    rows = {"verifier": ["exact_match"] * 2, "answer": [text] * 2}
    check_answers(load_reward("verified"), rows, "here")
    assert load_reward("verified")(completions=[text, '{"a": 2}'], **rows) == [1.0, 0.0]


def test_an_unknown_verifier_is_named() -> None:
    with pytest.raises(SVFError, match="unknown verifier 'numerc'"):
        load_reward("verified")(completions=["5"], verifier=["numerc"], answer=["5"])


def test_a_check_that_fails_by_itself_is_not_scored_and_too_many_stop_the_run() -> None:
    @verifier("sometimes_broken")
    def broken(completion: str, reference: object) -> Verdict:
        if completion == "break":
            raise InfrastructureError("no sandbox")
        return Verdict(True, completion, "fine")

    rows = {"verifier": ["sometimes_broken"] * 4, "answer": [None] * 4}
    reward = load_reward("verified")
    assert reward(completions=["break", "a", "b", "c"], **rows) == [None, 1.0, 1.0, 1.0]
    with pytest.raises(SVFError, match="could not check 2 of 4"):
        reward(completions=["break", "break", "b", "c"], **rows)


@pytest.mark.parametrize(
    ("spec", "columns", "message"),
    [
        ("numeric", {"answer": ["5", "none"]}, "rows, row 1: numeric: the answer 'none' does not give one number"),
        ("numeric", {"answer": ["5", ""]}, "rows, row 1: numeric: an answer is empty"),
        ("numeric", {"answer": ["5", None]}, "rows, row 1: numeric: an answer must be text, not NoneType"),
        ("exact_match", {"answer": ["5", ["6"]]}, "rows, row 1: exact_match: an answer must be text, not list"),
        ({"name": "numeric", "column": "gold"}, {"gold": ["x"]}, "rows, row 0: numeric"),
        ("verified", {"answer": ["5", "x"], "verifier": ["choice", "numeric"]}, "rows, row 1: numeric"),
        ("verified", {"answer": ["5", "5"], "verifier": ["numeric", None]}, "rows, row 1: unknown verifier None"),
        ("verified", {"answer": ["5", "5"], "verifier": ["numeric", ["a"]]}, "rows, row 1: unknown verifier"),
        ("verified", {"answer": ["5"], "verifier": ["numerc"]}, "rows, row 0: unknown verifier 'numerc'; did you mean"),
    ],
)
def test_an_answer_that_a_verifier_cannot_use_is_named_by_its_row(spec: object, columns: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message) as caught:
        check_answers(load_reward(spec), columns, "rows")
    assert "\n" not in str(caught.value)


def test_a_number_that_python_does_not_write_is_one_line() -> None:
    with pytest.raises(SVFError, match="numeric: an answer has more than 1,000 digits"):
        verify("numeric", "5", 10**5000)


def test_good_answers_and_rewards_of_other_kinds_pass() -> None:
    check_answers(load_reward("verified"), ROWS, "rows")
    check_answers(load_reward("json:dumps"), {}, "rows")


def test_equal_answers_are_checked_once() -> None:
    checked: list[object] = []

    @verifier("counts_checks", check_reference=lambda reference, **_: checked.append(reference))
    def counted(completion: str, reference: object) -> Verdict:
        return Verdict(True, completion, "fine")

    check_answers(load_reward("counts_checks"), {"answer": ["5", "6"] * 1000}, "rows")
    assert checked == ["5", "6"]
