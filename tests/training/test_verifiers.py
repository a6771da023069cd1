"""Environments of the package `verifiers`, where it is installed (see docs/guides/tools.md)."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from episode_parts import acting, questions, saying
from fakes import FakeGenerator, refusal

from svf_rl.generation import Completion, sample_seed
from svf_rl.generation.prompts import check_prompt_lengths
from svf_rl.quickstart.tool_skill import calc
from svf_rl.training.verifiers_rollouts import VerifiersRollouts

__all__ = ["acting"]

Make = Callable[..., Any]


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "verifiers.envs.environment", None)
    assert "need that package, 0.1.10 or 0.1.14" in refusal(VerifiersRollouts, object())


class Talkative:
    """As an environment of the package: says `more` words after each answer, until there is no room for them."""

    requires_group_rollouts = False

    async def run_rollout(self, row: Any, client: Any, *_: Any) -> dict[str, Any]:
        messages, turns = list(row["prompt"]), 0
        messages[0] = {**messages[0], "content": "word " * row["info"]["first"]}
        with suppress(OverflowError):
            while True:
                reply = await client(messages, None)
                turns += 1
                messages = [*messages, {"role": "assistant", "content": reply.text}]
                messages = [*messages, {"role": "user", "content": "word " * row["info"]["more"]}]
        return {"reward": turns}


def test_a_rollout_ends_where_the_context_does(acting: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on. One that has no room from the beginning has no token that counts."""
    clients = SimpleNamespace(client=lambda asked: asked, response=lambda reply: reply, overlong=OverflowError)
    monkeypatch.setattr("svf_rl.training.verifiers_rollouts.find_clients", lambda: clients)
    rollouts = VerifiersRollouts(Talkative())
    ids = [*tokenizer.encode("yes", add_special_tokens=False), tokenizer.eos_token_id]

    def answer(prompts: Any, *_: Any) -> list[Completion]:
        check_prompt_lengths(prompts, 128)
        return [Completion(list(ids), None, True) for _ in prompts]

    rows = questions(3, info=lambda i: {"first": 300 if i == 0 else 1, "more": (0, 1, 8)[i]})
    trainer = acting(
        rows, rollouts.environment_reward, FakeGenerator(answer), rollout_func=rollouts, max_completion_length=1000,
        num_generations=2, per_device_train_batch_size=6, shuffle_dataset=False,
    )  # fmt: skip
    batches: list[Any] = []
    inner = trainer._make_batch
    trainer._make_batch = lambda *given: batches.append((given[0], inner(*given))) or batches[-1][1]
    trainer.train()
    ((rollout, batch),) = batches
    lengths = [len(p) + len(c) for p, c in zip(rollout.prompt_ids, rollout.completion_ids, strict=True)]
    assert max(lengths) <= 128  # positions of the model
    turns = rollout.extra["verifiers_reward"][::2]
    assert turns[0] == 0
    assert turns[1] > turns[2] > 1
    assert (batch["completion_mask"].sum(1) > 0).tolist() == [False, False, True, True, True, True]


