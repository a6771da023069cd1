"""What a user's tools and environments do wrong costs a sample, and not the run."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from episode_parts import Counter, Echo, Scripted, acting, add, by_length, questions, saying
from fakes import FakeGenerator, refusal

from svf_rl.errors import Stopped, SVFError
from svf_rl.generation import Completion

__all__ = ["acting"]

Make = Callable[..., Any]


def last_line(trainer: Any) -> dict[str, float]:
    return [line for line in trainer.state.log_history if "reward" in line][-1]


def busy() -> str:
    """Never ends."""
    while True:
        pass


def asleep() -> str:
    """Never ends."""
    time.sleep(60)
    return ""


async def waiting() -> str:
    """Never ends."""
    await asyncio.sleep(60)
    return ""


async def blocking() -> str:
    """Never ends, and lets nothing else run."""
    time.sleep(60)
    return ""


def leaves() -> str:
    """Wants to end everything."""
    raise SystemExit(0)


def wrong() -> str:
    """Is set up wrongly."""
    raise SVFError("install it first")


@pytest.mark.parametrize("tool", [busy, asleep, waiting, blocking], ids=lambda tool: tool.__name__)
def test_a_tool_that_never_ends_is_ended(
    tool: Any, acting: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svf_rl.episodes.user_calls._SLACK_SECONDS", 0.3)
    seen: list[Any] = []

    def reward(completions: Any, **_: Any) -> list[float]:
        seen.extend(completions)
        return by_length(completions)

    generator = saying(tokenizer, f'@{tool.__name__} {{}}@add {{"a": 1, "b": 1}}', "so be it")
    trainer = acting(
        questions(), reward, generator, tools=[tool, add], tool_timeout=0.1, per_device_train_batch_size=2,
        num_generations=2, max_completion_length=80,
    )  # fmt: skip
    trainer.train()
    said = {message["content"] for message in seen[0] if message["role"] == "tool"}
    assert said == {"2", str({"error": f"{tool.__name__} did not end within 0.1 seconds"})}
    assert seen[0][-1] == {"role": "assistant", "content": "so be it"}
    line = last_line(trainer)
    assert line["tools/call_frequency"] == 2
    assert line["tools/failure_frequency"] == line["tools/timeout_frequency"] == 0.5


def test_what_is_left_behind_ends_where_it_can() -> None:
    from svf_rl.episodes.user_calls import TimedOut, UserCalls

    calls, others = UserCalls(0.1), set(threading.enumerate())
    with pytest.raises(TimedOut):
        calls.call(busy)
    thread = next(one for one in threading.enumerate() if one not in others)
    thread.join(5)
    assert not thread.is_alive()
    assert calls.call(lambda: 5) == 5


def test_a_call_that_ends_at_the_last_moment_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from svf_rl.episodes import user_calls

    class AtTheLastMoment(Future[Any]):
        """Is done when the wait for it is over."""

        def result(self, timeout: float | None = None) -> Any:
            value = super().result()
            if timeout is not None:
                raise TimeoutError
            return value

    monkeypatch.setattr(user_calls, "Future", AtTheLastMoment)
    calls = user_calls.UserCalls(60)
    assert calls.call(lambda: 5) == 5
    with pytest.raises(KeyError, match="its own"):
        calls.call(lambda: {}["its own"])
    assert calls.abandoned == 0


def test_calls_share_a_thread(acting: Make, tokenizer: Any) -> None:
    """What belongs to it, such as a connection of sqlite3, can be made in `reset` and used in a tool."""
    threads: set[int] = set()

    class World:
        def __init__(self) -> None:
            threads.add(threading.get_ident())

        def reset(self, **_: Any) -> None:
            threads.add(threading.get_ident())

        def look(self) -> str:
            """Look."""
            threads.add(threading.get_ident())
            return "x"

        def get_reward(self) -> float:
            threads.add(threading.get_ident())
            return 1.0

    acting(questions(), [], saying(tokenizer, "@look {}", "y"), environment_factory=World).train()
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_a_tool_cannot_end_the_run(acting: Make, tokenizer: Any) -> None:
    trainer = acting(questions(), by_length, saying(tokenizer, "@leaves {}", "no"), tools=[leaves])
    trainer.train()
    assert last_line(trainer)["tools/failure_frequency"] == 1


def test_a_tool_that_is_set_up_wrongly_does(acting: Make, tokenizer: Any) -> None:
    trainer = acting(questions(), by_length, saying(tokenizer, "@wrong {}", "no"), tools=[wrong])
    assert refusal(trainer.train) == "install it first"


@pytest.mark.parametrize("world", [{"tools": [add]}, {"environment_factory": Counter}], ids=["tool", "environment"])
def test_a_request_to_stop_is_no_failure(acting: Make, tokenizer: Any, world: Any) -> None:
    trainer = acting(questions(), by_length, saying(tokenizer, '@add {"a": 1, "b": 1}', "2"), **world)

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped("stopped by SIGTERM")

    trainer.user_calls.call = stop
    with pytest.raises(Stopped):
        trainer.train()


class Broken(Counter):
    """Fails on the rows that say where."""

    made = 0

    def __init__(self) -> None:
        Broken.made += 1

    def reset(self, fails: str = "", start: int = 0, **_: Any) -> str | None:
        self.fails = fails
        if fails == "reset":
            raise RuntimeError("no world")
        if fails == "endless reset":
            time.sleep(60)
        return super().reset(start)

    def get_reward(self) -> float:
        if self.fails == "reward":
            raise KeyError("no reward")
        if self.fails == "endless reward":
            time.sleep(60)
        return super().get_reward()


@pytest.mark.parametrize("fails", ["reset", "endless reset", "reward", "endless reward"])
def test_a_sample_whose_environment_fails_takes_no_part(
    fails: str, acting: Make, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Broken.made = 0
    rows = questions(8, fails=lambda i: fails if i == 3 else "", start=lambda i: i % 2)
    trainer = acting(
        rows, by_length, environment_factory=Broken, per_device_train_batch_size=16, num_generations=2,
        tool_timeout=0.1, max_steps=2, beta=0.1,
    )  # fmt: skip
    scored: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = trainer._make_batch

    def make_batch(rollout: Any, rewards: torch.Tensor, total: torch.Tensor) -> Any:
        scored.append((rewards, total))
        return inner(rollout, rewards, total)

    trainer._make_batch = make_batch
    trainer.train()
    for rewards, total in scored:
        assert total.isnan().sum() == 2
        assert rewards[total.isnan()].isnan().all()
    line = last_line(trainer)
    assert line["environments/failure_frequency"] == line["unscorable"] == 2 / 16
    assert torch.isfinite(torch.tensor(line["loss"]))
    said = [record.getMessage() for record in caplog.records if "take no part" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("Broken.reset" if "reset" in fails else "Broken.get_reward")
    assert Broken.made == (32 if "endless" in fails else 16)


def test_an_environment_that_is_left_is_made_anew_in_its_place(acting: Make) -> None:
    """By its number it has the random numbers that it would have had."""
    made: list[float] = []
    late: list[float] = []

    class Slow(Counter):
        def __init__(self) -> None:
            self.own = random.random()
            made.append(self.own)

        def reset(self, start: int = 0, **_: Any) -> str | None:
            self.start = start
            return None

        async def get_reward(self) -> float:
            if self.start == 1 and len(late) < 2:
                late.append(self.own)
                await asyncio.sleep(60)
            return 1.0

    rows = questions(4, start=lambda i: int(i == 0))
    settings = {"per_device_train_batch_size": 8, "num_generations": 2, "tool_timeout": 0.3}
    acting(rows, by_length, environment_factory=Slow, max_steps=2, **settings).train()
    assert made[8:] == late


def test_a_reward_that_cannot_be_asked_for_is_none(acting: Make) -> None:
    class Curious(Counter):
        async def get_reward(self, question: str) -> float:
            return 1.0

    trainer = acting(questions(), by_length, environment_factory=Curious, max_steps=1)
    trainer.train()
    assert last_line(trainer)["unscorable"] == 1


def test_where_all_environments_fail_the_run_goes_on(acting: Make) -> None:
    rows = questions(8, fails=lambda i: "reset")
    trainer = acting(
        rows, [], environment_factory=Broken, per_device_train_batch_size=4, num_generations=2, max_steps=2
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert not trainer.generator.requests
    assert last_line(trainer)["unscorable"] == 1


def test_a_run_in_which_no_environment_works_ends_with_the_error(acting: Make) -> None:
    rows = questions(8, fails=lambda i: "reset")
    trainer = acting(
        rows, [], environment_factory=Broken, per_device_train_batch_size=4, num_generations=2, max_steps=5
    )
    said = refusal(trainer.train)
    assert "all environments failed in 3 batches in a row: Broken.reset raised RuntimeError: no world" in said
    assert trainer.state.global_step == 2


def test_an_episode_that_outgrows_the_context_is_cut_and_counted(
    acting: Make, tokenizer: Any, tiny_llama: Make
) -> None:
    def much(count: int) -> str:
        """
        Say much.

        Args:
            count: How much.
        """
        return "word " * count

    rollouts = []
    for call, limit in (('@much {"count": 3}', 40), ('@much {"count": 90}', 100), ('@much {"count": 60}', 300)):
        trainer = acting(
            questions(), by_length, saying(tokenizer, call, "a long answer that needs many tokens, all of them"),
            tools=[much], max_completion_length=limit, per_device_train_batch_size=2, num_generations=2,
            mask_truncated_completions=True,
        )  # fmt: skip
        inner = trainer._make_batch
        trainer._make_batch = lambda rollout, *others, inner=inner: rollouts.append(rollout) or inner(rollout, *others)
        trainer.train()
        line = last_line(trainer)
        assert line["tools/outgrown_ratio"] == line["completions/clipped_ratio"] == 1
        assert line["loss"] == 0  # left out
        assert all(len(ids) <= limit for ids in rollouts[-1].completion_ids)
    cut, dropped, positions = (rollout.completions[0] for rollout in rollouts)
    assert [message["role"] for message in cut] == ["assistant", "tool", "assistant"]
    assert len(rollouts[0].completion_ids[0]) == 40
    assert [message["role"] for message in dropped] == ["assistant"]  # what the tool said has no room
    assert [message["role"] for message in positions] == ["assistant"]  # of 128 positions


class Talker(Counter):
    """Says as many words as a row wants before its first turn."""

    def reset(self, words: int = 0, **_: Any) -> str:
        super().reset()
        return " word" * words


class Reader:
    """One without tools."""

    def reset(self, words: int = 0, **_: Any) -> str:
        return " word" * words

    def get_reward(self) -> float:
        return 1.0


@pytest.mark.parametrize("world", [Talker, Reader])
@pytest.mark.parametrize("packing", ["prompt", "none"])
def test_a_sample_whose_reset_leaves_no_room_takes_no_part(
    world: type, packing: str, acting: Make, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And is counted: among the environments that failed, and where there are tools among the episodes without room."""
    rows = questions(8, words=lambda i: 300 * (i == 3))
    generator = saying(tokenizer, '@count {"by": 4}', "4")
    trainer = acting(
        rows, [], generator, environment_factory=world, per_device_train_batch_size=16, num_generations=2,
        train_packing=packing,
    )  # fmt: skip
    batches: list[Any] = []
    inner = trainer._make_batch
    trainer._make_batch = lambda *given: batches.append((given[2], inner(*given))) or batches[-1][1]
    trainer.train()
    ((total, batch),) = batches
    assert total.isnan().sum() == (batch["completion_mask"].sum(1) == 0).sum() == 2
    assert batch["prompt_ids"].shape[1] < 128  # positions of the model
    assert all(len(prompt) < 128 for prompt, _ in generator.samples)
    line = last_line(trainer)
    assert line["environments/failure_frequency"] == line["unscorable"] == 2 / 16
    assert line.get("tools/outgrown_ratio", 2 / 16) == 2 / 16
    (said,) = [record.getMessage() for record in caplog.records if "take no part" in record.getMessage()]
    assert said.startswith(f"{world.__name__}.reset says so much that no answer fits within 128 tokens")


