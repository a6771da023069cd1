"""`numeric` finds the final number in a completion as a careful reader would."""

import json
import time

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify, verify_all
from svf_rl.rewards.verifiers.numeric import extract_number


def number(text: str) -> str | None:
    found = extract_number(text)
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6-4=2, 2+5=7 #### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -5", "-5"),
        ("#### −5", "-5"),
        ("#### $1,234.50.", "1234.5"),
        ("#### -$5", "-5"),
        ("#### - 5", "-5"),
        ("#### >5 or so\n#### 7 apples", "7"),
        ("#### 3\n#### 4", "4"),
        ("#### **42**", "42"),
        ("#### Answer: 42", "42"),
        ("#### 5+3=8", "8"),
        ("#### 42. I hope this helps.", "42"),
        (r"so \boxed{42}, since 6 times 7 is that", "42"),
        (r"$\boxed{\$1{,}234.50}$", "1234.5"),
        (r"\boxed{-\dfrac{1}{2}} of 7", "-0.5"),
        (r"\(\boxed{x = 5}\), not 6", "5"),
        (r"\boxed{five (5)}", "5"),
        ("#### <<9*2=18>>18", "18"),
        ("#### $<<9*2=18>>", "18"),
    ],
)
def test_a_mark_of_the_final_answer_comes_first(text: str, expected: str) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 ####", "5"),
        ("5 #### unknown", "5"),
        ("#### Step 2: add\nThe total is 42", "42"),
        ("#### 1. Add the eggs\nThis gives 3 + 4 = 7", "7"),
        ("### 3\nSo 4", "4"),
    ],
)
def test_a_heading_is_no_mark(text: str, expected: str) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 42. It is 6 times 7.", "42"),
        ("The final answer is: $\\boxed{7}$. I hope it is correct.", "7"),
        ("The answer is $18 for 3 days.", "18"),
        ("The answer is 5+3=8 dollars, 2 more", "8"),
        ("The answer is that she has 5 apples.", "5"),
        ("The answer is fifty-two. There are 7 of them.", "52"),
        ("The answer is minus 2", "-2"),
        ("the answer to the question is 12, not 13", "12"),
        ("The answer is approximately 3.14 in 2 digits", "3.14"),
        ("The answer is 3. No, the answer is 4: 2 + 2", "4"),
        ("Answer: 18\n\nExplanation: 16-3-4 = 9, and 9*2", "18"),
        ("**Answer: $18**. See rule 5", "18"),
        ("**Answer:** 18 of 20", "18"),
        ("9 * 2 = $<<9*2=18>>18\nA: 18", "18"),
        ("So she makes 9 * 2 = $<<9*2=18>>18 a day.", "18"),
        ("The answer is twenty-five (25).", "25"),
        ("Answer: First, 16-3-4=9 eggs. Then 9*2=18.", "18"),
        ("Answer: 16-3-4=9 eggs left. 9*2=18", "18"),
        ("A: She has 3*5 = 15 eggs", "15"),
        ("The answer is not 5 but 6", "6"),
    ],
)
def test_a_stated_answer_outranks_the_last_number(text: str, expected: str) -> None:
    assert number(text) == expected


def test_a_next_question_of_the_model_itself_does_not_count() -> None:
    assert number("The answer is 5.\n\nQ: Tom has 3. How many?\nA: The answer is 9.") == "5"
    assert number("Question: Tom has 3.\nHe buys one. The answer is 4.") == "4"