@pytest.fixture
def played(acting: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`played(environment, generator, steps)`: a trainer that has asked `environment` as it would one of the
    package."""
    clients = SimpleNamespace(client=lambda asked: asked, response=lambda reply: reply, overlong=OverflowError)
    monkeypatch.setattr("svf_rl.training.verifiers_rollouts.find_clients", lambda: clients)

    def play(environment: Any, generator: FakeGenerator, steps: int = 1) -> Any:
        rollouts = VerifiersRollouts(environment)
        trainer = acting(
            questions(8), rollouts.environment_reward, generator, rollout_func=rollouts, max_steps=steps,
            max_completion_length=80,
        )  # fmt: skip
        trainer.train()
        return trainer

    return play


class Keeping:
    """Keeps what belongs to an event loop, as clients of judges do."""

    requires_group_rollouts = False

    def __init__(self) -> None:
        self.at_once = asyncio.Semaphore(2)

    async def run_rollout(self, row: Any, client: Any, *_: Any) -> dict[str, Any]:
        await client(row["prompt"], None)
        async with self.at_once:
            await asyncio.sleep(0.001)
        return {"reward": 1.0}


def test_what_an_environment_keeps_goes_on_from_batch_to_batch(played: Make, tokenizer: Any) -> None:
    trainer = played(Keeping(), saying(tokenizer, "yes"), steps=3)
    assert [line["reward"] for line in trainer.state.log_history if "reward" in line] == [1.0] * 3


class Calling:
    """Gives the model a tool, and says again what it calls it with; then what `answer` makes of its message."""

    requires_group_rollouts = False
    ECHO: ClassVar = {
        "type": "function",
        "function": {
            "name": "echo", "description": "Say it again.",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
        },
    }  # fmt: skip

    def __init__(self, keep: Callable[[Any], list[Any]] = lambda said: [said]) -> None:
        self.keep, self.called = keep, 0

    async def run_rollout(self, row: Any, client: Any, *_: Any) -> dict[str, Any]:
        reply = await client(row["prompt"], [self.ECHO])
        self.called += len(reply.calls)
        said = {"role": "assistant", "content": reply.text}
        await client([*row["prompt"], *self.keep(said), {"role": "user", "content": "half \ud83d"}], [self.ECHO])
        return {"reward": 1.0}


@pytest.mark.parametrize("text", ['"ab"', r'"\ud83d"', "[" * 3000 + "]" * 3000], ids=["text", "half", "deep"])
def test_an_odd_call_costs_no_run(played: Make, tokenizer: Any, text: str) -> None:
    """It is text; and what an environment says is told to the model in whole characters."""
    environment = Calling()
    ids = [*tokenizer.encode(f'@echo {{"text": {text}}}', add_special_tokens=False), tokenizer.eos_token_id]
    played(environment, FakeGenerator(lambda prompts, *_: [Completion(list(ids), None, True) for _ in prompts]))
    assert environment.called == (8 if text == '"ab"' else 0)


@pytest.mark.parametrize("keep", [lambda said: [], lambda said: [{**said, "content": "in short"}]])
def test_an_environment_that_changes_what_the_model_said_is_refused(played: Make, tokenizer: Any, keep: Any) -> None:
    assert "rewrites its messages" in refusal(played, Calling(keep), saying(tokenizer, "a long answer"))


class Failing:
    requires_group_rollouts = False

    async def run_rollout(self, row: Any, client: Any, *_: Any) -> dict[str, Any]:
        await client(row["prompt"], None)
        raise SystemExit("no world")


def test_a_run_of_which_all_rollouts_fail_ends_and_says_why(played: Make, tokenizer: Any, caplog: Any) -> None:
    said = refusal(played, Failing(), saying(tokenizer, "yes"), steps=9)
    assert said == "all environments failed in 3 batches in a row: Failing: RuntimeError: SystemExit('no world')"
    assert sum("no world" in record.message for record in caplog.records) == 1


@pytest.fixture
def package() -> Any:
    return pytest.importorskip("verifiers.envs.tool_env") and __import__("verifiers")


def rows_of(count: int = 8) -> list[dict[str, Any]]:
    return [{"question": f"What is {20 + i} times 12?", "answer": str((20 + i) * 12)} for i in range(count)]


async def is_right(completion: Any, answer: str, **_: Any) -> float:
    last = completion[-1]  # 0.1.10 has dicts
    said = last["content"] if isinstance(last, dict) else last.content
    return float(str(said).endswith(f"#### {answer}"))


def calls(tokenizer: Any, marker: str = "<|assistant|>") -> FakeGenerator:
    """Asks the calculator for what is in the prompt, and says what it said."""

    def answer(prompts: Any, sampling: Any, seeds: Any) -> list[Completion]:
        found = []
        for prompt in prompts:
            text = tokenizer.decode(prompt)
            if text.count(marker) == 1:
                said = f'@calc {{"sum": "{"*".join(re.findall("[0-9]+", text))}"}}'
            else:
                said = "#### " + text.rpartition("<|system|>")[2].partition("<|end|>")[0]
            ids = [*tokenizer.encode(said, add_special_tokens=False), tokenizer.eos_token_id]
            found.append(Completion(ids[: sampling.max_tokens], [-0.1] * len(ids), len(ids) <= sampling.max_tokens))
        return found

    return FakeGenerator(answer)


def test_a_tool_environment_of_the_package_is_played(package: Any, acting: Make, tokenizer: Any) -> None:
    from datasets import Dataset

    environment = package.ToolEnv(
        dataset=Dataset.from_list(rows_of()), tools=[calc], rubric=package.Rubric(funcs=[is_right]), max_turns=4
    )
    rollouts, seeds = VerifiersRollouts(environment), []
    generator = calls(tokenizer)
    inner = generator._answer
    generator._answer = lambda prompts, sampling, own: seeds.append(list(own)) or inner(prompts, sampling, own)
    batches: list[Any] = []
    trainer = acting(
        environment.get_dataset(), rollouts.environment_reward, generator, rollout_func=rollouts, seed=4,
        max_completion_length=80,
    )  # fmt: skip
    loss = trainer._loss_of
    trainer._loss_of = lambda model, batch: batches.append(batch) or loss(model, batch)
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "reward" in line]
    assert line["reward"] == 1
    for turn, own in enumerate(seeds):
        assert own == [sample_seed(4, "train", 0, place, turn) for place in range(8)]
    (batch,) = batches
    for ids, mask in zip(batch["completion_ids"], batch["completion_mask"] * batch["tool_mask"], strict=True):
        whole, own = tokenizer.decode(ids[: len(ids)]), tokenizer.decode(ids[mask.bool()])
        said = own.split("<|end|>")[1].removeprefix("#### ")
        assert own.startswith("@calc")
        assert whole.startswith(own.partition("<|end|>")[0] + f"<|end|><|system|>{said}<|end|><|assistant|>#### {said}")


def test_a_conversation_of_the_package_is_played(package: Any, acting: Make, tokenizer: Any) -> None:
    """With a user who answers, and rollouts that fail, hang, and outgrow the context."""
    from datasets import Dataset

    class Talk(package.MultiTurnEnv):
        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            if state["answer"] == "3":
                raise package.Error("broken")
            if state["answer"] == "4":
                await asyncio.sleep(60)
            more = "word " * (100 if state["answer"] == "5" else 1)
            return [{"role": "user", "content": f"and then? {more}"}]

    async def turns(state: Any, **_: Any) -> float:
        return float(len(state["trajectory"]))

    environment = Talk(
        dataset=Dataset.from_list([{"question": "Go on.", "answer": str(i)} for i in range(8)]),
        rubric=package.Rubric(funcs=[turns]), max_turns=3,
    )  # fmt: skip
    rollouts = VerifiersRollouts(environment)
    ids = [*tokenizer.encode("yes", add_special_tokens=False), tokenizer.eos_token_id]
    generator = FakeGenerator(lambda prompts, *_: [Completion(list(ids), None, True) for _ in prompts])
    trainer = acting(
        environment.get_dataset(), rollouts.environment_reward, generator, rollout_func=rollouts, tool_timeout=0.3,
        max_completion_length=60, num_generations=2, per_device_train_batch_size=16, shuffle_dataset=False,
    )  # fmt: skip
    seen: list[Any] = []
    inner = trainer._make_batch
    trainer._make_batch = lambda rollout, rewards, total: (
        seen.append((rollout, total)) or inner(rollout, rewards, total)
    )
    trainer.train()
    ((rollout, total),) = seen
    found = total.view(8, 2)[:, 0].tolist()
    assert [found[i] for i in (0, 1, 2, 6, 7)] == [3.0] * 5
    assert total.isnan().sum() == 4
    assert found[5] == 1.0  # what the environment said had no room
    words = tokenizer.decode(rollout.completion_ids[0])
    assert words.startswith("yes<|end|><|user|>and then? word")
    assert words.count("yes") == 3


def test_an_environment_that_comes_with_the_package_is_played(package: Any, acting: Make, tokenizer: Any) -> None:
    """Its `ReasoningGymEnv`, with the package's own rows, parser and rubric: every second answer is right."""
    pytest.importorskip("reasoning_gym")
    from verifiers.envs.integrations.reasoninggym_env import ReasoningGymEnv

    environment = ReasoningGymEnv("count_bits", num_train_examples=8, num_eval_examples=2, system_prompt="")
    rollouts = VerifiersRollouts(environment)

    def answer(prompts: list[list[int]], *_: Any) -> list[Completion]:
        said = []
        for place, prompt in enumerate(prompts):
            (number,) = re.findall(r"number (\d+)", tokenizer.decode(prompt))
            said.append(f"<answer>{int(number).bit_count() + place % 2}</answer>")
        ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in said]
        return [Completion(one, None, True) for one in ids]

    trainer = acting(
        environment.get_dataset(), rollouts.environment_reward, FakeGenerator(answer), rollout_func=rollouts,
        num_generations=2, per_device_train_batch_size=16, max_completion_length=40,
    )  # fmt: skip
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "reward" in line]
    assert 0.5 <= line["reward"] < 0.6  # a wrong one gets .01 from that scorer