def test_where_reset_leaves_little_room_the_first_answer_is_cut_there(acting: Make, tokenizer: Any) -> None:
    """As vLLM does; transformers would go on."""
    generator = saying(tokenizer, "a long answer that needs many tokens, all of them and more")
    trainer = acting(
        questions(8, words=lambda i: 28), [], generator, environment_factory=Reader, max_completion_length=100,
        mask_truncated_completions=True,
    )  # fmt: skip
    trainer.train()
    assert {len(prompt) + len(answer) for prompt, answer in generator.samples} == {128}
    assert last_line(trainer)["completions/clipped_ratio"] == 1


def test_whatever_a_model_gives_as_arguments_can_be_logged(acting: Make, tokenizer: Any) -> None:
    texts = ('@add {"a": 1, "b": 2}', '@add {"a": "x", "b": [1]}', "@add {}", '@nothing {"a": {"b": null}}', "none")
    drawn = iter(range(1000))

    def answer(prompts: Any, sampling: Any, seeds: Any) -> list[Completion]:
        ids = [tokenizer.encode(texts[next(drawn) % 5], add_special_tokens=False) for _ in prompts]
        return [Completion([*own, tokenizer.eos_token_id], None, True) for own in ids]

    trainer = acting(questions(), by_length, FakeGenerator(answer), tools=[add], log_completions=True, max_steps=2)
    trainer.train()
    first, _ = sorted((Path(trainer.args.output_dir) / "completions").glob("*.parquet"))
    calls = [completion[0]["tool_calls"] for completion in pd.read_parquet(first)["completion"]]
    calls = [own[0]["function"]["arguments"] for own in calls if own is not None]
    assert '{"a": "x", "b": [1]}' in calls


