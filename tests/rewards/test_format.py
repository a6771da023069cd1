r"""`format` rewards the form of a completion."""

import time

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify


@pytest.mark.parametrize(
    ("pattern", "completion", "correct"),
    [
        ("boxed", r"so $\boxed{\frac{1}{2}}$." + "\n", True),
        ("boxed", r"\boxed{1} or \boxed{2}", False),
        ("boxed", r"\boxed{}", False),
        ("boxed", r"\boxed{\text{}}", False),
        ("boxed", r"\boxed{\text{east}}", True),
        ("boxed", r"\boxed{1", False),
        ("boxed", "1", False),
        ("think_answer", "<think>\na\n</think>\n<answer>b</answer>\n", True),
        ("think_answer", "<think></think><answer>b</answer>", False),
        ("think_answer", "<think>a</think><answer> </answer>", False),
        ("think", "<think> </think> b", False),
        ("think_answer", "<answer>b</answer><think>a</think>", False),
        ("think_answer", "<think>a</think><answer>b</answer> c", False),
        ("think_answer", "<think>a<think>b</think><answer>c</answer>", False),
        ("think", "<think>a</think> b", True),
        ("think", "<think>a</think> ", False),
        ("think", "<think>a</think> b</think> c", False),
        (r"yes|no", "no", True),
        (r"yes|no", "no.", False),
        (r"a.*b", "a\nb", True),
    ],
)
def test_all_of_the_completion_has_the_form(pattern: str, completion: str, correct: bool) -> None:
    assert verify("format", completion, pattern=pattern).correct is correct


def test_a_part_is_enough_where_asked_for() -> None:
    assert verify("format", "no.", pattern="yes|no", full=False).correct
    assert verify("format", "never", pattern="yes|no", full=False).correct is False
    assert verify("format", r"So \boxed{} and \boxed{5}.", full=False).correct


def test_it_is_a_reward_without_a_column() -> None:
    assert load_reward("format")(completions=[r"\boxed{1}", "1"]) == [1.0, 0.0]


@pytest.mark.parametrize("pattern", ["(", "[a", 3])
def test_a_broken_pattern_is_refused_in_one_line(pattern: object) -> None:
    with pytest.raises(SVFError, match="format: pattern"):
        verify("format", "a", pattern=pattern)


@pytest.mark.parametrize("pattern", ["boxed", "think_answer", "think"])
@pytest.mark.parametrize("piece", [r"\boxed{", "}", "<think>", "</think>", "<", "{", " "])
def test_hostile_text_takes_linear_time(pattern: str, piece: str) -> None:
    text = r"<think>\boxed{1" + piece * (10**6 // len(piece)) + r"\boxed"
    start = time.process_time()
    assert verify("format", text, pattern=pattern).correct is False
    assert time.process_time() - start < 10


def test_a_box_of_spaces_takes_linear_time() -> None:
    start = time.process_time()
    assert verify("format", rf"\boxed{{{' ' * 10**6}}}").correct is False
    assert time.process_time() - start < 10


@pytest.mark.parametrize("pattern", ["boxed", "think_answer", "think"])
@pytest.mark.parametrize("piece", ["word ", " ", "\\boxed{", "\\boxed{ ", "\\boxed{5"])
def test_looking_for_a_part_takes_linear_time(pattern: str, piece: str) -> None:
    start = time.process_time()
    assert verify("format", piece * (10**6 // len(piece)), pattern=pattern, full=False).correct is False
    assert time.process_time() - start < 10
