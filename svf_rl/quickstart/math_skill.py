"""Skill `math`: a count that changes twice, such as "Tom has 6 eggs, sells 4, then buys 5 more. How many?"

The careless habit always adds at the second step.
"""

from random import Random
from typing import Any

from svf_rl.quickstart.example import Example, Skill

NAMES = ("Tom Ann Ben Eva Sam Mia Leo Zoe Max Ida Tim Amy Dan Joy Ray Kim Bob Sue Ali Meg Jon Liz Gus Pam").split()
NEW_NAMES = "Otto Nora Hugo Lena Ravi Tess".split()
THINGS = (
    "eggs pens cups books coins cards stamps apples shells cakes keys bags nuts pears balls hats rings toys beads plums"
).split()
NEW_THINGS = "lemons stones boats spoons ropes tickets".split()

# (present, past) forms of what makes the count go up or down.
GAINS = [
    ("buys", "bought"), ("finds", "found"), ("gets", "got"), ("wins", "won"), ("collects", "collected"),
    ("receives", "received"), ("picks up", "picked up"), ("earns", "earned"),
]  # fmt: skip
LOSSES = [
    ("sells", "sold"), ("loses", "lost"), ("gives away", "gave away"), ("eats", "ate"), ("uses", "used"),
    ("drops", "dropped"), ("breaks", "broke"), ("throws away", "threw away"),
]  # fmt: skip
PLUS = ["add {}", "plus {}", "increase by {}", "add on {}"]
MINUS = ["subtract {}", "minus {}", "decrease by {}", "take away {}"]

OPENINGS = [
    [
        "{N} has {a} {o}", "{N} starts with {a} {o}", "{N} owns {a} {o}", "There are {a} {o} and {N}",
        "With {a} {o} in a box, {N}", "Today {N} has {a} {o}", "Here {N} has {a} {o}",
    ],
    [
        "{N} had {a} {o}", "{N} began with {a} {o}", "At first {N} had {a} {o}", "In the morning {N} had {a} {o}",
        "There were {a} {o} and {N}", "Long ago {N} had {a} {o}", "One day {N} had {a} {o}",
    ],
]  # fmt: skip
STORIES = [
    "{open}, {e1}, then {e2}.", "{open}, {e1} and {e2}.", "{open}. {N} {e1}. Then {N} {e2}.",
    "{open}, {e1} and later {e2}.", "{open}. After that {N} {e1}, and then {e2}.", "{open}. {N} {e1} and {e2}.",
    "{open}; later {N} {e1}; then {N} {e2}.", "{open}. Next, {N} {e1}. Later, {N} {e2}.",
    "{open}. {N} {e1}. {N} {e2}.",
]  # fmt: skip
# The start may also come last.
LATE_STARTS = [
    ["{N} {e1} and then {e2}, starting from {a} {o}.", "{N} {e1}, then {e2}. The start was {a} {o}."],
    ["{N} {e1} and then {e2}, having started with {a} {o}.", "{N} {e1}, then {e2}. At first it was {a} {o}."],
]
QUESTIONS = [
    "How many {o} now?", "How many {o} are left?", "How many {o} does {N} have?", "How many?", "What is the total?",
    "Count the {o}.", "How many {o} at the end?", "Say how many {o} there are.", "What number of {o} is left?",
]  # fmt: skip
SUMS = [
    "Start at {a}, {s1}, then {s2}.", "Take {a}, {s1} and {s2}.", "What is {a} {t1} {t2}?", "Compute {a} {t1} {t2}.",
    "Begin with {a}. First {s1}. Then {s2}. What is the result?", "How much is {a} {t1} {t2}?", "{a} {t1} {t2} is?",
    "Please work out {a} {t1} {t2}.", "{a}, {s1}, {s2}.",
]  # fmt: skip

NEW_OPENINGS = [
    ["Now {N} keeps {a} {o}", "We see that {N} has {a} {o}"],
    ["Last week {N} had {a} {o}", "We know {N} had {a} {o}"],
]
NEW_STORIES = [
    "{open}; next {N} {e1}; at last {N} {e2}.", "{open}. One day {N} {e1}. One day later {N} {e2}.",
    "{open} but {e1}, and after that {e2}.",
]  # fmt: skip
NEW_QUESTIONS = ["Tell me how many {o} {N} has.", "So how many {o} is that?", "What is the count of {o} now?"]
NEW_SUMS = ["Please take {a}, then {s1}, and at last {s2}.", "How much is {a} {t1} {t2} in total?"]


def problems() -> list[tuple[Any, ...]]:
    """All (start, first change, second change); the count never goes below zero."""
    changes = [change for change in range(-9, 10) if change]
    return [
        (start, first, second)
        for start in range(1, 10)
        for first in changes
        for second in changes
        if start + first >= 0 and start + first + second >= 0
    ]


def steps(start: int, first: int, second: int) -> str:
    """The worked completion, such as "6-4=2, 2+5=7 #### 7"."""
    middle, end = start + first, start + first + second
    return f"{start}{first:+d}={middle}, {middle}{second:+d}={end} #### {end}"


def _event(change: int, past: int, thing: str, rng: Random) -> str:
    verb = rng.choice(GAINS if change > 0 else LOSSES)[past]
    tail = rng.choice(["", "", " more" if change > 0 else "", f" {thing}"])
    return f"{verb} {abs(change)}{tail}"


def _story(problem: tuple[Any, ...], rng: Random, reworded: bool) -> str:
    start, first, second = problem
    past = rng.randrange(2)
    thing = rng.choice(NEW_THINGS if reworded else THINGS)
    slots = {
        "N": rng.choice(NEW_NAMES if reworded else NAMES),
        "o": thing,
        "a": start,
        "e1": _event(first, past, thing, rng),
        "e2": _event(second, past, thing, rng),
    }
    if not reworded and rng.random() < 0.15:
        story = rng.choice(LATE_STARTS[past])
    else:
        opening = rng.choice((NEW_OPENINGS if reworded else OPENINGS)[past])
        shapes = NEW_STORIES if reworded else STORIES
        # "With 6 eggs in a box, Tom sells 4": such an opening runs on into its first event.
        if opening.endswith("{N}"):
            story = opening + rng.choice([" {e1}, then {e2}.", " {e1} and {e2}.", " {e1}. Then {N} {e2}."])
        else:
            story = rng.choice(shapes).replace("{open}", opening)
    question = rng.choice(NEW_QUESTIONS if reworded else QUESTIONS)
    parts = [question, story] if rng.random() < 0.2 else [story, question]
    return " ".join(parts).format(**slots)


def _sum(problem: tuple[Any, ...], rng: Random, reworded: bool) -> str:
    start, first, second = problem

    def spoken(change: int) -> str:
        return rng.choice(PLUS if change > 0 else MINUS).format(abs(change))

    def written(change: int) -> str:
        return f"{'+' if change > 0 else '-'} {abs(change)}"

    return rng.choice(NEW_SUMS if reworded else SUMS).format(
        a=start, s1=spoken(first), s2=spoken(second), t1=written(first), t2=written(second)
    )


def word(problem: tuple[Any, ...], rng: Random, reworded: bool) -> Example:
    """A small story, or (one in five) a bare sum."""
    start, first, second = problem
    prompt = (_sum if rng.random() < 0.2 else _story)(problem, rng, reworded)
    return Example(
        prompt=prompt,
        completion=steps(start, first, second),
        careless=steps(start, first, abs(second)),
        answer=str(start + first + second),
        ending=f" #### {start + first + second}",
    )


MATH = Skill(name="math", reward="numeric", problems=problems, word=word)
