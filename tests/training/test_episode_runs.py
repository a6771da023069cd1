"""Runs with tools and environments: seeds, held-out answers, rollout functions, and resuming to the bit."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episode_parts import Counter, Echo, Scripted, acting, add, by_length, fails, later, questions, saying
from fakes import read_metrics, refusal
from transformers import TrainerCallback

from svf_rl.generation import sample_seed
from svf_rl.losses.objective import total_reward
from svf_rl.tasks.reasoning_gym import LEVEL
from svf_rl.training.next_token import NextTokenTrainer

__all__ = ["acting"]

Make = Callable[..., Any]
WORLD = {"environment_factory": {"counter": Counter, "echo": Echo}, "tools": [add, fails, later]}


def rows(count: int = 16) -> Any:
    return questions(count, start=lambda i: i, environment=lambda i: ("counter", "echo")[i % 2])


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_each_turn_has_a_seed_of_its_own(acting: Make) -> None:
    trainer = acting(
        rows(), by_length, per_device_train_batch_size=8, num_generations=2, gradient_accumulation_steps=2, seed=5,
        max_completion_length=200, **WORLD,
    )  # fmt: skip
    trainer.train()
    first, *others = trainer.generator.seeds
    assert first == [sample_seed(5, "train", 0, place) for place in range(16)]  # as without tools
    assert len(others) >= 2
    for turn, seeds in enumerate(others, 1):
        own = {sample_seed(5, "train", 0, place, turn): place for place in range(16)}
        places = [own[seed] for seed in seeds]
        assert places == sorted(places)
        assert 0 < len(places) < 16
    everything = [seed for seeds in trainer.generator.seeds for seed in seeds]
    assert len(set(everything)) == len(everything)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_held_out_items_are_answered_greedily_in_several_turns(acting: Make) -> None:
    seen: list[tuple[Any, Any]] = []

    def reward(completions: Any, start: Any, environments: Any, **_: Any) -> list[float]:
        seen.extend(zip(completions, start, strict=True))
        assert len(environments) == len(completions)
        return by_length(completions)

    made = []

    class Counted(Counter):
        def __init__(self) -> None:
            made.append(self)

    trainer = acting(
        rows(), reward, environment_factory=Counted, tools=[add], eval_dataset=rows(23), max_completion_length=200,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert [start for _, start in seen] == list(range(23))
    assert metrics["eval_items"] == 23
    assert metrics["eval_reward"] == pytest.approx(sum(len(c) + 0.0 for c, _ in seen) / 23 + rewards_of(seen) / 23)
    assert max(len(messages) for messages, _ in seen) >= 3
    assert all(request.temperature == 0 for request in trainer.generator.requests)
    assert len(made) == 8  # as many as a step of training has
    written = sum(len(tokens) for _, tokens in trainer.generator.samples) / 23
    assert metrics["eval_completion_length"] == pytest.approx(written)  # what the model wrote


class Right(Counter):
    def get_reward(self) -> float:
        return 1.0


class Half(Counter):
    def get_reward(self) -> float:
        return 0.25 * (self.total % 4)


def test_of_several_environments_each_says_what_is_right_in_it(acting: Make, tokenizer: Any) -> None:
    worlds = {"counter": Right, "echo": Half}
    data = rows(16).add_column(LEVEL, [0] * 16)
    trainer = acting(
        data, [], environment_factory=worlds, eval_dataset=rows(16), generator=saying(tokenizer, "well"),
        per_device_train_batch_size=64,
    )  # fmt: skip
    # `Half` begins at 1, 3, 5, …: half of its own are right from 0.5 on
    assert trainer.evaluate()["eval_accuracy"] == 0.75
    given = torch.tensor([[1.0, torch.nan], [torch.nan, 0.25], [torch.nan, 0.75], [torch.nan, torch.nan]])
    deciding = trainer.deciding(given, total_reward(given, torch.ones(2)))
    assert (deciding >= 0.5).tolist() == [True, False, True, False]
    trainer.train()
    assert trainer.curriculum._recent == [0.75]


def test_what_environments_draw_in_an_evaluation_moves_no_draw_of_the_training(acting: Make) -> None:
    drawn: list[int] = []

    class Luck(Counter):
        def reset(self, **_: Any) -> None:
            super().reset(random.randrange(10**9))
            drawn.append(self.total)

    trainer = acting(rows(), by_length, environment_factory=Luck, eval_dataset=rows(5))
    random.seed(3)
    trainer.evaluate()
    assert random.random() == random.Random(3).random()
    trainer.evaluate()
    assert drawn[:5] == drawn[5:]


def rewards_of(seen: list[tuple[Any, Any]]) -> float:
    """Of the environments: where they began, and what their tool was told."""
    total = 0.0
    for messages, start in seen:
        calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
        total += start + sum(call["arguments"]["by"] for call in calls if call["name"] == "count")
    return total


# ---- rollout functions -----------------------------------------------------------------------------------------------


def two_turns(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Asks twice, with a word of its own between."""
    prompt_ids = trainer.tokenize(prompts)
    first = trainer.generate(prompt_ids)
    between = trainer._tokenizer.encode("and then?", add_special_tokens=False)
    longer = [ids + one.token_ids + between for ids, one in zip(prompt_ids, first, strict=True)]
    second = trainer.generate(longer, turn=1, max_tokens=5)
    pairs = list(zip(first, second, strict=True))
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": [a.token_ids + between + b.token_ids for a, b in pairs],
        "logprobs": [[*a.logprobs, *[0.0] * len(between), *b.logprobs] for a, b in pairs],
        "env_mask": [[1] * len(a.token_ids) + [0] * len(between) + [1] * len(b.token_ids) for a, b in pairs],
        "turns": [2 + i for i in range(len(prompts))],
        "name": "two",
    }


