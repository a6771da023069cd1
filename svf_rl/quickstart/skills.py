"""Rows of the three skills: distinct, reproducible, and split by problem rather than by wording."""

from functools import cache
from hashlib import blake2b
from random import Random
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.quickstart.choice_skill import CHOICE
from svf_rl.quickstart.code_skill import CODE
from svf_rl.quickstart.example import Example, Skill
from svf_rl.quickstart.math_skill import MATH

SKILLS: dict[str, Skill] = {skill.name: skill for skill in (MATH, CHOICE, CODE)}

# Percent of the problems in each split.
SPLITS = {"train": range(0, 70), "validation": range(70, 80), "test": range(80, 100)}
WORDINGS = ("standard", "reworded")
# How often a problem may come back in other words.
ROWS_PER_PROBLEM = 4


@cache
def split_problems(skill: str, split: str) -> tuple[tuple[Any, ...], ...]:
    """The parameters of the problems of one split. A hash of the parameters decides, so splits share none."""

    def percent(problem: tuple[Any, ...]) -> int:
        return int.from_bytes(blake2b(repr((skill, problem)).encode(), digest_size=8).digest()) % 100

    return tuple(problem for problem in SKILLS[skill].problems() if percent(problem) in SPLITS[split])


def make_examples(skill: str, split: str, count: int, seed: int = 0, wording: str = "standard") -> list[Example]:
    """`count` examples with different prompts; no problem comes twice before every problem of the split came once.

    Raises `SVFError` for an unknown skill, split or wording, and for more rows than the split can give.
    """
    for what, value, known in (("skill", skill, SKILLS), ("split", split, SPLITS), ("wording", wording, WORDINGS)):
        if value not in known:
            raise SVFError(f"unknown quickstart {what} {value!r}: use one of {', '.join(known)}")
    problems = list(split_problems(skill, split))
    most = ROWS_PER_PROBLEM * len(problems)
    if not 0 <= count <= most:
        raise SVFError(f"quickstart skill {skill!r}, split {split!r} gives 0 to {most} rows: {count} were asked for")
    rng = Random(f"{skill} {split} {seed} {wording}")
    examples: dict[str, Example] = {}
    while len(examples) < count:
        rng.shuffle(problems)
        for problem in problems[: count - len(examples)]:
            example = SKILLS[skill].word(problem, rng, wording == "reworded")
            while example.prompt in examples:
                example = SKILLS[skill].word(problem, rng, wording == "reworded")
            examples[example.prompt] = example
    return list(examples.values())


def make_rows(skill: str, split: str, count: int, seed: int = 0, wording: str = "standard") -> list[dict[str, Any]]:
    """`count` rows with columns `prompt` (the user's turn), `answer`, `skill`, and for `code` also `tests`.

    Args:
        skill: `math` (answer: a number), `choice` (a letter) or `code` (a one-line function).
        split: `train`, `validation` or `test`; no problem is in two of them.
        count: number of rows.
        seed: another seed draws other rows of the same split.
        wording: `standard`, or `reworded` for sentences that the bundled model was never trained on.
    """
    rows: list[dict[str, Any]] = []
    for example in make_examples(skill, split, count, seed, wording):
        row: dict[str, Any] = {"prompt": example.prompt, "answer": example.answer, "skill": skill}
        if example.tests:
            row["tests"] = list(example.tests)
        rows.append(row)
    return rows
