"""Several training runs on one base model: one copy of its weights, and one engine that answers for all of them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from peft import PeftModel
from torch import nn

from svf_rl.generation import Completion, Sampling, SyncReport
from svf_rl.generation.vllm.colocated import POLICY, put_policy
from svf_rl.models.loading import load_adapted, load_tokenizer
from svf_rl.settings.recipe import Recipe
from svf_rl.svf import svf_layers
from svf_rl.training.generator import build_generator
from svf_rl.training.lockstep import Lockstep
from svf_rl.training.run_context import StopRequest
from svf_rl.training.weight_sharing import prepare_sharing


def copy_adapters(model: PeftModel) -> PeftModel:
    """A model of its own trained values, and of the very tensors of all that is frozen."""
    shared = [p for p in model.parameters() if not p.requires_grad]
    for layer in svf_layers(model).values():
        shared += layer.svf_factors.tensors()
        for core in layer.svf_mask.values():
            core.prepare(layer.svf_factors.s)
            shared += [core.drawn] if core.drawn is not None else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


@dataclass(frozen=True)
class _Request:
    """What a run asks of the engine, with the numbers that its adapters have there: completions with `seeds`, or where
    there is no `sampling` the log-likelihood of `continuations`."""

    prompts: Sequence[list[int]]
    adapters: list[int]
    sampling: Sampling | None = None
    seeds: Sequence[int] = ()
    progress: bool = False
    continuations: Sequence[list[int]] = ()


class SharedBase:
    """
    What several runs have in common.

    Args:
        recipe ([`Recipe`]): Names the model, the adapter and the settings of the engine. They are loaded when a run
            first asks for them.
        names (`Sequence[str]`): Of the runs.
        stop ([`StopRequest`]): What asks all of them to stop.
    """

    def __init__(self, recipe: Recipe, names: Sequence[str], stop: StopRequest):
        self._recipe, self.names, self.stop = recipe, list(names), stop
        self._model: PeftModel | None = None
        self._engine: Any = None
        self._lockstep = Lockstep(self._answer)
        self.run = self._lockstep.run

    def ask(self, request: _Request | None) -> Any:
        """Called by a run: what the engine answers; without a request a model of the run's own."""
        return self._lockstep.ask(request)

    def number(self, run: int, number: int) -> int:
        """In the engine, of the adapter that the run calls `number`."""
        return number and (number - POLICY) * len(self.names) + run + POLICY

    @property
    def adapters(self) -> Any:
        return self._engine.adapters

    @property
    def max_length(self) -> int:
        return self._engine.max_length

    def _load(self) -> tuple[PeftModel, Any]:
        model, args = load_adapted(self._recipe.model, self._recipe.adapter), copy.copy(self._recipe.training)
        args.vllm_weights = "shared"
        prepare_sharing(model, args)
        model.to(args.device)
        tokenizer, sequences = load_tokenizer(self._recipe.model), 256 * min(len(self.names), 4)
        return model, build_generator(model, args, args.device.type, [], tokenizer, sequences)

    def _answer(self, questions: dict[str, _Request | None]) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for name in [name for name, question in questions.items() if question is None]:
            if self._model is None:
                self._model, self._engine = self._load()
            answers[name] = copy_adapters(self._model)
        requests = {name: request for name, request in questions.items() if request is not None}
        while requests:
            sampling = next(iter(requests.values())).sampling
            alike = {name: request for name, request in requests.items() if request.sampling == sampling}
            found = iter(self._answer_together(list(alike.values()), sampling))
            answers |= {name: list(islice(found, len(request.prompts))) for name, request in alike.items()}
            requests = {name: request for name, request in requests.items() if name not in alike}
        return answers

    def _answer_together(self, requests: list[_Request], sampling: Sampling | None) -> list[Any]:
        prompts = [prompt for request in requests for prompt in request.prompts]
        adapters = [number for request in requests for number in request.adapters]
        if sampling is None:
            continuations = [ids for request in requests for ids in request.continuations]
            return self._engine.loglikelihood(prompts, continuations, adapters=adapters)
        seeds = [seed for request in requests for seed in request.seeds]
        progress = any(request.progress for request in requests)
        if sampling.temperature > 0:
            return self._engine.generate(prompts, sampling, seeds, progress=progress, adapters=adapters)
        # runs that evaluate the same values, as all do before their first step, get one answer
        same = self.adapters.first_alike(adapters)
        places = {
            (tuple(prompt), same[number]): i for i, (prompt, number) in enumerate(zip(prompts, adapters, strict=True))
        }
        asked = [(prompts[i], seeds[i], adapters[i]) for i in places.values()]
        answers = self._engine.generate(
            [prompt for prompt, _, _ in asked],
            sampling,
            [seed for _, seed, _ in asked],
            progress=progress,
            adapters=[number for *_, number in asked],
        )
        found = dict(zip(places, answers, strict=True))
        return [found[tuple(prompt), same[number]] for prompt, number in zip(prompts, adapters, strict=True)]


@dataclass(frozen=True)
class Member:
    """The run `name` among those of `base`."""

    name: str
    base: SharedBase

    @property
    def is_first(self) -> bool:
        return self.base.names[0] == self.name

    def join(self, stop: StopRequest) -> tuple[PeftModel, "RunGenerator"]:
        """The run's model, and where its completions come from; `stop` is what asks the run to stop."""
        return self.base.ask(None), RunGenerator(self.base, self.base.names.index(self.name), stop)


class RunGenerator:
    """The engine as one run has it: with its own adapters, and as if no other run used it."""

    stale = False

    def __init__(self, base: SharedBase, run: int, stop: StopRequest):
        self._base, self._run, self._stop = base, run, stop
        self.adapters = _RunAdapters(base, run)

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: bool = False,
        adapters: Sequence[int] | None = None,
    ) -> list[Completion]:
        """As of [`ColocatedVLLMGenerator`], together with what the other runs ask for."""
        return self._ask(_Request(prompts, self._numbers(prompts, adapters), sampling, seeds, progress))

    def loglikelihood(
        self,
        prompts: Sequence[list[int]],
        continuations: Sequence[list[int]],
        adapters: Sequence[int] | None = None,
    ) -> list[list[float]]:
        return self._ask(_Request(prompts, self._numbers(prompts, adapters), continuations=continuations))

    def _numbers(self, prompts: Sequence[list[int]], adapters: Sequence[int] | None) -> list[int]:
        if adapters is None:
            adapters = [POLICY if POLICY in self.adapters else 0] * len(prompts)
        return [self._base.number(self._run, number) for number in adapters]

    def _ask(self, request: _Request) -> list[Any]:
        answers = self._base.ask(request)
        if self._base.stop.requested is not None:
            self._stop.pass_on(self._base.stop.requested)
        return answers

    @property
    def max_length(self) -> int:
        """As of [`ColocatedVLLMGenerator`]."""
        return self._base.max_length

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        return put_policy(self.adapters, model)


class _RunAdapters:
    """The engine's adapters under the numbers that one run gives them."""

    def __init__(self, base: SharedBase, run: int):
        self._base, self._run = base, run

    def __contains__(self, number: int) -> bool:
        return self._base.number(self._run, number) in self._base.adapters

    def put(self, number: int, multipliers: Any) -> None:
        self._base.adapters.put(self._base.number(self._run, number), multipliers)
