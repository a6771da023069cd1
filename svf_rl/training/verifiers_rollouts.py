"""`VerifiersRollouts`: an environment of the package `verifiers` (0.1.10 or 0.1.14) as a `rollout_func`.

What is used of it: `environment.run_rollout(input, client, ...)`, which asks a client of ours for each turn. Rollouts
run together in the event loop of the process, so that what an environment keeps goes on from batch to batch; when all
of them wait for the model, it is asked for all, by the thread that trains. A turn goes on with the tokens of the turns
before, as they were generated: only what the environment adds is turned into tokens.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from svf_rl.episodes.failures import Failures
from svf_rl.episodes.user_calls import start_coroutine
from svf_rl.errors import SVFError, one_line
from svf_rl.rewards.user_code import describe
from svf_rl.training.verifiers_clients import compares_groups, find_clients
from svf_rl.training.verifiers_desk import Desk

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer

_INPUT = ("answer", "info", "example_id", "task")
"""Of a row; `task` is by what a group of environments finds its own."""


class VerifiersRollouts:
    """
    A `rollout_func` for [`SVFReinforceTrainer`]; `environment_reward` is the reward that goes with it.

    Args:
        environment (`verifiers.Environment`): Of `verifiers` 0.1.10 or 0.1.14, with rewards of single rollouts. Its own
            rows are `environment.get_dataset()`; those of another dataset need a column `prompt`, and what its rubric
            reads (`answer`, `info`).

    Raises:
        SVFError: `verifiers` is not installed, or the environment compares the rollouts of a group.
    """

    def __init__(self, environment: Any) -> None:
        self._clients = find_clients()
        if compares_groups(environment):
            raise SVFError(
                "the environment has rewards of a group of rollouts: only those of single ones are supported"
            )
        self._environment = environment
        self.__name__ = type(environment).__name__
        self._failures = Failures()

    def __call__(self, prompts: list[Any], trainer: "SVFReinforceTrainer") -> dict[str, Any]:
        args = trainer.args
        if args.use_vllm and args.vllm_mode == "colocate" and args.vllm_tensor_parallel_size > 1:
            raise SVFError("environments of verifiers do not go with vllm_tensor_parallel_size above 1: set it to 1")
        desk = Desk(trainer, len(prompts), self._clients)
        playing = start_coroutine(self._play(prompts, desk, trainer.args.tool_timeout))
        playing.add_done_callback(lambda _: desk.requests.put(None))
        try:
            while (ask := desk.requests.get()) is not None:
                ask()
            outcomes = playing.result()
        finally:
            playing.cancel()
        rewards = self._rewards(outcomes)
        threads = [desk.whole(place, prompt) for place, prompt in enumerate(prompts)]
        logprobs = [thread.logprobs for thread in threads]
        return {
            "prompt_ids": [thread.prompt_ids for thread in threads],
            "completion_ids": [thread.ids for thread in threads],
            "env_mask": [thread.mask for thread in threads],
            "logprobs": None if any(row is None for row in logprobs) else logprobs,
            "verifiers_reward": rewards,
        }

    @staticmethod
    def environment_reward(verifiers_reward: list[float | None], **_: Any) -> list[float | None]:
        """What the environment's rubric gave; `None` where a rollout has failed."""
        return verifiers_reward

    async def _play(self, prompts: list[Any], desk: Desk, seconds: float) -> list[Any]:
        """What each rollout returns or raises."""
        played = [
            asyncio.ensure_future(
                _shielded(
                    self._environment.run_rollout(
                        {"prompt": prompt, "example_id": i, **{key: row[key] for key in _INPUT if key in row}},
                        self._clients.client(partial(desk.ask, i)), "policy", {},
                    )
                )
            )
            for i, (prompt, row) in enumerate(zip(prompts, desk.rows, strict=True))
        ]  # fmt: skip
        try:
            for one in played:
                one.add_done_callback(lambda _: desk.changed.set())
            await desk.serve(played, seconds)
            return await asyncio.gather(*played, return_exceptions=True)
        finally:
            for one in played:
                one.cancel()

    def _rewards(self, outcomes: Sequence[Any]) -> list[float | None]:
        """Raises `SVFError` where all rollouts of several batches in a row have failed, over all processes."""
        failures = [_failure(outcome) for outcome in outcomes]
        for why in filter(None, failures):
            self._failures.note(f"{self.__name__}: {why}")
        self._failures.check_batch(all(gather_object([None not in failures])))
        return [
            float(outcome["reward"]) if why is None else None for outcome, why in zip(outcomes, failures, strict=True)
        ]


def _failure(outcome: Any) -> str | None:
    """Why a rollout has no reward."""
    if isinstance(outcome, SVFError):
        raise outcome
    if isinstance(outcome, asyncio.CancelledError):
        return "it did not go on in time (tool_timeout)"
    if isinstance(outcome, BaseException):
        return describe(outcome)
    error = outcome.get("error")
    return None if error is None else one_line(error)


async def _shielded(rollout: Awaitable[Any]) -> Any:
    """What would end the event loop is an error like others."""
    try:
        return await rollout
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(repr(error)) from error