def test_a_rollout_function_makes_the_episodes(acting: Make) -> None:
    seen: dict[str, Any] = {}

    def reward(turns: list[int], name: list[str], **_: Any) -> list[float]:
        seen.update(turns=turns, name=name)
        return [float(turn) for turn in turns]

    trainer = acting(questions(), reward, rollout_func=two_turns, seed=3)
    batches: list[Any] = []
    inner = trainer._loss_of
    trainer._loss_of = lambda model, batch: batches.append(batch) or inner(model, batch)
    trainer.train()
    assert seen == {"turns": list(range(2, 10)), "name": ["two"] * 8}
    for turn, seeds in enumerate(trainer.generator.seeds):
        assert seeds == [sample_seed(3, "train", 0, place, turn) for place in range(8)]
    (batch,) = batches
    between = len(trainer._tokenizer.encode("and then?", add_special_tokens=False))
    assert ((batch["completion_mask"] - batch["tool_mask"] * batch["completion_mask"]).sum(1) == between).all()
    line = next(line for line in trainer.state.log_history if "reward" in line)
    written = sum(len(tokens) for _, tokens in trainer.generator.samples) / 8
    assert line["completions/mean_length"] == pytest.approx(written)
    assert line["sampling/logp_difference"] > 0


def test_a_rollout_function_is_asked_for_held_out_items_too(acting: Make) -> None:
    trainer = acting(
        questions(), lambda turns, **_: [1.0] * len(turns), rollout_func=two_turns, eval_dataset=questions(5)
    )
    assert trainer.evaluate()["eval_reward"] == 1
    assert all(request.temperature == 0 for request in trainer.generator.requests)
    assert refusal(trainer.generate, [[5]]) == "trainer.generate is for a rollout_func, while it is called"


