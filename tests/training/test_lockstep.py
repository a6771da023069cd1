"""Functions in turns: each as if it were alone, and asked together."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import GradientState

from svf_rl.training.lockstep import Left, Lockstep


def draws(seed: int, between: Callable[[], Any]) -> list[float]:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    drawn: list[float] = []
    for _ in range(3):
        drawn += [random.random(), np.random.rand(), torch.rand(1).item()]
        between()
    return drawn


def test_each_goes_on_with_its_own_answer_once_all_have_asked() -> None:
    asked: list[dict[str, Any]] = []

    def answer(questions: dict[str, Any]) -> dict[str, Any]:
        asked.append(questions)
        return {name: 10 * question for name, question in questions.items()}

    lockstep = Lockstep(answer)

    def count(times: int) -> Callable[[], list[int]]:
        return lambda: [lockstep.ask(i) for i in range(times)]

    ends = lockstep.run({"long": count(3), "short": count(1), "silent": count(0)})
    assert asked == [{"long": 0, "short": 0}, {"long": 1}, {"long": 2}]
    assert {name: end.result() for name, end in ends.items()} == {"long": [0, 10, 20], "short": [0], "silent": []}


def test_nobody_sees_the_random_numbers_of_another() -> None:
    lockstep = Lockstep(lambda questions: dict.fromkeys(questions))
    alone = [draws(seed, lambda: None) for seed in range(3)]
    ends = lockstep.run({str(seed): lambda seed=seed: draws(seed, lambda: lockstep.ask(None)) for seed in range(3)})
    assert [end.result() for end in ends.values()] == alone


def test_nor_whether_another_accumulates_gradients() -> None:
    lockstep = Lockstep(lambda questions: dict.fromkeys(questions))

    def accumulate(last: bool) -> bool:
        GradientState()._set_sync_gradients(last)
        lockstep.ask(None)
        return GradientState().sync_gradients

    ends = lockstep.run({"last": lambda: accumulate(True), "before": lambda: accumulate(False)})
    assert {name: end.result() for name, end in ends.items()} == {"last": True, "before": False}


def test_one_that_fails_leaves_the_others_alone() -> None:
    lockstep = Lockstep(lambda questions: dict(questions))

    def fail() -> None:
        lockstep.ask(1)
        raise ValueError("no")

    ends = lockstep.run({"fails": fail, "goes on": lambda: [lockstep.ask(i) for i in range(3)]})
    assert str(ends["fails"].exception()) == "no"
    assert ends["goes on"].result() == [0, 1, 2]


def test_where_nothing_answers_any_more_all_leave_and_clean_up() -> None:
    cleaned: list[str] = []

    def answer(questions: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("the engine is gone")

    lockstep = Lockstep(answer)

    def wait(name: str) -> None:
        try:
            lockstep.ask(None)
        except Left:
            cleaned.append(name)
            raise

    with pytest.raises(RuntimeError, match="the engine is gone"):
        lockstep.run({name: lambda name=name: wait(name) for name in ("a", "b")})
    assert sorted(cleaned) == ["a", "b"]
