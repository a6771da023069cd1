"""Few-shot searches on a running server: labelled examples in, the name of a combination out (`/v1/adapt`)."""

import asyncio
import logging
import math
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from svf_rl.adaptation.arguments import FewShotArguments, FitnessWeights
from svf_rl.adaptation.few_shot import adapt
from svf_rl.errors import SVFError, one_line
from svf_rl.evaluation.grading import Grader
from svf_rl.evaluation.items import TaskItems, check_lengths
from svf_rl.experts.pool import Mix
from svf_rl.generation import Completion, Sampling
from svf_rl.generation.prompts import encode_prompts, render_prompt
from svf_rl.generation.vllm.mixture import Mixture

logger = logging.getLogger(__name__)

VERIFIERS = ("exact_match", "numeric", "choice")
"""That may grade: those that run nothing."""
_MOST_EXAMPLES = 64
# what a request may ask for: the default, the least and the most
_NUMBERS = {
    "seed": (0, 0, 2**31),
    "generations": (FewShotArguments.generations, 1, 20),
    "population": (FewShotArguments.population, 4, 32),
    "samples": (FewShotArguments.samples, 0, 4),
    "max_tokens": (64, 1, 1024),
    "time_limit": (300, 1, 3600),
}

Complete = Callable[[Sequence[list[int]], Sequence[Sampling], Sequence[int], Sequence[Mixture]], Any]
"""A coroutine's function: the [`Completion`] of each prompt, with its sampling, seed and mixture."""


@dataclass(frozen=True)
class Task:
    """What a request asks for."""

    items: TaskItems
    search: FewShotArguments
    seconds: int


def read_task(call: Mapping[str, Any], tokenizer: Any, longest: int) -> Task:
    """
    From the body of a request.

    Args:
        call (`Mapping`): `examples`, each with `prompt` or `messages`, and `answer`; `verifier`, and the numbers that
            [`FewShotArguments`] has, with `max_tokens` of an answer and `time_limit` in seconds.
        tokenizer: Of the model.
        longest (`int`): Prompt and answer, in tokens.

    Raises:
        SVFError: for anything else.
    """
    unknown = sorted(call.keys() - {"examples", "verifier", *_NUMBERS})
    if unknown:
        raise SVFError(f"unknown field {unknown[0]!r:.80}: use examples, verifier, {', '.join(_NUMBERS)}")
    numbers = {name: _number(call, name) for name in _NUMBERS}
    verifier = call.get("verifier", VERIFIERS[0])
    if verifier not in VERIFIERS:
        raise SVFError(f"verifier must be {', '.join(VERIFIERS)}, not {verifier!r:.80}")
    examples = call.get("examples")
    if not isinstance(examples, list) or not 1 <= len(examples) <= _MOST_EXAMPLES:
        raise SVFError(f"examples must be a list of 1 to {_MOST_EXAMPLES}, each with prompt or messages, and answer")
    rows = [_row(example) for example in examples]
    grader = Grader(verifier, 0.25)
    grader.check(Dataset.from_list(rows), "of the examples")
    conversations = [row["prompt"] for row in rows]
    items = TaskItems(
        name="examples",
        rows=rows,
        prompts=[render_prompt(tokenizer, conversation) for conversation in conversations],
        prompt_ids=encode_prompts(tokenizer, conversations),
        grader=grader,
        sampling=Sampling(numbers["max_tokens"], temperature=0.0),
        metric="accuracy",
    )
    if (length := check_lengths([items], None)) > longest:
        raise SVFError(f"an example and {numbers['max_tokens']} tokens take {length}, and the model reads {longest}")
    search = FewShotArguments(
        shots=len(set(items.prompts)),
        seed=numbers["seed"],
        generations=numbers["generations"],
        population=numbers["population"],
        samples=numbers["samples"],
        weights=FitnessWeights(sampled=float(numbers["samples"] > 0)),
    )
    return Task(items, search, numbers["time_limit"])


def _number(call: Mapping[str, Any], name: str) -> int:
    default, low, high = _NUMBERS[name]
    value = call.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise SVFError(f"{name} must be a whole number from {low} to {high}, not {value!r:.80}")
    return value


