"""`exact_match` compares whole texts, and nothing else, after stated normalisations."""

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import verify


def test_white_space_and_unicode_form_do_not_matter() -> None:
    assert verify("exact_match", " def g(x):\n\treturn x ", "def g(x): return x").correct
    assert verify("exact_match", "cafe\u0301", "caf\u00e9").correct


def test_everything_else_matters_unless_it_is_asked_for() -> None:
    assert not verify("exact_match", "Paris.", "paris").correct
    assert not verify("exact_match", "Paris.", "paris", ignore_case=True).correct
    assert verify("exact_match", "Paris.", "paris", ignore_case=True, ignore_punctuation=True).correct


def test_thinking_does_not_count_and_a_marked_answer_does() -> None:
    assert verify("exact_match", "<think>dog</think> cat", "cat").correct
    assert not verify("exact_match", "<think>cat</think> dog", "cat").correct
    assert verify("exact_match", "It purrs: <answer>cat</answer>", "cat").correct
    assert not verify("exact_match", "<answer>cat</answer> or <answer>dog</answer>", "cat").correct
    assert verify("exact_match", "#### cat", "#### cat").correct
    assert not verify("exact_match", "cat dog", "cat").correct


@pytest.mark.parametrize("gold", ["Paris.", "U.S.", "a; b", "a. b", "e.g. x", r"\text{a}"])
@pytest.mark.parametrize("form", ["The answer is {}", "Answer: {}", r"\boxed{{{}}}", "{}"])
def test_a_reference_with_stops_can_be_stated(gold: str, form: str) -> None:
    assert verify("exact_match", form.format(gold), gold).correct
    assert not verify("exact_match", form.format(f"b{gold}"), gold).correct


def test_the_verdict_shows_what_was_compared() -> None:
    verdict = verify("exact_match", "  a  b ", "a c")
    assert (verdict.correct, verdict.extracted, verdict.value) == (False, "a b", 0.0)
    assert verify("exact_match", " ", "a").extracted is None


def test_numbers_are_compared_as_they_are_written() -> None:
    assert verify("exact_match", "7", 7).correct
    assert not verify("exact_match", "7.0", 7).correct


@pytest.mark.parametrize("gold", ["", " \n", None, ["a"], {"a": 1}])
def test_an_empty_answer_or_one_that_is_not_text_is_refused(gold: object) -> None:
    with pytest.raises(SVFError, match="exact_match: an answer"):
        verify("exact_match", "a", gold)


def test_an_unknown_verifier_or_option_names_the_nearest() -> None:
    with pytest.raises(SVFError, match="did you mean 'exact_match'"):
        verify("exact_mach", "a", "a")
    with pytest.raises(SVFError, match="did you mean 'ignore_case'"):
        verify("exact_match", "a", "a", ignore_cases=True)
