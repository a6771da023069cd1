r"""`math` finds the answer of a completion and compares it as a mathematician would."""

import json
import re

import pytest
from math_pairs import RIGHT, WRONG

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify, verify_all
from svf_rl.rewards.reading.final_answer import find_answer
from svf_rl.rewards.reading.math_text import read_answer


def test_answers_that_mean_the_same_are_equal() -> None:
    boxed = [rf"So it is $\boxed{{{answer}}}$." for answer, _ in RIGHT]
    verdicts = verify_all("math", boxed, [gold for _, gold in RIGHT])
    assert [pair for pair, verdict in zip(RIGHT, verdicts, strict=True) if verdict.correct is not True] == []


def test_answers_that_differ_are_not() -> None:
    boxed = [rf"So it is $\boxed{{{answer}}}$." for answer, _ in WRONG]
    verdicts = verify_all("math", boxed, [gold for _, gold in WRONG])
    assert [pair for pair, verdict in zip(WRONG, verdicts, strict=True) if verdict.correct is not False] == []


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"First \boxed{3}. Wait, that was wrong, since nothing else divides it. So \boxed{4}.", "4"),
        (r"$\boxed{\frac{1}{\sqrt{2}}}$, as \frac{1}{2} shows.", r"\frac{1}{\sqrt{2}}"),
        (r"<think>\boxed{1}?</think> It is \boxed{2}.", "2"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"$\boxed 7$", "7"),
        (r"It is \boxed{\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"$\boxed{1}$ and $\boxed{-2}$", "1,-2"),
        (r"\boxed{5} \boxed{5}", "5"),
        (r"$\boxed{28}$ percent", r"28\%"),
        (r"Put it into \boxed{}. I get \boxed{7}, not \boxed{}.", "7"),
        ("She sells 9.\n#### 18", "18"),
        ("She sells 9.\nA: 18", "18"),
        ("The answer is 42. That is 6 times 7.", "42"),
        ("**Answer:** $x = 3$", "$x = 3$"),
        ("<think>maybe 3 or 4</think><answer>5</answer>", "5"),
        (r"<think>\boxed{3}</think><answer>$\boxed{5}$</answer>", "5"),
        (r"\boxed{3}</think>\boxed{5}", "5"),
        (r"I get \boxed{4}. But this counts twice, so the correct answer is 2.", "2"),
        ("Final Answer: The final answer is $28 \\%$. I hope it is correct.", "$28 \\%$"),
        ("**Final Answer**\n\nThe final answer is:\n\n$$\n9\n$$", "$$\n9\n$$"),
        ("# Answer\n\n$9$", "$9$"),
        (r"We get $\boxed{255}$ for one. Final Answer: The final answer is $10,455$.", "$10,455$"),
        ("The answer is $12$ and $13$.", "$12$ and $13$"),
        ("the answer is 3.5 apples", "3.5 apples"),
    ],
)
def test_where_the_answer_stands(completion: str, answer: str) -> None:
    found = find_answer(completion)
    assert found is not None
    assert found.text == answer


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("Therefore, the final answer is: $\\frac{3}{4}$. I hope it is correct.", "0.75", True),
        ("The probability that she wins is thus 2/3.", r"\frac{2}{3}", True),
        ("So the total comes to $12.50.", "12.5", True),
        (r"Hence $x \geq 5$ holds for all of them.", r"x \ge 5", True),
        ("They are 3 apples, so of these we get the answer: 12.", "12", True),
        (r"The answer is $\$32,\!348$.", r"\$32,\!348", True),
        (r"The answer is \$18.90.", r"\$18.90", True),
        ("The answer is east.", r"\text{east}", True),
        ("The answer is x + 3", "3", False),
        (r"\boxed{3} and \boxed{5}", "5", False),
        (r"$x = \boxed{3}$ papers, and $y = \boxed{5}$", "5", False),
        (r"$x = \boxed{3}$ papers, and $y = \boxed{5}$", "3,5", True),
        (r"\frac{3}{4}", r"\frac{3}{4}", True),
        ("Therefore, the figure skater is facing East.", r"\text{east}", True),
        ("The figure skater is not facing East.", r"\text{east}", False),
        ("It is 4 + x.", "4", False),
        ("The area is 4 pi.", "4", False),
        ("The area is 4 pi.", r"4\pi", True),
        ("The result is 4 + sqrt(2).", "4", False),
        ("The answer isn't 4.", "4", False),
        ("10T = 4(2T + G) + G\nSolving this gives the weight.", "4", False),
        ("What is $\\frac{-5}{9}\\cdot \\frac{8}{17}$?", "-\\frac{40}{153}", False),
        ("Simplify $\\frac{-5}{9}\\cdot \\frac{8}{17}$.", "-\\frac{40}{153}", False),
        ("$\\frac{-5}{9}\\cdot \\frac{8}{17}$", "-\\frac{40}{153}", False),
        ("", "5", False),
        ("I do not know.", "5", False),
        # words are no products of letters
        (r"\boxed{\text{Yes}}", "Yes", True),
        ("The answer is yes.", "Yes", True),
        (r"\boxed{yes}", r"\text{Yes}", True),
        (r"\boxed{\textbf{TRUE}}", "True", True),
        (r"\boxed{on}", "no", False),
        (r"\boxed{NO}", "ON", False),
        (r"\boxed{won}", "now", True),  # but others of three letters are
        (r"\boxed{ba}", "ab", True),
        ("The answer is 18 divided by 2.", "18", False),
        ("The answer is 18 and a half.", "18", False),
        ("The answer is 18 hundredths.", "18", False),
    ],
)
def test_completions_without_one_box(completion: str, gold: str, correct: bool) -> None:
    assert verify("math", completion, gold).correct is correct