def test_of_several_environments_a_prompt_has_the_tools_of_its_own(acting: Make) -> None:
    seen: list[Any] = []

    def play(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        names = [environment["environment"] for environment in trainer.episodes.rows]
        seen.extend(zip(names, trainer.tokenize(prompts), trainer.tokenize(prompts, names), strict=True))
        assert refusal(trainer.tokenize, prompts[:1]).startswith("trainer.tokenize was given 1 prompts and 8 env")
        assert trainer.tokenize(prompts[:1], names[:1]) == [seen[0][1]]
        return two_turns(prompts, trainer)

    trainer = acting(rows(), by_length, rollout_func=play, **WORLD)
    trainer.train()
    assert {name for name, *_ in seen} == {"counter", "echo"}
    for name, ids, named in seen:
        assert ids == named
        text = trainer._tokenizer.decode(ids)
        assert ("count" in text, "echo" in text) == (name == "counter", name == "echo")


def test_an_environment_can_be_driven_by_a_rollout_function(acting: Make) -> None:
    class World:
        def reset(self, start: int, **_: Any) -> str:
            self.start = start
            return f" From {start}."

        def get_reward(self) -> float:
            return float(self.start)

    def play(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        assert [
            prompt[-1]["content"].endswith(f"From {e.start}.")
            for prompt, e in zip(prompts, trainer.environments, strict=True)
        ]
        return two_turns(prompts, trainer)

    trainer = acting(rows(), [], rollout_func=play, environment_factory=World)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/World/mean"] > 0


def changed(**changes: Any) -> Callable[..., Any]:
    def play(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        output = two_turns(prompts, trainer)
        output |= {key: change(output) if callable(change) else change for key, change in changes.items()}
        return {key: value for key, value in output.items() if value != "left out"}

    return play


def nested(output: dict[str, Any]) -> Any:
    return [[[value] for value in row] for row in output["logprobs"]]


def in_numpy(output: dict[str, Any]) -> Any:
    return [list(np.array(row)) for row in output["completion_ids"]]


def raises(prompts: list[Any], trainer: Any) -> Any:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("play", "said"),
    [
        (raises, "rollout_func raised KeyError: 'x'"),
        (lambda prompts, trainer: [], "rollout_func returned list: return a dict of prompt_ids"),
        (changed(logprobs="left out"), "rollout_func returned no logprobs: return a dict"),
        (changed(prompt_ids=[[1]]), "rollout_func returned 1 lists as prompt_ids of 8 prompts"),
        (changed(completion_ids=["ab"] * 8), "rollout_func returned 'ab' among completion_ids"),
        (changed(logprobs=[[0.0]] * 8), "rollout_func returned logprobs that does not fit completion_ids"),
        (changed(env_mask=[[1]] * 8), "rollout_func returned env_mask that does not fit completion_ids"),
        (changed(logprobs=nested), "rollout_func returned logprobs that are no numbers"),
        (changed(completions=["x"] * 8), "rollout_func returned 'completions', the name of what rewards are given"),
        (changed(prompts=["x"] * 8), "rollout_func returned 'prompts', the name of what rewards are given"),
        (changed(turns=[1]), "rollout_func returned 1 values of turns for 8 prompts"),
        (lambda prompts, trainer: trainer.generate([[5]], places=[8]), "which of the 8 prompts"),
    ],
)
def test_what_a_rollout_function_returns_is_checked(acting: Make, play: Any, said: str) -> None:
    trainer = acting(questions(), by_length, rollout_func=play)
    assert said in refusal(trainer.train)


def test_tokens_may_be_those_of_numpy(acting: Make) -> None:
    losses = []
    for changes in ({}, {"completion_ids": in_numpy}):
        trainer = acting(questions(), by_length, rollout_func=changed(**changes))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == losses[1] != 0


def test_without_log_probabilities(acting: Make) -> None:
    trainer = acting(questions(), by_length, rollout_func=changed(logprobs=[None] * 8))
    trainer.train()
    assert "sampling/logp_difference" not in trainer.state.log_history[0]


# ---- where the rows come from ----------------------------------------------------------------------------------------


def test_an_environment_brings_its_own_prompts(acting: Make) -> None:
    seen: list[str] = []

    class Owner(Counter):
        def reset(self, **row: Any) -> str:
            super().reset(0)
            return f"Count to {random.Random(len(seen)).randint(1, 9)}."

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.extend(prompt[-1]["content"] for prompt in prompts)
        return by_length(completions)

    trainer = acting(None, reward, environment_factory=Owner, max_steps=2)
    trainer.train()
    assert len(seen) == 16
    assert all(text.startswith("Count to") for text in seen)


def test_next_token_has_one_turn(acting: Make, tiny_llama: Make, make_trainer: Make) -> None:
    args = make_trainer(generator=Scripted(None)).args
    said = refusal(NextTokenTrainer, tiny_llama(), by_length, args, questions(), tools=[add])
    assert said == "objective: next_token trains on right answers of one turn: remove tools"


# ---- resuming --------------------------------------------------------------------------------------------------------


class CutOff(RuntimeError):
    pass


class CutOffAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self._step:
            raise CutOff


class Luck(Counter):
    """Draws from the process's random numbers, which a checkpoint keeps, and when it is made."""

    def __init__(self) -> None:
        self.start = random.randrange(9)

    def reset(self, **row: Any) -> str:
        super().reset(self.start + random.randrange(9))
        return f" {self.total}"


@pytest.mark.parametrize("cut", [4, 6])
def test_a_run_that_was_cut_off_is_the_same_to_the_bit(acting: Make, tokenizer: Any, tmp_path: Path, cut: int) -> None:
    settings = {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.02, "optim": "adamw_torch",
        "logging_steps": 3, "per_device_train_batch_size": 4, "num_generations": 2, "steps_per_generation": 2,
        "use_vllm": True, "beta": 0.1, "log_completions": True, "num_completions_to_print": 1,
        "max_completion_length": 90, "advantage": "leave_one_out",
    }  # fmt: skip
    world = {"environment_factory": Luck, "tools": [add, fails]}

    def train(name: str, callback: Any = None, resume: bool = False) -> Any:
        random.seed(1)
        trainer = acting(rows(), by_length, output_dir=str(tmp_path / name), eval_dataset=rows(8), **settings, **world)
        if callback is not None:
            trainer.add_callback(callback)
        if not resume:
            trainer.evaluate()  # as a run begins, which makes the environments
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    whole = train("whole")
    with pytest.raises(CutOff):
        train("cut", CutOffAt(cut))
    resumed = train("cut", resume=True)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    found, expected = read_metrics(tmp_path / "cut"), read_metrics(tmp_path / "whole")
    assert found == expected
    assert all("tools/call_frequency" in line for line in found if "reward" in line)
    assert len({line["tools/call_frequency"] for line in found if "reward" in line}) > 1
    shutil.rmtree(tmp_path / "cut")
