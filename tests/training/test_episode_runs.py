"""Runs with tools and environments: seeds, held-out answers, and resuming to the bit."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from episode_parts import WORLD, Counter, Scripted, acting, add, by_length, fails, questions, rows, saying
from fakes import read_metrics, refusal
from transformers import TrainerCallback

from svf_rl.generation import sample_seed
from svf_rl.losses.objective import total_reward
from svf_rl.tasks.reasoning_gym import LEVEL
from svf_rl.training.next_token import NextTokenTrainer

__all__ = ["acting"]

Make = Callable[..., Any]

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


def test_held_out_items_are_answered_greedily_in_several_turns(acting: Make, tiny_llama: Make) -> None:
    seen: list[tuple[Any, Any]] = []

    def reward(completions: Any, start: Any, environments: Any, **_: Any) -> list[float]:
        seen.extend(zip(completions, start, strict=True))
        assert len(environments) == len(completions)
        return by_length(completions)

    made = []

    class Counted(Counter):
        def __init__(self) -> None:
            made.append(self)

    wide = tiny_llama()
    wide.config.max_position_embeddings = 512
    trainer = acting(
        rows(), reward, model=wide, environment_factory=Counted, tools=[add], eval_dataset=rows(23),
        max_completion_length=200,
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
