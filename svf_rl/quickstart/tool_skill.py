"""Skill `tools`: sums, differences and products that the bundled models cannot work out, and a calculator to ask.

A right answer calls [`calc`] and repeats what it says. The careless habit asks it for products alone, and answers sums
and differences with a guess: it is right on about half of the problems.
"""

from random import Random
from typing import Any

from svf_rl.quickstart.example import Example, Skill

SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
FORMS = {
    "+": ("{a} plus {b}", "{a} + {b}", "the sum of {a} and {b}", "{a} and {b} together"),
    "-": ("{a} minus {b}", "{a} - {b}", "{a} less {b}", "the difference of {a} and {b}"),
    "*": ("{a} times {b}", "{a} * {b}", "the product of {a} and {b}", "{a} multiplied by {b}"),
}
FRAMES = ("What is {}?", "Compute {}.", "Tell me {}.", "How much is {}?", "Say what {} is.", "Please work out {}.")
NEW_FRAMES = ("So {} is?", "I would like to know {}.", "Could you find {}?")


def calc(sum: str) -> str:
    """
    Work out a sum, a difference or a product.

    Args:
        sum: Such as 12*34.
    """
    sign = next((sign for sign in SIGNS if sign in sum), None)
    if sign is None:
        raise ValueError("write two numbers with +, - or * between them")
    first, _, second = sum.partition(sign)
    return str(SIGNS[sign](int(first), int(second)))


def problems() -> list[tuple[Any, ...]]:
    """All (first number, sign, second number) of two digits, half of them products."""
    pairs = [(a, b) for a in range(11, 100) for b in range(11, a)]
    return [(a, sign, b) for i, (a, b) in enumerate(pairs) for sign in ("+-"[i % 2], "*")]


def word(problem: tuple[Any, ...], rng: Random, reworded: bool) -> Example:
    """A question. The completion is the last turn, and `careless` what is written in its place without a call."""
    a, sign, b = problem
    asked = rng.choice(FORMS[sign]).format(a=a, b=b)
    answer = str(SIGNS[sign](a, b))
    return Example(
        prompt=rng.choice(NEW_FRAMES if reworded else FRAMES).format(asked),
        completion=f"#### {answer}",
        careless=f"#### {rng.randint(10, 199)}",
        answer=answer,
        ending=f"#### {answer}",
    )


TOOLS = Skill(name="tools", reward="numeric", problems=problems, word=word)
