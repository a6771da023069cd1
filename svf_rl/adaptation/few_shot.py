"""Few-shot adaptation: the weights α of K experts, searched for on a few labelled prompts.

Transformer² (arXiv 2501.06252, section 3.2, "few-shot adaptation"): candidates for α are evaluated by letting the
combined model answer the labelled prompts, and the cross-entropy method moves towards the best. No gradient, K numbers
(or K a layer, or a matrix), and a weight sync and two batches of completions a candidate.

The search reads the labelled prompts and nothing else; [`unseen`] says which items may be reported.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from svf_rl.adaptation.ask_tell import Search
from svf_rl.adaptation.fitness import Fitness, FitnessWeights
from svf_rl.adaptation.pool import ExpertPool, Mix
from svf_rl.adaptation.search import CrossEntropySearch, RandomSearch
from svf_rl.adaptation.search_file import SearchFile
from svf_rl.adaptation.trial import Trial
from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import model_fingerprint
from svf_rl.evaluation.items import TaskItems
from svf_rl.svf.combine import FORMS, SCOPES, normalize


@dataclass(frozen=True)
class FewShotArguments:
    """
    Args:
        shots (`int`, *optional*, defaults to 10): labelled prompts that the search sees.
        scope (`str`, *optional*, defaults to `"global"`): one α an expert for the whole model (`"global"`), for each
            `"layer"` or for each `"matrix"`.
        form (`str`, *optional*, defaults to `"deviation"`): `"mask"` for `Σ α_k m_k`, `"deviation"` for
            `1 + Σ α_k (m_k − 1)`; the same where the α add up to 1.
        normalized (`bool`, *optional*, defaults to `False`): divide the α by their sum.
        method (`str`, *optional*, defaults to `"cem"`): `"cem"`, the cross-entropy method, or `"random"` search.
        population (`int`, *optional*, defaults to 16): candidates a generation.
        generations (`int`, *optional*, defaults to 5): how many of them.
        std (`float`, *optional*, defaults to 0.5), momentum (`float`, *optional*, defaults to 0.0), min_std (`float`,
            *optional*, defaults to 0.05), high (`float`, *optional*, defaults to 1.0): see
            [`svf_rl.adaptation.search.CrossEntropySearch`]; the lower bound of α is 0.
        chosen (`str`, *optional*, defaults to `"best"`): `"best"` takes the best candidate, `"mean"` the mean of the
            last elites.
        samples (`int`, *optional*, defaults to 2): completions sampled of each prompt beside the greedy one.
        temperature (`float`, *optional*, defaults to 1.0): of the samples.
        weights ([`FitnessWeights`], *optional*): the parts of the fitness.
        seed (`int`, *optional*, defaults to 0): of the labelled prompts, the candidates and the samples.

    Raises:
        SVFError: a value is out of range, or two do not go together.
    """

    shots: int = 10
    scope: Literal["global", "layer", "matrix"] = "global"
    form: Literal["mask", "deviation"] = "deviation"
    normalized: bool = False
    method: Literal["cem", "random"] = "cem"
    population: int = 16
    generations: int = 5
    std: float = 0.5
    momentum: float = 0.0
    min_std: float = 0.05
    high: float = 1.0
    chosen: Literal["best", "mean"] = "best"
    samples: int = 2
    temperature: float = 1.0
    weights: FitnessWeights = field(default_factory=FitnessWeights)
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"scope": SCOPES, "form": FORMS, "method": ("cem", "random"), "chosen": ("best", "mean")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SVFError(f"{name} must be {' or '.join(known)}, not {getattr(self, name)!r}")
        for name, least in (("shots", 1), ("generations", 1), ("samples", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise SVFError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if self.samples > 0 and not 0 < self.temperature < math.inf:
            raise SVFError(f"temperature must be above 0, or the samples are all the same: not {self.temperature}")
        if self.samples == 0 and self.weights.sampled > 0:
            raise SVFError(
                "the fitness counts sampled completions and samples is 0: raise it, or set their weight to 0"
            )
        if self.chosen == "mean" and self.method == "random":
            raise SVFError("random search has no mean of elites: choose the best candidate")
        self.search(1, 1)

    def search(self, groups: int, experts: int) -> Search:
        """The search for `groups × experts` numbers, which starts at the plain mean of the experts."""
        size, start = groups * experts, min(1 / experts, self.high)
        common: dict[str, Any] = {"population": self.population, "high": self.high, "seed": self.seed}
        if self.method == "random":
            return RandomSearch(size, start=start, **common)
        return CrossEntropySearch(
            size, mean=start, std=self.std, momentum=self.momentum, min_std=self.min_std, **common
        )


@dataclass(frozen=True)
class FewShotResult:
    """
    Args:
        experts (`list[str]`): what the columns of `alpha` are of.
        mix ([`Mix`]): the combination found; `mix.alpha` is `(groups, experts)`.
        fitness (`float`): of the best candidate, the mean over its evaluations.
        shots (`list[int]`): rows of the labelled items that the search saw.
        history (`list[dict]`): for each generation the figures of its candidates and of the best so far.
        evaluations (`int`): candidates that were evaluated.
        syncs (`int`): weight syncs that took.
        seconds (`float`): of all generations, those of earlier calls included.
    """

    experts: list[str]
    mix: Mix
    fitness: float
    shots: list[int]
    history: list[dict[str, Any]]
    evaluations: int
    syncs: int
    seconds: float

    @property
    def alpha(self) -> Tensor:
        return self.mix.alpha

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "experts": self.experts,
            "alpha": self.alpha.tolist(),
            "scope": self.mix.scope,
            "form": self.mix.form,
            "fitness": self.fitness,
            "shots": self.shots,
            "evaluations": self.evaluations,
            "syncs": self.syncs,
            "seconds": round(self.seconds, 2),
        }


def draw_shots(items: TaskItems, count: int, seed: int) -> list[int]:
    """
    Rows with `count` different prompts, drawn by the seed. Fewer shots are the first ones of more.

    Raises:
        SVFError: there are not so many different prompts.
    """
    first: dict[str, int] = {}
    for row, prompt in enumerate(items.prompts):
        first.setdefault(prompt, row)
    rows = list(first.values())
    if count > len(rows):
        raise SVFError(f"task {items.name} has {len(rows)} labelled prompts, fewer than the {count} shots asked for")
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]]


def unseen(items: TaskItems, labelled: TaskItems, shots: Sequence[int]) -> list[int]:
    """The rows of `items` whose prompt the search did not see: what may be reported."""
    seen = {labelled.prompts[row] for row in shots}
    return [row for row, prompt in enumerate(items.prompts) if prompt not in seen]


def adapt(
    pool: ExpertPool, items: TaskItems, arguments: FewShotArguments | None = None, out: Path | None = None
) -> FewShotResult:
    """
    Search for the weights of the pool's experts on a few of the labelled items.

    Args:
        pool ([`ExpertPool`]): the base model, its experts and a generator.
        items ([`TaskItems`]): labelled prompts to draw from.
        arguments ([`FewShotArguments`], *optional*): how many prompts, and how to search.
        out (`Path`, *optional*): a folder for the state of the search, written after each generation: the same call
            after an interruption goes on there, and ends as it would have without.

    Raises:
        SVFError: fewer labelled prompts than shots, a folder of something else or of another search, or too many
            checks that failed by themselves.
    """
    arguments = arguments or FewShotArguments()
    shots = draw_shots(items, arguments.shots, arguments.seed)
    trial = Trial(pool, items, shots, arguments.samples, arguments.temperature, arguments.weights, arguments.seed)
    groups = pool.combination_groups(arguments.scope)
    search = arguments.search(groups, len(pool.names))
    file = None if out is None else SearchFile(out, _settings(pool, items, shots, arguments))
    history = [] if file is None else file.resume(search)

    def mix(vector: Sequence[float]) -> Mix:
        return _mix(vector, groups, arguments)

    count = arguments.population
    with tqdm(
        total=arguments.generations * count, initial=len(history) * count, desc="few-shot search", unit="candidate"
    ) as bar:
        while search.generation < arguments.generations:
            started, syncs = time.perf_counter(), pool.syncs
            found = []
            for candidate in search.ask().tolist():
                found.append(trial.evaluate(mix(candidate), search.generation))
                bar.update()
            search.tell([f.value for f in found], [f.tie_break for f in found])
            history.append(_entry(search, found, pool.syncs - syncs, time.perf_counter() - started))
            bar.set_postfix_str(f"generation {search.generation}, best {search.best.fitness:.3f}")
            if file is not None:
                file.write(search, history)

    centred = arguments.chosen == "mean" and isinstance(search, CrossEntropySearch)
    chosen = search.mean.tolist() if centred else search.best.vector  # type: ignore[attr-defined]
    return FewShotResult(
        experts=list(pool.names),
        mix=mix(chosen),
        fitness=search.best.fitness,
        shots=shots,
        history=history,
        evaluations=len(history) * count,
        syncs=sum(entry["syncs"] for entry in history),
        seconds=sum(entry["seconds"] for entry in history),
    )


def _mix(vector: Sequence[float], groups: int, arguments: FewShotArguments) -> Mix:
    alpha = torch.tensor(vector, dtype=torch.float64).view(groups, -1)
    if arguments.normalized:
        # a candidate may have all experts of a group switched off: then they count the same
        alpha = normalize(torch.where(alpha.sum(-1, keepdim=True) > 0, alpha, torch.ones_like(alpha)))
    return Mix(alpha.float(), arguments.scope, arguments.form, arguments.normalized)


def _entry(search: Search, found: Sequence[Fitness], syncs: int, seconds: float) -> dict[str, Any]:
    """What is kept of a generation."""
    values = [f.value for f in found if math.isfinite(f.value)]
    entry = {
        "generation": search.generation - 1,
        "fitness": [f.value if math.isfinite(f.value) else None for f in found],
        "mean": sum(values) / len(values),
        "highest": max(values),
        "best": search.best.fitness,
        "alpha": search.best.vector,
        "syncs": syncs,
        "seconds": seconds,
    }
    return entry | (
        {"elites": search.mean.tolist(), "std": search.std.tolist()} if isinstance(search, CrossEntropySearch) else {}
    )


def _settings(pool: ExpertPool, items: TaskItems, shots: Sequence[int], arguments: FewShotArguments) -> dict[str, Any]:
    """What decides the outcome: a state of other settings is not gone on from."""
    asked = [[items.prompts[row], items.grader.reference(items.rows[row])] for row in shots]
    return {
        **asdict(arguments),
        "model": model_fingerprint(pool.model_arguments.location, pool.model.config),
        "experts": {
            name: _digest((pool.folders[name] / "adapter_model.safetensors").read_bytes()) for name in pool.names
        },
        "task": items.name,
        "labelled_prompts": _digest(json.dumps(asked, default=str).encode()),
        "reward": items.grader.describe(),
        "max_tokens": items.sampling.max_tokens,
        "stop": items.sampling.stop,
        "generator": type(pool.generator).__name__,
        "dtype": pool.model_arguments.dtype,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
