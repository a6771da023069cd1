"""The skills: right answers, splits that share no problem, rows that come out the same everywhere."""

import json
import os
import re
import subprocess
import sys
from random import Random

import pytest

from svf_rl.errors import SVFError
from svf_rl.quickstart import SKILLS, make_rows
from svf_rl.quickstart.math_skill import GAINS, LOSSES
from svf_rl.quickstart.skills import SPLITS, make_examples, split_problems

ALL = sorted(SKILLS)
GAIN_WORDS = [form for pair in GAINS for form in pair] + ["add on", "add", "plus", "increase by", "+"]
LOSS_WORDS = [form for pair in LOSSES for form in pair] + ["subtract", "minus", "decrease by", "take away", "-"]


def solve_math(prompt: str) -> int:
    """Reads the question by itself: each number, and the word of gain or loss right before it, if any."""
    words = "|".join(re.escape(word) for word in sorted(GAIN_WORDS + LOSS_WORDS, key=len, reverse=True))
    total = 0
    for word, number in re.findall(rf"(?:({words}) )?(\d+)", prompt, flags=re.IGNORECASE):
        total += -int(number) if word.lower() in LOSS_WORDS else int(number)
    return total


@pytest.mark.parametrize("wording", ["standard", "reworded"])
def test_math_answers_are_what_the_question_says(wording: str) -> None:
    for row in make_rows("math", "test", 500, wording=wording):
        assert row["answer"] == str(solve_math(row["prompt"])), row


@pytest.mark.parametrize("wording", ["standard", "reworded"])
def test_choice_answers_are_what_the_question_says(wording: str) -> None:
    small = ["smallest", "lowest", "least", "tiniest", "littlest"]
    for row in make_rows("choice", "test", 500, wording=wording):
        options = {letter: int(number) for letter, number in re.findall(r"\(([A-D])\) (\d+)", row["prompt"])}
        assert len(set(options.values())) == 4
        best = min if any(word in row["prompt"] for word in small) else max
        assert options[row["answer"]] == best(options.values()), row


@pytest.mark.parametrize("wording", ["standard", "reworded"])
def test_code_answers_pass_their_tests_and_the_careless_ones_do_not(wording: str) -> None:
    for example in make_examples("code", "test", 300, wording=wording):
        for text in {example.completion, example.careless}:
            names: dict[str, object] = {}
            exec(text, names)
            passed = []
            for test in example.tests:
                function, argument, expected = re.fullmatch(r"assert (\w)\((-?\d+)\) == (-?\d+)", test).groups()
                passed.append(names[function](int(argument)) == int(expected))
            assert all(passed) == (text == example.completion), example


@pytest.mark.parametrize("skill", ALL)
def test_completions_end_in_the_answer(skill: str) -> None:
    endings = {"math": " #### {}", "choice": "the answer is ({})", "code": "{}"}
    for example in make_examples(skill, "train", 100):
        assert example.ending == endings[skill].format(example.answer)
        assert example.completion.endswith(example.ending)


@pytest.mark.parametrize("skill", ALL)
def test_the_careless_habit_is_right_about_half_the_time(skill: str) -> None:
    examples = make_examples(skill, "test", 500)
    right = sum(example.careless.endswith(example.ending) for example in examples) / len(examples)
    assert 0.42 < right < 0.62


@pytest.mark.parametrize("skill", ALL)
def test_splits_share_no_problem_and_leave_none_out(skill: str) -> None:
    parts = {split: set(split_problems(skill, split)) for split in SPLITS}
    assert sum(len(part) for part in parts.values()) == len(set().union(*parts.values()))
    assert set().union(*parts.values()) == set(SKILLS[skill].problems())
    assert all(len(part) > 150 for part in parts.values())


@pytest.mark.parametrize("skill", ALL)
@pytest.mark.parametrize("wording", ["standard", "reworded"])
def test_rows_are_distinct_and_prompts_do_not_cross_splits(skill: str, wording: str) -> None:
    prompts = {split: [row["prompt"] for row in make_rows(skill, split, 600, wording=wording)] for split in SPLITS}
    for rows in prompts.values():
        assert len(set(rows)) == 600
    assert len({prompt for rows in prompts.values() for prompt in rows}) == 600 * len(SPLITS)


@pytest.mark.parametrize("skill", ALL)
def test_the_largest_count_on_offer_can_be_had(skill: str) -> None:
    most = 4 * len(split_problems(skill, "validation"))
    rows = make_rows(skill, "validation", most, wording="reworded")
    assert len({row["prompt"] for row in rows}) == most


@pytest.mark.parametrize("skill", ALL)
def test_reworded_rows_use_sentences_of_their_own(skill: str) -> None:
    """Numbers and single letters apart, no reworded sentence occurs in the standard wording."""

    def shape(prompt: str) -> str:
        return re.sub(r"\d+|\b[A-Za-z]\b", "_", prompt)

    standard = {shape(row["prompt"]) for row in make_rows(skill, "train", 3000)}
    reworded = {shape(row["prompt"]) for row in make_rows(skill, "test", 500, wording="reworded")}
    assert not standard & reworded


def test_columns() -> None:
    assert make_rows("math", "train", 1)[0].keys() == {"prompt", "answer", "target", "skill"}
    row = make_rows("code", "train", 1)[0]
    assert row.keys() == {"prompt", "answer", "target", "skill", "tests"}
    assert all(test.startswith("assert ") for test in row["tests"])


def test_seeds_differ_and_a_longer_call_begins_like_a_shorter_one() -> None:
    assert make_rows("math", "train", 50, seed=1) != make_rows("math", "train", 50, seed=2)
    assert make_rows("math", "train", 50) == make_rows("math", "train", 80)[:50]


def test_fresh_processes_agree_whatever_their_hash_seed_and_import_no_torch() -> None:
    program = (
        "import json, sys; from svf_rl.quickstart import SKILLS, make_rows\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([make_rows(s, 'test', 40, seed=3) for s in sorted(SKILLS)]))"
    )
    for hash_seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        output = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(output.stdout) == [make_rows(skill, "test", 40, seed=3) for skill in ALL]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("poetry", "train", 1), "unknown quickstart skill 'poetry': use one of math, choice, code"),
        (("math", "dev", 1), "unknown quickstart split 'dev': use one of train, validation, test"),
        (("math", "train", 1, 0, "odd"), "unknown quickstart wording 'odd': use one of standard, reworded"),
        (("code", "test", 10**6), r"gives 0 to \d+ rows: 1000000 were asked for"),
        (("code", "test", -1), r"gives 0 to \d+ rows: -1 were asked for"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments: tuple, message: str) -> None:
    with pytest.raises(SVFError, match=message) as caught:
        make_rows(*arguments)
    assert "\n" not in str(caught.value)


def test_wording_uses_no_global_randomness() -> None:
    skill = SKILLS["math"]
    problem = skill.problems()[0]
    assert skill.word(problem, Random(5), False) == skill.word(problem, Random(5), False)