def test_a_bold_number_in_the_last_line_outranks_its_last_number() -> None:
    assert number("So she earns **$18** a day for 9 eggs at $2.") == "18"
    assert number("**Step 2:** the total is 42") == "42"
    assert number("At first **3**.\nThen 4") == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so there are 12 of them.", "12"),
        ("it rose by 3.50%", "3.5%"),
        ("50 percent", "50%"),
        ("a loss of -$20", "-20"),
        ("a loss of $-20", "-20"),
        ("a loss of –20", "-20"),
        ("(6)-4", "2"),
        ("6 - 4", "2"),
        ("$5-$3=$2", "2"),
        ("9-13=-4", "-4"),
        ("x = -4", "-4"),
        ("- 5 apples", "-5"),
        ("1,000,000 people", "1000000"),
        (r"10{,}000 or 10,\!000", "10000"),
        ("1,00,000", "100000"),
        ("1.234,56", "1234.56"),
        ("5 million", "5000000"),
        ("2 dozen", "24"),
        ("3½", "3.5"),
        ("2³", "8"),
        (".5", "0.5"),
        ("12 m2", "12"),
        ("5kg", "5"),
        ("€ 5", "5"),
        ("US$5", "5"),
        (r"\$5", "5"),
        ("7.", "7"),
        ("3/4", "0.75"),
        ("-1/3", "-1/3"),
        ("1 1/2", "1.5"),
        (r"\frac{3}{4}", "0.75"),
        (r"-\frac12", "-0.5"),
        (r"1\frac{1}{2} cups", "1.5"),
        ("horse #12 has 4 legs", "4"),
        ("1.5e3", "1500"),
        (r"3 \times 10^{5}", "300000"),
        ("2 x 10^3 m", "2000"),
        ("about 2*10**-1", "0.2"),
    ],
)
def test_how_numbers_are_written(text: str, expected: str) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "#### 3 apples and 4 pears",
        r"\boxed{3\text{ or maybe 12}}",
        r"\boxed{3 \text{ apples, } 12 \text{ pears}}",
        "The answer is between 40 and 60.",
        "The answer is 1 or 2",
        "#### 5 to 10",
        "#### 5-10",
        "either 3,4",
        "#### 5 or more",
        "The answer is that she has 5 apples and 6 pears.",
        r"\boxed{7 = 4}",
    ],
)
def test_several_numbers_are_no_answer(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{3x}",
        r"\boxed{3x+5}",
        r"\boxed{3x=12}",
        r"\boxed{2\sqrt{3}}",
        r"\boxed{4\pi}",
        r"\boxed{\text{at least }4}",
        "#### >5",
        "#### not 5",
        "#### 125,96",
        "So the result is 5x.",
        "It is 4 + x.",
        "The answer isn't 5.",
        "24/7/365",
        "1,2345",
        "2 3",
    ],
)
def test_part_of_an_expression_is_not_the_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>#### 42</think>\nThe answer is 43.", "43"),
        ("so 42 it is</think>\n43", "43"),
        ("#### 42\n<think>perhaps 43", "42"),
        ("<think>#### 42", None),
        ("<answer>42</answer>", "42"),
        (r"\boxed{41} <answer>42</answer>", "42"),
        ("#### 42<|im_end|>\n#### 43", "42"),
    ],
)
def test_thinking_does_not_count_and_a_tag_is_a_mark(text: str, expected: str | None) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"I get \boxed{42}. But this counts twice, so the correct answer is 21.", "21"),
        ("The answer is 42. Wait, I forgot a factor of 2. So it is 84.", "84"),
        (r"\boxed{42}. The answer to the other question is 3.", "42"),
    ],
)
def test_a_correction_outranks_what_it_corrects(text: str, expected: str) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So he earns 8 lessons * 3 cleans per lesson = 24 dollars in 7 days.", "24"),
        ("It takes 15 hours to clean 45 rooms, so 15 hours it is.", "15"),
        ("She has 22 stripes/zebra. I hope this helps!", "22"),
        ("Tom has 3 apples and buys 5. How many has he?", None),
        ("Evaluate $3 + 4$.", None),
    ],
)
def test_without_a_mark_the_last_sentence_that_states_something_counts(text: str, expected: str | None) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "#### 18 divided by 2", "The answer is 18 times 2.", "The answer is 18 over 2.", "#### 18 multiplied by 2",
        "The answer is 18 hundredths.", "The answer is 18 and a half.", "The answer is 18 and one third.",
    ],
)  # fmt: skip
def test_arithmetic_and_parts_in_words_make_another_number(text: str) -> None:
    assert number(text) != "18"


@pytest.mark.parametrize("text", ["The answer is 18 times a day.", "#### 18 over 2 days", "#### 18 and that is all"])
def test_words_behind_a_number_may_explain_it(text: str) -> None:
    assert number(text) == "18"


def test_a_calculation_that_is_left_undone_is_no_value() -> None:
    assert verify("numeric", "#### 5 + 3", "8").correct
    assert verify("numeric", "#### 5 + 3", "8", form="value").correct is False
    assert verify("numeric", "#### 16/2", "8", form="value").correct is False
    for written in ("#### 8", "#### 5 + 3 = 8", "#### 8.0", "#### 8 eggs"):
        assert verify("numeric", written, "8", form="value").correct
    with pytest.raises(SVFError, match="numeric: form must be value or equal"):
        verify("numeric", "8", "8", form="any")


@pytest.mark.parametrize("text", ["", "none", "#### ", "unknown ####", "x2", "1/0", "1e999999999", "7" * 5000])
def test_text_without_a_number_has_none(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("50%", "50", True),
        ("50%", "0.5", False),
        ("0.5", "50%", False),
        ("50", "50%", True),
        ("50%", "50%", True),
        ("0.5", "50", False),
        ("5%", "50%", False),
        ("0.5%", "50%", False),
        ("1.0", "1", True),
        ("1/3", "0.333", False),
        ("2/4", "1/2", True),
        ("18 dollars", "$18.00", True),
        ("-18", "18", False),
    ],
)
def test_numbers_are_compared_by_value(completion: str, gold: str, correct: bool) -> None:
    assert verify("numeric", completion, gold).correct is correct


def test_floating_point_noise_makes_no_answer_wrong() -> None:
    assert verify("numeric", "0.6666666666666667", "0.6666666666666666").correct
    assert verify("numeric", "0.66666666666667", "0.6666666666666666").correct is False


def test_a_tolerance_is_a_distance() -> None:
    assert verify("numeric", "3.14", "3.1416", tolerance=0.01).correct
    assert verify("numeric", "3.16", "3.1416", tolerance=0.01).correct is False


@pytest.mark.parametrize("tolerance", [-1, "1", float("nan"), float("inf"), True])
def test_a_tolerance_that_is_none_is_refused(tolerance: object) -> None:
    with pytest.raises(SVFError, match="numeric: tolerance must be"):
        verify("numeric", "1", "1", tolerance=tolerance)


@pytest.mark.parametrize(
    "piece",
    [
        "1,",
        "-",
        "(",
        "1",
        "1 ",
        "1/",
        "$",
        " ",
        "\n",
        "*",
        "#### ",
        "answer ",
        "answer is ",
        "A:\n",
        "1.1",
        "1e",
        "10^",
        "\\frac",
        "\\boxed{",
        "\nQ:",
        "1 1/",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    start = time.process_time()
    extract_number(piece * (10**6 // len(piece)))
    assert time.process_time() - start < 10


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
    assert [found.value for answer in gold if (found := extract_number(answer))] == expected
    assert all(verdict.correct for verdict in verify_all("numeric", gold, gold))
    off_by_one = [f"It is {value + 1:,}." for value in expected]
    assert not any(verdict.correct for verdict in verify_all("numeric", off_by_one, gold))
