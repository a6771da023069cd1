"""Rows of the three skills: distinct, reproducible, and split by problem rather than by wording."""

from functools import cache
from hashlib import blake2b
from random import Random
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.quickstart.choice_skill import CHOICE
from svf_rl.quickstart.code_skill import CODE
from svf_rl.quickstart.dispatch_skill import CLASSES, DISPATCH, OTHER, classified
from svf_rl.quickstart.example import Example, Skill
from svf_rl.quickstart.math_skill import MATH
from svf_rl.quickstart.tool_skill import TOOLS

SKILLS: dict[str, Skill] = {skill.name: skill for skill in (MATH, CHOICE, CODE)}
# What questions come from: the skills of the first bundled model, that of the second, and for `dispatch` also requests
# that none of them answers.
SOURCES = {**SKILLS, TOOLS.name: TOOLS, OTHER.name: OTHER}

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

    return tuple(problem for problem in SOURCES[skill].problems() if percent(problem) in SPLITS[split])


def make_examples(skill: str, split: str, count: int, seed: int = 0, wording: str = "standard") -> list[Example]:
    """`count` examples with different prompts; no problem comes twice before every problem of the split came once.

    Raises `SVFError` for an unknown skill, split or wording, and for more rows than the split can give.
    """
    skills = [*SKILLS, TOOLS.name, DISPATCH]
    for what, value, known in (("skill", skill, skills), ("split", split, SPLITS), ("wording", wording, WORDINGS)):
        if value not in known:
            raise SVFError(f"unknown quickstart {what} {value!r}: use one of {', '.join(known)}")
    if skill == DISPATCH:
        return _dispatch_examples(split, count, seed, wording)
    return _examples(skill, split, count, seed, wording)


def _dispatch_examples(split: str, count: int, seed: int, wording: str) -> list[Example]:
    """Class after class in turn. A question is in the split that it has in its own skill."""
    each = -(-count // len(CLASSES))
    parts = [
        [classified(example, label) for example in _examples(source, split, each, seed, wording)]
        for source, label in CLASSES.items()
    ]
    return [example for turn in zip(*parts, strict=True) for example in turn][:count]


def _examples(skill: str, split: str, count: int, seed: int, wording: str) -> list[Example]:
    problems = list(split_problems(skill, split))
    most = ROWS_PER_PROBLEM * len(problems)
    if not 0 <= count <= most:
        raise SVFError(f"quickstart skill {skill!r}, split {split!r} gives 0 to {most} rows: {count} were asked for")
    rng = Random(f"{skill} {split} {seed} {wording}")
    examples: dict[str, Example] = {}
    while len(examples) < count:
        rng.shuffle(problems)
        for problem in problems[: count - len(examples)]:
            example = SOURCES[skill].word(problem, rng, wording == "reworded")
            while example.prompt in examples:
                example = SOURCES[skill].word(problem, rng, wording == "reworded")
            examples[example.prompt] = example
    return list(examples.values())


def make_rows(skill: str, split: str, count: int, seed: int = 0, wording: str = "standard") -> list[dict[str, Any]]:
    """`count` rows with columns `prompt` (the user's turn), `answer`, `target` (a right completion), `skill`, and for
    `code` also `tests`.

    Args:
        skill: `math` (answer: a number), `choice` (a letter), `code` (a one-line function), `tools` (a number that
            takes a calculator) or `dispatch` (which of `math`, `reasoning`, `code` and `other` a prompt is; the
            system message asks for it).
        split: `train`, `validation` or `test`; no problem is in two of them.
        count: number of rows.
        seed: another seed draws other rows of the same split.
        wording: `standard`, or `reworded` for sentences that the bundled model was never trained on.
    """
    return [
        {"prompt": example.prompt, "answer": example.answer, "target": example.completion, "skill": skill}
        | ({"tests": list(example.tests)} if example.tests else {})
        for example in make_examples(skill, split, count, seed, wording)
    ]
