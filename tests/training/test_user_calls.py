"""The threads of a user's code: what ends them, what they leave behind, and what environments draw there."""

import asyncio
import math
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from episode_parts import playing, questions

from svf_rl.episodes.environments import checked_factories
from svf_rl.episodes.user_calls import UserCalls

__all__ = ["playing"]

Make = Callable[..., Any]


async def leaves() -> None:
    sys.exit(3)


async def stays() -> int:
    await asyncio.sleep(0.05)
    return 5


def test_a_coroutine_cannot_end_the_loop_of_the_others() -> None:
    calls, start = UserCalls(5), time.monotonic()
    left, stayed = calls.gather([leaves(), stays()])
    assert str(left) == "SystemExit(3)"
    assert stayed == 5
    assert calls.gather([stays()]) == [5]
    assert time.monotonic() - start < 5


async def keeps_the_loop() -> None:
    time.sleep(60)


def test_a_coroutine_that_keeps_the_loop_costs_its_own_result_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have ended are heard, those that have not begun are run in another loop."""
    monkeypatch.setattr("svf_rl.episodes.user_calls._SLACK_SECONDS", 0.2)

    async def at_once() -> int:
        return 4

    before, kept, after, again = UserCalls(1).gather([at_once(), keeps_the_loop(), stays(), stays()])
    assert str(kept) == "did not end within 1 seconds"
    assert (before, after, again) == (4, 5, 5)


def test_coroutines_that_keep_the_loop_for_a_while_have_the_time_limit_each() -> None:
    async def slow(number: int) -> int:
        time.sleep(0.2)
        return number

    assert UserCalls(0.3).gather([slow(i) for i in range(6)]) == list(range(6))


def test_coroutines_share_a_loop_from_call_to_call() -> None:
    """A client of a service, or a limit on calls at a time, belongs to the loop in which it was first waited for."""
    one_at_a_time = asyncio.Semaphore(1)

    async def waits() -> int:
        async with one_at_a_time:
            return await stays()

    calls = UserCalls(5)
    for _ in range(2):
        assert calls.gather([waits(), waits()]) == [5, 5]


@pytest.mark.parametrize("seconds", [1e10, math.inf])
def test_a_time_limit_may_be_as_long_as_one_likes(seconds: float) -> None:
    calls = UserCalls(seconds)
    assert calls.call(lambda: 5) == 5
    assert calls.gather([stays()]) == [5]


class Store:
    """Keeps what belongs to the thread in which it was made."""

    made = 0

    def __init__(self) -> None:
        self.base = sqlite3.connect(":memory:")
        Store.made += 1

    def reset(self, **_: Any) -> None:
        pass

    def look(self) -> str:
        """Look."""
        return str(self.base.execute("select 5").fetchone()[0])


def busy() -> str:
    """Never ends."""
    while True:
        pass


def test_environments_are_made_again_in_the_thread_that_follows(playing: Make) -> None:
    made = playing([busy], Store, seconds=0.3)
    looked = {"role": "tool", "name": "look", "content": "5"}
    assert made.play(questions(2), "@look {}", "well").completions[1][1] == looked
    assert "did not end" in made.play(questions(1), "@busy {}", "well").completions[0][1]["content"]
    assert made.play(questions(2), "@look {}", "well").completions[1][1] == looked
    assert Store.made == 4


class Luck:
    def __init__(self) -> None:
        self.luck = random.random()

    def reset(self, **_: Any) -> None:
        pass


def test_what_an_environment_draws_when_it_is_made_is_its_own(playing: Make) -> None:
    """It does not matter when it is made: a run that resumes makes all of them in its first step."""

    def lucks(*counts: int, seed: int = 0) -> list[float]:
        made = playing([busy], Luck, seed=seed)
        for count in counts:
            random.seed(count)
            made.play(questions(count), "well")
            assert random.random() == random.Random(count).random()
        return [one.luck for one in made.episodes.environments.current]

    assert lucks(3) == lucks(2, 1, 3)
    assert len(set(lucks(3) + lucks(3, seed=1))) == 6
    ours, theirs = (checked_factories(Luck, UserCalls(5), 0, process) for process in (0, 1))
    assert ours().luck == ours().luck != theirs().luck
