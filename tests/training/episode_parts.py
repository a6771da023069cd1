"""Tools, environments and what a scripted model does with them, for tests of episodes."""

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from fakes import FakeGenerator

from svf_rl.episodes.episodes import Episodes
from svf_rl.episodes.rollout import Rollout
from svf_rl.episodes.toolbox import fill_toolbox
from svf_rl.episodes.user_calls import UserCalls
from svf_rl.generation import Completion, Sampling
from svf_rl.svf import SVFConfig

Make = Callable[..., Any]


def add(a: int, b: int) -> int:
    """
    Add.

    Args:
        a: A number.
        b: Another.
    """
    return a + b


def fails(text: str) -> str:
    """
    Fails.

    Args:
        text: What it says.
    """
    raise KeyError(text)


async def later(a: int) -> str:
    """
    Answer later.

    Args:
        a: A number.
    """
    return f"later {a}"


class Counter:
    """Counts what it is told."""

    def reset(self, start: int = 0, **_: Any) -> str | None:
        self.total = start
        return f" Start at {start}." if start % 2 else None

    def count(self, by: int) -> str:
        """
        Count on.

        Args:
            by: How far.
        """
        self.total += by
        return f"now {self.total}"

    def get_reward(self) -> float:
        return float(self.total)


class Echo:
    """Says it again."""

    def reset(self, **_: Any) -> None:
        pass

    def echo(self, text: str) -> str:
        """
        Say it again.

        Args:
            text: What to say.
        """
        return text + text


WRITTEN = (
    '@add {"a": 2, "b": 3}', "seven", '@count {"by": 4}', '@nothing {"a": 1}', '@fails {"text": "no"}', "@add {broken}",
    '@later {"a": 3}@add {"a": 1, "b": 1}', '@add {"a": 2}', '@echo {"text": "ab"}', "",
)  # fmt: skip


def scripted(tokenizer: Any) -> Callable[[list[int], int], Completion]:
    """What a model writes after a prompt, which decides it; the same for every generator."""

    def write(prompt: list[int], most: int) -> Completion:
        draw = random.Random(str(prompt))
        ids = tokenizer.encode(draw.choice(WRITTEN), add_special_tokens=False)
        ids = [*ids, tokenizer.eos_token_id] if draw.random() < 0.9 else ids
        return Completion(ids[:most], [-0.5 - i for i in range(len(ids[:most]))], ids[-1:] == [tokenizer.eos_token_id])

    return write


class Scripted(FakeGenerator):
    """Writes what [`scripted`] says, and keeps the seeds of each call."""

    def __init__(self, tokenizer: Any) -> None:
        write = scripted(tokenizer)
        self.seeds: list[list[int]] = []

        def answer(prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
            self.seeds.append(list(seeds))
            return [write(list(prompt), sampling.max_tokens) for prompt in prompts]

        super().__init__(answer)


def saying(tokenizer: Any, *turns: str) -> FakeGenerator:
    """Says the same in each episode: one of `turns` after the other, by the number of the assistant's turns."""
    marker = tokenizer.convert_tokens_to_ids("<|assistant|>")

    def answer(prompts: Any, sampling: Any, seeds: Any) -> list[Completion]:
        found = []
        for prompt in prompts:
            text = turns[min(list(prompt).count(marker), len(turns)) - 1]
            ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            found.append(Completion(ids[: sampling.max_tokens], None, len(ids) <= sampling.max_tokens))
        return found

    return FakeGenerator(answer)


@pytest.fixture
def playing(tokenizer: Any) -> Make:
    """`playing(tools=…, factory=…, seconds=…)`: episodes without a trainer, and `play(rows, *turns)` in which the model
    says these."""

    def build(tools: Sequence[Any] = (), factory: Any = None, seconds: float = 5.0, **changes: Any) -> Any:
        settings = {"template": {}, "max_iterations": 3, "seed": 0}
        box = fill_toolbox(tokenizer, tools, factory, UserCalls(seconds), **{**settings, **changes})
        episodes = Episodes(box, max_tokens=1_000_000)

        def play(rows: Any, *turns: str) -> Rollout:
            generator = saying(tokenizer, *turns)
            return episodes.play(
                list(rows), lambda prompts, places, turn, room: generator.generate(prompts, Sampling(room), [])
            )

        return SimpleNamespace(episodes=episodes, play=play)

    return build


def questions(count: int = 8, **columns: Callable[[int], Any]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"What is {i}?"}],
                **{name: column(i) for name, column in columns.items()},
            }
            for i in range(count)
        ]
    )


WORLD = {"environment_factory": {"counter": Counter, "echo": Echo}, "tools": [add, fails, later]}


def rows(count: int = 16) -> Dataset:
    """For [`WORLD`]."""
    return questions(count, start=lambda i: i, environment=lambda i: ("counter", "echo")[i % 2])


def by_length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(messages)) for messages in completions]


@pytest.fixture
def acting(tiny_llama: Make, make_trainer: Make, tokenizer: Any) -> Make:
    """`acting(rows, tools=…, environment_factory=…, **settings)`: a trainer of scripted episodes."""

    def build(
        rows: Dataset | None, rewards: Any = by_length, generator: Any = None, model: Any = None, **given: Any
    ) -> Any:
        names = ("tools", "environment_factory", "rollout_func", "eval_dataset")
        arguments = {name: given.pop(name) for name in names if name in given}
        args = make_trainer(generator=Scripted(tokenizer), **{"max_completion_length": 60, **given}).args
        from svf_rl.training.trainer import SVFReinforceTrainer

        return SVFReinforceTrainer(
            model or tiny_llama(), rewards, args, rows, processing_class=tokenizer,
            peft_config=SVFConfig(task_type="CAUSAL_LM"), generator=generator or Scripted(tokenizer), **arguments,
        )  # fmt: skip

    return build