def test_a_group_of_environments_of_the_package_is_played(package: Any, acting: Make, tokenizer: Any) -> None:
    """Each row by its own: rewards of 1 and 2, whose mean is 1.5."""
    from datasets import Dataset

    def giving(reward: float) -> Any:
        async def give(**_: Any) -> float:
            return reward

        rows = Dataset.from_list(rows_of(4))
        return package.SingleTurnEnv(dataset=rows, rubric=package.Rubric(funcs=[give]))

    environment = package.EnvGroup([giving(1.0), giving(2.0)], env_names=["one", "two"])
    rollouts = VerifiersRollouts(environment)
    trainer = acting(
        environment.get_dataset(), rollouts.environment_reward, saying(tokenizer, "yes"), rollout_func=rollouts,
        num_generations=2, per_device_train_batch_size=16,
    )  # fmt: skip
    trainer.train()
    assert [line["reward"] for line in trainer.state.log_history if "reward" in line] == [1.5]


@pytest.mark.parametrize("among_others", [False, True])
def test_rewards_of_a_group_are_refused(package: Any, among_others: bool) -> None:
    from datasets import Dataset

    async def best(completions: Any, **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    rubric = package.Rubric(funcs=[best])
    environment = package.SingleTurnEnv(
        dataset=Dataset.from_list(rows_of()),
        rubric=package.RubricGroup([package.Rubric(funcs=[is_right]), rubric]) if among_others else rubric,
    )
    assert "has rewards of a group of rollouts" in refusal(VerifiersRollouts, environment)
