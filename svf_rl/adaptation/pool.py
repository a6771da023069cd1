"""One base model, a vector a matrix for each expert, and one generator that answers as any of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.evaluation.engine import start_vllm, transformers_generator
from svf_rl.generation import Completion, CompletionGenerator, Sampling
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import kind_of, load_saved
from svf_rl.models.loading import load_base, load_tokenizer
from svf_rl.storage.folders import check_new, new_folder
from svf_rl.svf import svf_layers
from svf_rl.svf.combine import assign_groups
from svf_rl.svf.expert import check_same_base, distinct_adapter_names, read_expert

_MIX = "mix"  # the adapter on the model that holds whatever was asked for last


@dataclass(frozen=True)
class Mix:
    """
    A combination of the pool's experts, see `svf_rl.svf.combine`.

    Args:
        alpha (`Tensor` of shape `(K,)` or `(groups, K)`): The weights, in the order of the pool's `names`.
        scope (`str`, *optional*, defaults to `"global"`): What the rows are for: `global`, `layer` or `matrix`.
        form (`str`, *optional*, defaults to `"mask"`): `mask` or `deviation`.
        normalized (`bool`, *optional*, defaults to `False`): Refuse weights that do not sum to 1.
    """

    alpha: Tensor
    scope: str = "global"
    form: str = "mask"
    normalized: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for mixes that make the same model."""
        return (self.alpha.tolist().__repr__(), self.scope, self.form)


class ExpertPool:
    """
    Generates as the base model, as an expert, or as a combination of experts, whichever `use` named last.

    Args:
        model ([`ModelArguments`]): The base model, its `dtype` that of the experts' training.
        experts (`Mapping[str, str]`): Names, and the folders or Hub names of the adapters that are combined.
        others (`Mapping[str, str]`, *optional*): Further adapters that `use` knows and no mix holds, such as a
            dispatch expert.
        generator ([`CompletionGenerator`], *optional*): An engine that stands already, with the same base model.
        backend (`str`, *optional*, defaults to `"vllm"`): `"vllm"` or `"transformers"`.
        max_length (`int`): The longest prompt and its completion, in tokens.
        seed (`int`, *optional*, defaults to 0): Of the engine; each sample has one of its own besides.
        enforce_eager (`bool`, *optional*, defaults to `False`): vLLM compiles nothing.
        gpu_memory_utilization (`float`, *optional*, defaults to 0.4): vLLM's share of the GPU. The base model and its
            factors stand beside it: a sync then takes a fraction of a second, on the CPU it would take a minute for 8B.
        batch_size (`int`, *optional*, defaults to 32): Of transformers' generation.

    Raises:
        SVFError: an expert is missing, is no SVF adapter, or has another base or other targets than the others.
    """

    def __init__(
        self,
        model: ModelArguments,
        experts: Mapping[str, str],
        others: Mapping[str, str] | None = None,
        generator: CompletionGenerator | None = None,
        *,
        backend: str = "vllm",
        max_length: int,
        seed: int = 0,
        enforce_eager: bool = False,
        gpu_memory_utilization: float = 0.4,
        batch_size: int = 32,
    ):
        others = others or {}
        if not experts:
            raise SVFError("name at least one expert: a folder of a trained SVF adapter")
        if _MIX in experts or _MIX in others:
            raise SVFError(f"an expert cannot be called {_MIX}, which stands for a combination: give it another name")
        twice = sorted(experts.keys() & others.keys())
        if twice:
            raise SVFError(f"two experts cannot share the name {twice[0]!r}: give them other names")
        self._adapters = distinct_adapter_names([*experts, *others])
        read = {name: read_expert(path, name) for name, path in {**experts, **others}.items()}
        check_same_base([read[name] for name in experts])
        self.names = list(experts)
        self.others = list(others)
        self.folders = {name: expert.folder for name, expert in read.items()}
        self.model_arguments = model
        self.tokenizer = load_tokenizer(model)
        base = load_base(model).eval()
        first, *rest = read
        self.model: PeftModel = load_saved(base, model, read[first].folder, self._adapters[first])
        for name in rest:
            kind_of(read[name].config).prepare(model, read[name].config, base.dtype)
            self.model.load_adapter(str(read[name].folder), self._adapters[name])
        self.model.eval().requires_grad_(False)
        if torch.cuda.is_available():
            self.model.to("cuda")
        self.generator = generator or (
            start_vllm(
                model,
                max_length,
                seed=seed,
                enforce_eager=enforce_eager,
                gpu_memory_utilization=gpu_memory_utilization,
            )
            if backend == "vllm"
            else transformers_generator(self.model, self.tokenizer, batch_size)
        )
        self._used: object = ()  # nothing yet, which no key is equal to
        self.syncs = 0
        self.sync_seconds = 0.0

    def combination_groups(self, scope: str) -> int:
        """How many rows of weights a scope has."""
        paths = [path for path, layer in svf_layers(self.model).items() if self._adapters[self.names[0]] in layer.svf_z]
        return max(assign_groups(paths, scope)) + 1

    def use(self, which: str | Mix | None) -> None:
        """
        Answer from now on as an expert (its name), a combination, or the base model (`None`). Costs one weight sync,
        and none where it is used already.

        Raises:
            SVFError: no expert of that name, or weights that do not suit.
        """
        key = which.key if isinstance(which, Mix) else which
        if key == self._used and not self.generator.stale:
            return
        started = time.perf_counter()
        first = self._used == ()  # an engine may hold anything at first
        # The base model is a combination that changes nothing: W' is then W to the bit.
        self._activate(which or Mix(torch.zeros(len(self.names)), form="deviation"))
        self._used = ()  # a sync that is interrupted leaves a mixture behind
        self.generator.sync(self.model, everything=first)
        self._used = key
        self.syncs += 1
        self.sync_seconds += time.perf_counter() - started

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One completion a prompt, in order."""
        return self.generator.generate(prompts, sampling, seeds)

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        """Of each token of each continuation, given its prompt."""
        return self.generator.loglikelihood(prompts, continuations)

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

    def _activate(self, which: str | Mix) -> None:
        if isinstance(which, Mix):
            combined = [self._adapters[name] for name in self.names]
            self.model.add_weighted_adapter(combined, which.alpha, _MIX, which.scope, which.form, which.normalized)
        elif which not in self._adapters:
            raise SVFError(f"there is no expert {which!r}; there are: {', '.join(self._adapters)}")
        self.model.set_adapter(_MIX if isinstance(which, Mix) else self._adapters[which], inference_mode=True)