def _row(example: Any) -> dict[str, Any]:
    """`prompt` (messages) and `answer`."""
    if not isinstance(example, dict) or not isinstance(example.get("answer"), str):
        raise SVFError("each example needs prompt or messages, and an answer in text")
    messages = example.get("messages", example.get("prompt"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    sound = isinstance(messages, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    )
    if not sound or not messages:
        raise SVFError("an example's prompt is a text, or messages each with role and content in text")
    return {
        "prompt": [{"role": turn["role"], "content": turn["content"]} for turn in messages],
        "answer": example["answer"],
    }


class FewShotJob:
    """
    A search that runs in a thread of its own, and asks the server's engine.

    Args:
        task ([`Task`]): What is searched for.
        experts (`Mapping[str, str]`): Folders by name.
        tokenizer: Of the model.
        complete ([`Complete`]): Of the engine, in the event loop that makes the job.
        done (`Callable`): A coroutine's function, called in that loop with the job once its mixture is found.
    """

    def __init__(
        self,
        task: Task,
        experts: Mapping[str, str],
        tokenizer: Any,
        complete: Complete,
        done: Callable[["FewShotJob"], Any],
    ):
        self.id = secrets.token_hex(6)
        self.status, self.error, self.generation = "running", "", -1
        self.mixture: Mixture | None = None
        self.weights: dict[str, float] = {}
        self.fitness: float | None = None
        self.task, self._experts, self._complete, self._done = task, dict(experts), complete, done
        # the part of an `ExpertPool` that a search uses
        self.names, self.tokenizer, self.mixes_adapters, self.syncs = list(experts), tokenizer, True, 0
        self._loop = asyncio.get_running_loop()
        self._asked: Future[list[Completion]] | None = None  # of the engine, now
        self._loop.call_later(task.seconds, self.stop, "failed", f"the time limit of {task.seconds} s is over")
        threading.Thread(target=self._search, name=f"adapt-{self.id}", daemon=True).start()

    @property
    def name(self) -> str:
        """Of the combination, as a model."""
        return f"adapted-{self.id}"

    def stop(self, status: str = "cancelled", error: str = "") -> None:
        """End it now; nothing happens to one that has ended."""
        if self.status == "running":
            self.status, self.error = status, error
            if self._asked is not None:
                self._asked.cancel()

    def to_dict(self) -> dict[str, Any]:
        """As it is told to clients."""
        search = self.task.search
        return {
            "id": self.id,
            "object": "svf.adapt",
            "status": self.status,
            "generation": max(self.generation, 0),
            "generations": search.generations,
            "seed": search.seed,
            "model": self.name if self.status == "done" else None,
            "weights": self.weights,
            "fitness": self.fitness,
            "error": self.error or None,
        }

    def combination_groups(self, scope: str) -> int:
        return 1

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sequence[Sampling],
        seeds: Sequence[int],
        which: Sequence[Mix],
    ) -> list[Completion]:
        """As of [`ExpertPool`]: called by the search, once a generation."""
        self.generation += 1
        mixtures = [self._mixture_of(mix) for mix in which]
        self._asked = asyncio.run_coroutine_threadsafe(self._complete(prompts, sampling, seeds, mixtures), self._loop)
        if self.status != "running":  # it was stopped meanwhile
            self._asked.cancel()
        return self._asked.result()

    def _mixture_of(self, mix: Mix) -> Mixture:
        alpha = tuple(tuple(round(weight, 6) for weight in row) for row in mix.alpha.view(1, -1).tolist())
        return Mixture(tuple(self._experts.values()), alpha, mix.scope, mix.form)

    def _search(self) -> None:
        pool: Any = self
        try:
            found = adapt(pool, self.task.items, self.task.search)
        except CancelledError:
            return
        except Exception as error:  # whatever it was, a job that has ended must say so
            if not isinstance(error, SVFError):
                logger.exception("few-shot search %s failed", self.id)
            self.stop("failed", one_line(error))
            return
        self.mixture, self.fitness = (
            self._mixture_of(found.mix),
            found.fitness if math.isfinite(found.fitness) else None,
        )
        self.weights = dict(zip(self.names, self.mixture.alpha[0], strict=True))
        asyncio.run_coroutine_threadsafe(self._done(self), self._loop)
