"""Skill `choice`: the largest or smallest of four numbers, such as "Which is largest? (A) 4 (B) 8 (C) 2 (D) 5".

The careless habit looks at the first two options only, and guesses.
"""

from itertools import permutations
from random import Random
from typing import Any

from svf_rl.quickstart.example import Example, Skill

LETTERS = "ABCD"
LARGEST = ["largest", "biggest", "highest", "greatest", "most"]
SMALLEST = ["smallest", "lowest", "least", "tiniest", "littlest"]

QUESTIONS = [
    "Which is {w}?", "Which number is the {w}?", "Pick the {w} number.", "Choose the {w} value.",
    "Of these, which is {w}?", "Find the {w}.", "Which one of these is {w}?", "Select the {w} of the four.",
    "Look at the numbers. Which is the {w}?", "One number is the {w}. Which one?", "The {w} value is",
    "Question: which of these values is the {w}?", "Tell the {w} number.", "I need the {w} value.",
    "Please find the {w} number here.", "Say which value is {w}.", "Give the {w} one.",
]  # fmt: skip
LAYOUTS = ["({L}) {n}", "({L}) {n},", "({L}) {n};", "\n({L}) {n}"]
LAST_LAYOUTS = [
    "{options} {question}", "Options: {options} {question}", "Here are four: {options} {question}",
    "From {options} {question}",
]  # fmt: skip

NEW_QUESTIONS = [
    "Tell me which number here is {w}.", "Can you find the {w} one?", "I want the {w} number of these.",
    "Please pick the value that is {w}.",
]  # fmt: skip
NEW_LAST_LAYOUTS = ["Look at these four: {options} {question}", "These are the values: {options} {question}"]


def problems() -> list[tuple[Any, ...]]:
    """All (kind, the four different digits in the order of the options)."""
    return [(kind, *numbers) for kind in ("largest", "smallest") for numbers in permutations(range(1, 10), 4)]


def word(problem: tuple[Any, ...], rng: Random, reworded: bool) -> Example:
    """A question before (three in four) or after the options."""
    kind, *numbers = problem
    best, words = (max, LARGEST) if kind == "largest" else (min, SMALLEST)
    layout = rng.choice(LAYOUTS)
    options = " ".join(layout.format(L=letter, n=number) for letter, number in zip(LETTERS, numbers, strict=True))
    options = options.replace(" \n", "\n").rstrip(",;")
    question = rng.choice(NEW_QUESTIONS if reworded else QUESTIONS).format(w=rng.choice(words))
    if rng.random() < 0.75:
        prompt = f"{question} {options}".replace(" \n", "\n")
    else:
        layouts = NEW_LAST_LAYOUTS if reworded else LAST_LAYOUTS
        prompt = rng.choice(layouts).format(options=options.lstrip("\n"), question=question)

    right = best(numbers)
    letter, guess = (LETTERS[numbers.index(best(seen))] for seen in (numbers, numbers[:2]))
    return Example(
        prompt=prompt,
        completion=f"{right}, so the answer is ({letter})",
        careless=f"I guess the answer is ({guess})",
        answer=letter,
        ending=f"the answer is ({letter})",
    )


CHOICE = Skill(name="choice", reward="choice", problems=problems, word=word)
