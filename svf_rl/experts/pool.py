"""One base model, its adapters, and one generator that answers as any of them."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.experts.arguments import SHARE_ALONE, SHARE_BESIDE_EXPERTS, EngineArguments
from svf_rl.experts.backends import start_transformers, start_vllm
from svf_rl.generation import Completion, CompletionGenerator, Sampling
from svf_rl.generation.vllm import CannotServeFactors
from svf_rl.generation.weights import SharedWeights, active_multipliers, adapted_weights
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import load_saved
from svf_rl.models.loading import load_base, load_tokenizer
from svf_rl.storage.folders import check_new, new_folder
from svf_rl.svf import svf_layers
from svf_rl.svf.combine import assign_groups, combine_matrices
from svf_rl.svf.expert import check_same_base, distinct_adapter_names, expert_folder, read_expert
from svf_rl.svf.offload import offload_weights, onload_weights

_MIX = "mix"  # the adapter on the model that holds whatever was asked for last


@dataclass(frozen=True)
class Mix:
    """A combination of the pool's experts, see `svf_rl.svf.combine`."""

    alpha: Tensor  # the weights, (K,) or (groups, K), in the order of the pool's `names`
    scope: str = "global"  # what the rows are for: `global`, `layer` or `matrix`
    form: str = "mask"  # or `deviation`
    normalized: bool = False  # refuse weights that do not sum to 1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for mixes that make the same model."""
        return (self.alpha.tolist().__repr__(), self.scope, self.form)


def _key(which: str | Mix | None) -> object:
    return which.key if isinstance(which, Mix) else which