@pytest.mark.parametrize(
    "gold",
    [
        "12",
        12,
        12.0,
        "$12$",
        r"\(12\)",
        r"\boxed{12}",
        "4 * 3 = <<4*3=12>>12\n#### 12",
        "$x = 12$",
        r"First \boxed{3}, and after many more words that say nothing new, $\boxed{12}$.",
    ],
)
def test_references_are_bare_or_in_dollars_or_in_a_solution(gold: object) -> None:
    assert verify("math", r"\boxed{12}", gold).correct
    assert verify("math", r"\boxed{3}", gold).correct is False


@pytest.mark.parametrize(
    "gold", ["", " ", "$$", None, ["5"], True, "7" * 3000, "$64^{\\circ}$ at 2 PM (8 hours after 6 AM.)"]
)
def test_references_that_hold_no_answer_are_refused(gold: object) -> None:
    with pytest.raises(SVFError, match=r"math: (the|an) answer") as raised:
        verify("math", "5", gold)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("timeout", [0, -1, "5", True, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: object) -> None:
    with pytest.raises(SVFError, match="math: timeout must be"):
        verify("math", "5", "5", timeout=timeout)


def test_it_is_a_reward() -> None:
    reward = load_reward({"name": "math", "column": "solution", "wrong": -1})
    completions = [r"\boxed{\frac12}", r"\boxed{2}"]
    assert reward(completions=completions, solution=[r"so \boxed{0.5}", "1"]) == [1.0, -1.0]


def test_the_verdict_says_what_was_compared() -> None:
    verdict = verify("math", r"so $\boxed{7}$", "8")
    assert (verdict.correct, verdict.extracted) == (False, "7")
    assert "8" in verdict.reason


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 3", "23"),
        ("(1,2)", "(1, 3)"),
        ("32, 349", "32349"),
        ("b", "B"),
        ("-5", "5"),
        ("x^2", "x2"),
        (r"\frac12", "12"),
    ],
)
def test_readings_keep_apart_what_differs(one: str, other: str) -> None:
    assert read_answer(one) != read_answer(other)


def test_a_calculation_that_is_left_undone_is_no_value() -> None:
    echo = r"\boxed{\frac{-5}{9}\cdot \frac{8}{17}}"
    assert verify("math", echo, r"-\frac{40}{153}").correct
    assert verify("math", echo, r"-\frac{40}{153}", form="value").correct is False
    for written, gold in (
        ("-\\frac{40}{153}", "-\\frac{40}{153}"),
        ("0.5", "\\frac12"),
        ("3 + 2 = 5", "5"),
        ("5\\text{ cm}", "5"),
    ):
        assert verify("math", rf"\boxed{{{written}}}", gold, form="value").correct
    assert verify("math", r"\boxed{(x-1)(x+1)}", "x^2-1", form="value").correct
    with pytest.raises(SVFError, match="math: form must be value or equal"):
        verify("math", "5", "5", form="any")


def _rows(path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["math500", "test"])
def test_every_math_solution_is_its_own_right_answer(shared_data, name: str) -> None:
    rows = _rows(shared_data / "math" / f"{name}.jsonl")
    assert len(rows) == {"math500": 500, "test": 5000}[name]
    solutions = [row["solution"] for row in rows]
    gold = [row.get("answer") or find_answer(row["solution"]).text for row in rows]
    assert all(verdict.correct for verdict in verify_all("math", solutions, gold))
    boxed = [rf"It is $\boxed{{{answer}}}$." for answer in gold]
    assert all(verdict.correct for verdict in verify_all("math", boxed, solutions))
    assert all(verdict.correct for verdict in verify_all("math", gold, gold))


def test_every_math_training_answer_but_the_two_empty_ones(shared_data) -> None:
    gold = [row["answer"] for row in _rows(shared_data / "math" / "train.jsonl")]
    assert [index for index, answer in enumerate(gold) if not answer] == [5341, 5343]
    with pytest.raises(SVFError, match="an answer is empty; leave such rows out"):
        verify("math", "5", gold[5341])
    gold = [answer for answer in gold if answer]
    boxed = [rf"It is $\boxed{{{answer}}}$." for answer in gold]
    assert all(verdict.correct for verdict in verify_all("math", boxed, gold))


def test_symbolic_comparison_needs_no_help_of_the_text(shared_data) -> None:
    """The same gold answers with a change that leaves their value alone: a term is added that is 0."""
    gold = [row["answer"] for row in _rows(shared_data / "math" / "math500.jsonl")]
    numbers = [answer for answer in gold if re.fullmatch(r"-?\d+|\\frac\{\d+\}\{\d+\}", answer)][:150]
    boxed = [rf"\boxed{{{answer} + 3 - 3}}" for answer in numbers]
    assert all(verdict.correct for verdict in verify_all("math", boxed, numbers))
    off = [rf"\boxed{{{answer} + 3 - 2}}" for answer in numbers]
    assert not any(verdict.correct for verdict in verify_all("math", off, numbers))


@pytest.mark.parametrize("heading", ["# Answer", "## Final answer:", "**Answer**", "**Final Answer:**"])
@pytest.mark.parametrize(
    ("answer", "gold"), [("5\\sqrt{3}", "5\\sqrt{3}"), ("$x = 3$", "3"), ("Evelyn", "\\text{Evelyn}")]
)
def test_an_answer_may_stand_below_a_heading(heading: str, answer: str, gold: str) -> None:
    assert verify("math", f"It has 2 parts.\n\n{heading}\n\n{answer}\n", gold).correct
    assert not verify("math", f"It has 2 parts.\n\n{heading}\n\n{answer}\n", "2").correct
