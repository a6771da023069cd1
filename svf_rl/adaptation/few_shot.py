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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from svf_rl.adaptation.arguments import FewShotArguments
from svf_rl.adaptation.ask_tell import Search
from svf_rl.adaptation.fitness import Fitness
from svf_rl.adaptation.search import CrossEntropySearch
from svf_rl.adaptation.search_file import SearchFile
from svf_rl.adaptation.trial import Trial
from svf_rl.errors import SVFError
from svf_rl.evaluation.base_model import model_fingerprint
from svf_rl.evaluation.items import TaskItems
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.svf.combine import normalize

# As states of searches name them, those of earlier versions too.
_GENERATORS = {"ColocatedVLLMGenerator": "ColocatedVLLM", "TransformersGenerator": "TransformersRollouts"}


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
            after an interruption resumes there, and ends as it would have without.

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
    """What decides the outcome: a search does not resume from a state of other settings."""
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
        "generator": _GENERATORS.get(type(pool.generator).__name__),
        "dtype": pool.model_arguments.dtype,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
