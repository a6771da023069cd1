"""`choice` finds the named option in a completion as a careful reader would."""

import json
import time

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import verify, verify_all
from svf_rl.rewards.verifiers.choice import extract_choice


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"\boxed{C}", "C"),
        (r"The answer is (B). \boxed{\text{(C)}}", "C"),
        (r"$\boxed{\textbf{(C) }12}$", "C"),
        (r"\boxed{3}", "3"),
    ],
)
def test_a_box_comes_first(text: str, label: str) -> None:
    assert extract_choice(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("8, so the answer is (C)", "C"),
        ("The answer is (A). No, the answer is (b).", "B"),
        ("the answer is (B), not (A)", "B"),
        ("The Answer is: **B**", "B"),
        ("The answer is 3", "3"),
        ("the answer is (3).", "3"),
        ("The answer is 4 metres", "4"),
        ("Answer: C", "C"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("Answer:\nC", "C"),
        ("Final answer: **(B) photosynthesis**", "B"),
        ("### Answer\n\n**B**", "B"),
        ("The correct option is C.", "C"),
        ("The correct answer is option C", "C"),
        ('The correct answer is "C"', "C"),
        ("The correct answer is not (A) but (B)", "B"),
        ("The answer is B. Not A.", "B"),
        ("The answer is (B).\n\nNot A because it is cold.", "B"),
        ("The correct answer is B. Wrong options: A, C and D.", "B"),
        ("The answer is B. Eliminated choices: A.", "B"),
        ("The answer is B. Too many people pick A.", "B"),
        ("The answer is B. No other option fits.", "B"),
        ("The best choice is (b), and (A) is second", "B"),
        ("(C) is correct. (A) is not.", "C"),
        ("Option C is correct, unlike option A", "C"),
        ("A is the correct answer.", "A"),
        ("I choose C because A is cold", "C"),
        ("Therefore, the answer is: A", "A"),
        ("The answer is A because it floats", "A"),
        ("A. red\nB. blue\nC. green\nThe answer is B", "B"),
    ],
)
def test_a_stated_choice_comes_next(text: str, label: str) -> None:
    assert extract_choice(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" c. ", "C"),
        ("2", "2"),
        ("(4)", "4"),
        ("**D**", "D"),
        ("C.", "C"),
        ("C) water", "C"),
        ("C. water", "C"),
        ("4) water", "4"),
        ("(C) water\nBecause (A) is cold", "C"),
        ("C\n\nExplanation: (A) is wrong since it is cold", "C"),
        ("It floats, so:\n(D)", "D"),
    ],
)
def test_then_a_line_that_a_label_begins(text: str, label: str) -> None:
    assert extract_choice(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("(A) is wrong, (D) is right", "D"),
        ("A) is wrong because\nB) is right so (B)", "B"),
        ("So it must be C.", "C"),
        ("I think it's C", "C"),
    ],
)
def test_then_the_last_in_brackets_and_a_capital_at_the_end(text: str, label: str) -> None:
    assert extract_choice(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("<answer>B</answer>", "B"),
        ("<think>(A) looks wrong, maybe B.</think>\n<answer>C</answer>", "C"),
        ("<think>(A) looks wrong, maybe B.</think>\nThe answer is C.", "C"),
        ("The answer is most likely B, since it falls.", "B"),
        ("C, because water boils.", "C"),
        ("We choose 9 as the first digit. Our selection is option C. #### C", "C"),
        ("There are 3 steps. Step 1: select 2 beakers. The option is C.", "C"),
        (r"The area is \boxed{36}, therefore the answer is (C).", "C"),
        (r"\boxed{\text{Option C}}", "C"),
        ('{"answer": "C"}', "C"),
        ("The answer is C<|im_end|>", "C"),
        ("[C]", "C"),
        ("=> D", "D"),
        ("D it is.", "D"),
        ("I would go with option b.", "B"),
        ("A, B and D are physical changes. The only chemical change is C.", "C"),
        ("The most likely diagnosis is A. hypotonic dysfunction.", "A"),
        ("Option A is the best choice. Options B, C and D all change the mass.", "A"),
        ("(A) incorrect (B) incorrect (C) correct (D) incorrect", "C"),
        ("A. ❌\nB. ❌\nC. ✅\nD. ❌", "C"),
        ("While option (A) seems plausible, option (C) is more accurate.", "C"),
    ],
)
def test_choices_as_models_write_them(text: str, label: str) -> None:
    assert extract_choice(text) == label


@pytest.mark.parametrize(
    "text",
    [
        "The answer is not A.",
        "A is not the answer.",
        "(A) is not correct.",
        "It isn't A.",
        "I would not choose A.",
        "The answer cannot be D.",
        "None of the options A, B, C, D is correct.",
    ],
)
def test_an_option_that_is_denied_is_not_chosen(text: str) -> None:
    assert extract_choice(text) is None


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{A, B, C, D}",
        r"\boxed{\text{A or B}}",
        "The answer is A, B, C, or D.",
        "The answers are (A), (B), (C) and (D).",
        "The answer could be A or B; I cannot decide.",
        "If the block sinks, the answer is A. If it floats, the answer is B. I cannot tell which.",
        "(A) solid (B) liquid (C) gas (D) plasma",
        "A) solid\nB) liquid\nC) gas\nD) plasma",
        "What is ice?\n(A) solid (B) liquid (C) gas (D) plasma\nAnswer:",
        r"\boxed{\text{None of these}} although (B) is close.",
    ],
)
def test_several_options_are_no_choice(text: str) -> None:
    assert extract_choice(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the answer is a number",
        "the answer is 3.5 metres",
        "A or B",
        "(none)",
        "The answer is A dog",
        "The answer is water",
        "f(2) is 4 apples",
        "A. red\nB. blue",
        "I don't know",
        "vitamins",
        "What is it?",
    ],
)
def test_text_without_a_label_has_no_choice(text: str) -> None:
    assert extract_choice(text) is None


def test_the_text_of_an_option_is_not_its_label_and_letters_are_not_digits() -> None:
    assert verify("choice", "The answer is water.", "C").correct is False
    assert verify("choice", "The answer is (C).", "3").correct is False
    assert verify("choice", "The answer is (3).", "3").correct


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "*",
        " ",
        "\n",
        "{",
        "$",
        "A",
        "A ",
        "A. ",
        "(A) ",
        "A) ",
        "A)*",
        "answer ",
        "answer is ",
        "answer is the ",
        "answer:",
        "option choice ",
        "choose the ",
        "\\boxed{",
        "\\text{",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    start = time.process_time()
    extract_choice(piece * (10**6 // len(piece)))
    assert time.process_time() - start < 10


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
