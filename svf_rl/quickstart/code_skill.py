"""Skill `code`: a one-line function of two steps, such as "Write g(x): add 2, then times 3."

Every problem has one spelling that counts, `def g(x): return (x + 2) * 3`, with brackets only where they are needed,
so that comparing text grades it; the tests grade any spelling. The careless habit leaves the brackets out.
"""

from random import Random
from typing import Any

from svf_rl.quickstart.example import Example, Skill

FUNCTIONS = "fghpqr"
PHRASES = {
    "+": ["add {}", "plus {}", "increase by {}", "add on {}"],
    "-": ["subtract {}", "minus {}", "decrease by {}", "take away {}"],
    "*": ["times {}", "multiply by {}", "scale by {}"],
}
# Each problem has one multiplication: half of them then need brackets.
OPERATORS = [("+", "*"), ("-", "*"), ("*", "+"), ("*", "-")]
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

FRAMES = [
    "Write {f}(x): {p1}, then {p2}.", "Define {f}(x): {p1}, then {p2}.", "Make a function {f} of x: {p1} and {p2}.",
    "{f}(x) should {p1} and then {p2}. Write it.", "Python function {f}(x): first {p1}, next {p2}.",
    "Steps: {p1}; {p2}. Write {f}(x).", "Write code for {f}. Take x, {p1}, and then {p2}.",
    "Code {f}(x). First {p1}. Then {p2}.", "In Python, {f} takes x. {p1}, then {p2}.",
    "Task: {p1}, after that {p2}. Name the function {f}.", "Write a function {f} of x. {p1}. Then {p2}.",
    "For x, {p1}, next {p2}. Call it {f}.", "Please code {f}(x): {p1}, later {p2}.", "{f}(x): {p1}, {p2}.",
    "I want {f}(x): {p1}, then {p2}.", "With x, {p1} and last {p2}: {f}(x).", "To x {p1}; and {p2}. This is {f}.",
]  # fmt: skip
NEW_FRAMES = [
    "Please write a function {f}: {p1}, and after that {p2}.", "I need {f}(x) to {p1}, next {p2}.",
    "Can you code {f}? Take x and {p1}; then {p2}.", "Given x, {p1}. Next {p2}. Define {f}(x) so.",
]  # fmt: skip


def problems() -> list[tuple[Any, ...]]:
    """All (first operator, its number, second operator, its number); the function's name is wording."""
    return [(one, m, two, n) for one, two in OPERATORS for m in range(2, 26) for n in range(2, 26)]


def word(problem: tuple[Any, ...], rng: Random, reworded: bool) -> Example:
    """A request for one function."""
    one, m, two, n = problem
    function = rng.choice(FUNCTIONS)
    prompt = rng.choice(NEW_FRAMES if reworded else FRAMES).format(
        f=function, p1=rng.choice(PHRASES[one]).format(m), p2=rng.choice(PHRASES[two]).format(n)
    )
    head = f"def {function}(x): return "
    careless = f"{head}x {one} {m} {two} {n}"
    code = f"{head}(x {one} {m}) {two} {n}" if two == "*" else careless
    # computed step by step rather than from the text of the solution
    tests = tuple(f"assert {function}({x}) == {APPLY[two](APPLY[one](x, m), n)}" for x in (0, 1, 2, 7, -5))
    return Example(prompt=prompt, completion=code, careless=careless, answer=code, ending=code, tests=tests)


CODE = Skill(name="code", reward="exact_match", problems=problems, word=word)