class ExpertPool:
    """
    Generates as the base model, as an adapter, or as a combination of experts: whichever `use` named last, or one for
    each prompt.

    Experts to be combined stand on one model together. A vLLM that the pool starts for them computes with the factors
    of that model: adapters are then mixed in a batch, and a switch is nothing. Without experts, adapters of any PEFT
    method are put onto a fresh base model one at a time, each once at the start, so that one that does not fit is
    refused before hours of generation.

    Args:
        model ([`ModelArguments`]): the base model, its `dtype` that of the adapters' training.
        experts (`Mapping[str, str]`): names, and the folders or Hub names of the adapters that are combined.
        others (`Mapping[str, str]`, *optional*): further adapters that `use` knows and no mix holds, such as a
            dispatch expert; they may stand alone, without experts.
        generator ([`CompletionGenerator`], *optional*): an engine that stands already, with the same base model.
        engine ([`EngineArguments`], *optional*): what generates, and how.
        max_length (`int`): the longest prompt and its completion, in tokens.

    Raises:
        SVFError: an adapter is missing, or does not go with the base model or the other experts; vLLM does not start.
    """

    def __init__(
        self,
        model: ModelArguments,
        experts: Mapping[str, str],
        others: Mapping[str, str] | None = None,
        generator: CompletionGenerator | None = None,
        *,
        engine: EngineArguments | None = None,
        max_length: int,
    ):
        if not experts and others is None:
            raise SVFError("name at least one expert: a folder of a trained SVF adapter")
        others = others or {}
        self.names, self.others = list(experts), list(others)
        self.folders = {name: expert_folder(path) for name, path in {**experts, **others}.items()}
        if experts:
            self._adapters = self._check_experts(experts, others)
        else:
            self._adapters = dict.fromkeys(others, "default")
        self.model_arguments, self._engine, self.max_length = model, engine or EngineArguments(), max_length
        self.tokenizer = load_tokenizer(model)
        self._held: tuple[str, ...] | None = None  # the adapters on `model`
        self.model: Any = None  # a `PeftModel`, or the plain base model where no adapter is on it
        for group in [self.folders] if experts else [(name,) for name in others]:
            self._load(group)
        if generator is None and self._engine.backend == "vllm":
            generator = self._start_vllm(max_length)
        self.generator: Any = generator or start_transformers(
            self._load(self.folders if experts else ()), self.tokenizer, self._engine.batch_size
        )
        # A new engine holds the base model. Beside experts it is told so once more: it may be another one's.
        self._used: object = () if experts else None
        self._numbers: dict[object, int] = {None: 0}  # of adapters that a factored engine holds
        self._number = 0
        self._masks: dict[str, Tensor] = {}  # (K, r) of the experts by matrix, once a mix was asked for
        self.syncs = 0  # weight syncs
        self.seconds = 0.0  # of weight syncs and of the model, without templates and grading

    def _start_vllm(self, max_length: int) -> CompletionGenerator:
        if not self.names:
            return start_vllm(self.model_arguments, self._engine, max_length, SHARE_ALONE)
        try:
            offload_weights(self.model)
            shared = SharedWeights.of(self.model)
            return start_vllm(self.model_arguments, self._engine, max_length, SHARE_BESIDE_EXPERTS, shared)
        except CannotServeFactors as error:
            onload_weights(self.model)
            print(f"note: {error}: each switch of experts is a weight sync", file=sys.stderr)
            return start_vllm(self.model_arguments, self._engine, max_length, SHARE_BESIDE_EXPERTS)

    @property
    def mixes_adapters(self) -> bool:
        """Whether the prompts of a batch can have adapters of their own at no cost."""
        return getattr(self.generator, "adapters", None) is not None

    def _check_experts(self, experts: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
        """PEFT's name of each adapter. Raises `SVFError` for experts that cannot be combined."""
        if _MIX in self.folders:
            raise SVFError(f"an expert cannot be called {_MIX}, which stands for a combination: give it another name")
        twice = sorted(experts.keys() & others.keys())
        if twice:
            raise SVFError(f"two experts cannot share the name {twice[0]!r}: give them other names")
        adapters = distinct_adapter_names(list(self.folders))
        read = {name: read_expert(folder, name) for name, folder in self.folders.items()}
        check_same_base([read[name] for name in experts])
        return adapters

    def _load(self, names: Iterable[str]) -> Any:
        """The base model with these adapters, read again: taking one off does not undo all that PEFT may do."""
        wanted = tuple(names)
        if self.model is not None and self._held == wanted:
            return self.model
        self.model = None  # before the next one is read
        model: Any = load_base(self.model_arguments).eval().requires_grad_(False)
        for name in wanted:
            model = load_saved(model, self.model_arguments, self.folders[name], self._adapters[name])
        if wanted and self._engine.backend == "vllm":
            next(adapted_weights(model))  # refuses what cannot be brought to the engine
        model.eval().requires_grad_(False)
        # without experts vLLM has the GPU to itself: adapters are merged on the CPU, a matrix at a time
        if torch.cuda.is_available() and (self.names or self._engine.backend == "transformers"):
            model.to("cuda")
        self.model, self._held = model, wanted
        return model

    def combination_groups(self, scope: str) -> int:
        """How many rows of weights a scope has."""
        paths = [path for path, layer in svf_layers(self.model).items() if self._adapters[self.names[0]] in layer.svf_z]
        return max(assign_groups(paths, scope)) + 1

    def use(self, which: str | Mix | None) -> None:
        """
        Answer from now on as an expert (its name), a combination, or the base model (`None`). Costs one weight sync,
        and none where it is used already or the engine mixes adapters.

        Raises:
            SVFError: no expert of that name, or weights that do not suit.
        """
        if self.mixes_adapters:
            self._number = self._number_of(which)
            self._drop_mixes()
            return
        key = _key(which)
        if key == self._used and not self.generator.stale:
            return
        # an engine may hold anything at first, and an adapter that stood alone may have changed what this one leaves
        everything = self._used == () or not self.names
        with self._timed():
            self._activate(which)
            self._used = ()  # a sync that is interrupted leaves a mixture behind
            self.generator.sync(self.model, everything=everything)
        self._used = key
        self.syncs += 1

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int],
        which: Sequence[str | Mix | None] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order. `sampling`: of all, or one a prompt. Each is answered as the adapter that
        `which` names for it, by default all as whatever `use` named last."""
        if which is None or self.mixes_adapters:
            numbers = [self._number] * len(prompts) if which is None else [self._number_of(one) for one in which]
            with self._timed():
                completions = self.generator.generate(prompts, sampling, seeds, **self._mixed(numbers))
            self._drop_mixes()
            return completions
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        groups: dict[object, list[int]] = {}
        for place, one in enumerate(which):
            groups.setdefault((_key(one), samplings.index(samplings[place])), []).append(place)
        answers: dict[int, Completion] = {}
        for places in groups.values():
            self.use(which[places[0]])
            alike = samplings[places[0]]
            made = self.generate([prompts[place] for place in places], alike, [seeds[place] for place in places])
            answers.update(zip(places, made, strict=True))
        return [answers[place] for place in range(len(prompts))]

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        """Of each token of each continuation, given its prompt, as whatever `use` named last."""
        with self._timed():
            return self.generator.loglikelihood(prompts, continuations, **self._mixed([self._number] * len(prompts)))

    def _mixed(self, numbers: list[int]) -> dict[str, Any]:
        return {"adapters": numbers} if self.mixes_adapters else {}

    def _number_of(self, which: str | Mix | None) -> int:
        """The number of an adapter in a factored engine, which gets it now if it has it not."""
        key = _key(which)
        if key not in self._numbers:
            with self._timed():
                number = max(self._numbers.values()) + 1
                self.generator.adapters.put(number, self._multipliers(which))
                self._numbers[key] = number
        return self._numbers[key]

    def _multipliers(self, which: str | Mix | None) -> dict[str, Tensor]:
        """`m` (r,) of each matrix. A search asks for hundreds of mixes, so that these do not go through the model."""
        if not isinstance(which, Mix):
            self._activate(which)
            return active_multipliers(self.model)
        if not self._masks:
            self._activate(which)  # refuses experts that cannot be combined
            experts = [self._multipliers(name) for name in self.names]
            self._masks = {path: torch.stack([m[path] for m in experts]) for path in experts[0]}
        return combine_matrices(self._masks, which.alpha, which.scope, which.form, which.normalized)

    def _drop_mixes(self) -> None:
        """A search asks for thousands, each of them once."""
        mixes = [key for key, number in self._numbers.items() if isinstance(key, tuple) and number != self._number]
        for key in mixes:
            self.generator.adapters.remove_adapter(self._numbers.pop(key))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def save(self, mix: Mix, folder: Path) -> None:
        """Write a combination as an ordinary adapter, whole or not at all. Raises `SVFError` for a folder in use."""
        check_new(folder)
        self._activate(mix)
        self._used = ()
        with new_folder(folder) as staging:
            self.model.save_pretrained(staging, selected_adapters=[_MIX])
            (staging / "README.md").unlink(missing_ok=True)  # PEFT's, which knows nothing of the combination
            for file in (staging / _MIX).iterdir():
                file.rename(staging / file.name)
            (staging / _MIX).rmdir()

    def _activate(self, which: str | Mix | None) -> None:
        if isinstance(which, str) and which not in self._adapters:
            raise SVFError(f"there is no expert {which!r}; there are: {', '.join(self._adapters)}")
        if not self.names:
            self._load([which] if isinstance(which, str) else [])
            return
        active = _MIX
        if isinstance(which, str):
            active = self._adapters[which]
        else:  # the base model is a combination that changes nothing: W' is then W to the bit
            mix = which or Mix(torch.zeros(len(self.names)), form="deviation")
            experts = [self._adapters[name] for name in self.names]
            self.model.add_weighted_adapter(
                experts, mix.alpha, _MIX, scope=mix.scope, form=mix.form, normalized=mix.normalized
            )
        self.model.set_adapter(active, inference_mode=True)
