"""A user's function that makes whole episodes: what it is given, and what it may return."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from episode_parts import WORLD, acting, by_length, questions, rows
from fakes import refusal

from svf_rl.generation import sample_seed

__all__ = ["acting"]

Make = Callable[..., Any]


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


def padded(output: dict[str, Any]) -> Any:
    return [[*row[:-1], -100] for row in output["completion_ids"]]


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
        (changed(completion_ids=padded), "rollout_func returned -100 in completion_ids: the model's tokens are 0 to"),
        (changed(prompt_ids=[[10**6]] * 8), "returned 1000000 in prompt_ids: the model's tokens are 0 to"),
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
