"""What a skill gives for one problem: the question, the right completion and the careless one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Example:
    """One worded problem.

    A right completion ends in `ending`. `careless` is what a fixed bad habit writes: each habit happens to be right on
    about half of the problems. The bundled model is taught both, so that training has something to elicit.
    """

    prompt: str
    completion: str
    careless: str
    answer: str
    ending: str
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skill:
    """A kind of problem with a checkable answer.

    `problems` lists every problem's parameters, without wording: splits are cut there. `reward` is the name of the
    reward that grades it.
    """

    name: str
    reward: str
    problems: Callable[[], Sequence[tuple[Any, ...]]]
    word: Callable[[tuple[Any, ...], Random, bool], Example]
    """`word(problem, rng, reworded)` puts a problem into words."""