# ---- refused before the run ------------------------------------------------------------------------------------------


def untold(a):  # type: ignore[no-untyped-def]
    return a


def count(by: int) -> str:
    """
    Count on, as Counter does.

    Args:
        by: How far.
    """
    return str(by)


class Later(Counter):
    async def reset(self, **_: Any) -> None:  # type: ignore[override]
        pass


def failing() -> Any:
    raise OSError("no port")


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        (questions(), {"tools": [untold]}, "tool untold: "),
        (questions(), {"tools": add}, "tools is a function: give a list of functions"),
        (questions(), {"tools": [add, add]}, "tools: two are named add, and a model calls a tool by its name"),
        (questions(), {"tools": [count], "environment_factory": Counter}, "Counter has a method count, and"),
        (questions(), {"tools": [count], "environment_factory": lambda: Counter()}, "Counter has a method count, and"),
        (questions(), {"environment_factory": dict}, "environment_factory makes a dict, which has no method reset"),
        (questions(), {"environment_factory": Later}, "environment_factory makes a Later, which has no method reset"),
        (questions(), {"environment_factory": 3}, "environment_factory is a int: give a class"),
        (questions(), {"environment_factory": {}}, "environment_factory is an empty dict"),
        (questions(), {"environment_factory": failing}, "could not be made: it raised OSError: no port"),
        (questions(), {"environment_factory": {"a": Counter}}, "train_dataset has no column 'environment'"),
        (
            questions(environment=lambda i: "b"), {"environment_factory": {"a": Counter}},
            "train_dataset: environment 'b' is not among those of environment_factory: a",
        ),
        (
            questions(environment=lambda i: i), {"environment_factory": {0: Counter, 1: Echo}},
            "train_dataset: environment 2 is not among those of environment_factory: 0, 1",
        ),
        (None, {"environment_factory": {"a": Counter}}, "requires a `train_dataset`"),
        (None, {"environment_factory": Counter, "max_steps": -1}, "`max_steps` must be set"),
        (questions(), {"environment_factory": Echo, "rewards": []}, "No reward source provided"),
    ],
)  # fmt: skip
def test_refused_in_one_line(acting: Make, rows: Any, arguments: Any, said: str) -> None:
    given = {"rewards": by_length, **arguments}
    assert said in refusal(acting, rows, given.pop("rewards"), **given)


def test_prompts_are_conversations(acting: Make) -> None:
    from datasets import Dataset

    texts = Dataset.from_list([{"prompt": "How many?"}] * 8)
    assert "tools and environments need conversations as prompts" in refusal(acting, texts, by_length, tools=[add])


def test_a_chat_template_without_tools(acting: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert "does not support tool calling" in refusal(acting, questions(), by_length, tools=[add])


def test_what_an_environment_returns_is_checked(acting: Make) -> None:
    class Odd(Counter):
        def reset(self, **_: Any) -> Any:
            return 5

    class Rich(Counter):
        def get_reward(self) -> Any:
            return "much"

    class Endless(Counter):
        def get_reward(self) -> Any:
            return float("inf")

    trainer = acting(questions(), by_length, environment_factory=Endless)
    assert "Endless.get_reward returned inf; return None for a sample without a score" in refusal(trainer.train)
    trainer = acting(questions(), by_length, environment_factory=Odd)
    assert "Odd.reset returned int: return a text for the prompt, or None" in refusal(trainer.train)
    trainer = acting(questions(), by_length, environment_factory=Rich)
    assert "Rich.get_reward returned 'much'; each value must be a number or None" in refusal(trainer.train)
    assert isinstance(trainer.generator, Scripted)
