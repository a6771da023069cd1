"""Few-shot adaptation: the weights α of K experts, searched for on a few labelled prompts.

Transformer² (arXiv 2501.06252, section 3.2, "few-shot adaptation"): candidates for α are evaluated by letting the
combined model answer the labelled prompts, and the cross-entropy method moves towards the best. No gradient, K numbers
(or K a layer, or a matrix), and two batches of completions: for all candidates together where the generator mixes
adapters, and otherwise for each of them after a weight sync.

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
from svf_rl.adaptation.fitness import Fitness, evaluate_candidates
from svf_rl.adaptation.search import CrossEntropySearch, Search
from svf_rl.errors import SVFError
from svf_rl.evaluation.base_model import model_fingerprint
from svf_rl.evaluation.items import TaskItems
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import write_json
from svf_rl.storage.folders import is_unused
from svf_rl.storage.json_files import normalize_json, read_json
from svf_rl.storage.same_settings import check_same_settings
from svf_rl.svf.combine import normalize

# The state of a search on disk, from which one that was killed resumes.
STATE = "search.json"
_KIND = "svf-rl few-shot search"
# As states of searches name them, those of earlier versions too.
_GENERATORS = {"ColocatedVLLMGenerator": "ColocatedVLLM", "TransformersGenerator": "TransformersRollouts"}


@dataclass(frozen=True)
class FewShotResult:
    """What a search found; its costs are of all generations, those of earlier calls included."""

    experts: list[str]  # what the columns of `alpha` are of
    mix: Mix  # the combination; `mix.alpha` is `(groups, experts)`
    fitness: float  # of the best candidate, the mean over its evaluations
    shots: list[int]  # rows of the labelled items that the search saw
    history: list[dict[str, Any]]  # for each generation the figures of its candidates and of the best so far
    evaluations: int  # of candidates
    syncs: int  # of weights
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


def adapt(pool: ExpertPool, items: TaskItems, arguments: FewShotArguments, out: Path | None = None) -> FewShotResult:
    """
    Search for the weights of the pool's experts on a few of the labelled items.

    Args:
        pool ([`ExpertPool`]): the base model, its experts and a generator.
        items ([`TaskItems`]): labelled prompts to draw from.
        arguments ([`FewShotArguments`]): how many prompts, and how to search.
        out (`Path`, *optional*): a folder for the state of the search, written after each generation: the same call
            after an interruption resumes there, and ends as it would have without.

    Raises:
        SVFError: fewer labelled prompts than shots, a folder of something else or of another search, or too many
            checks that failed by themselves.
    """
    shots = draw_shots(items, arguments.shots, arguments.seed)
    labelled = items.only(shots)
    groups = pool.combination_groups(arguments.scope)
    search = arguments.search(groups, len(pool.names))
    settings = {} if out is None else normalize_json(_settings(pool, labelled, arguments))
    history = [] if out is None else _resume(search, out, settings)
    count = arguments.population
    at_once = count if pool.mixes_adapters else 1
    with tqdm(
        total=arguments.generations * count, initial=len(history) * count, desc="few-shot search", unit="candidate"
    ) as bar:
        while search.generation < arguments.generations:
            started, syncs = time.perf_counter(), pool.syncs
            mixes = [_mix(candidate, groups, arguments) for candidate in search.ask().tolist()]
            found: list[Fitness] = []
            for start in range(0, count, at_once):
                some = mixes[start : start + at_once]
                found += evaluate_candidates(pool, labelled, some, arguments, search.generation)
                bar.update(len(some))
            search.tell([f.value for f in found], [f.tie_break for f in found])
            history.append(_entry(search, found, pool.syncs - syncs, time.perf_counter() - started))
            bar.set_postfix_str(f"generation {search.generation}, best {search.best.fitness:.3f}")
            if out is not None:
                state = {"kind": _KIND, "settings": settings, "search": search.state_dict(), "history": history}
                write_json(out / STATE, state)

    chosen = search.best.vector
    if arguments.chosen == "mean" and isinstance(search, CrossEntropySearch):
        chosen = search.mean.tolist()
    return FewShotResult(
        experts=list(pool.names),
        mix=_mix(chosen, groups, arguments),
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
    if isinstance(search, CrossEntropySearch):
        entry |= {"elites": search.mean.tolist(), "std": search.std.tolist()}
    return entry


def _resume(search: Search, folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Set `search` to the state that an earlier call has stored, and give the history up to there; empty where there is
    none. Raises `SVFError` where the folder holds something else, a damaged file, or a search with other settings."""
    path = folder / STATE
    with disk_errors(path):
        if not path.is_file():
            if folder.exists() and not (folder.is_dir() and is_unused(folder)):
                raise SVFError(f"{folder} holds something else than a search: give a new or empty folder")
            return []
    shape = {"kind": str, "settings": dict, "search": dict, "history": list}
    content = read_json(path, "remove it, or give another folder", shape)
    if content["kind"] != _KIND:
        raise SVFError(f"{path} is not of a few-shot search: give another folder")
    check_same_settings(content["settings"], settings, f"{path} is of a search", "give the same, or another folder")
    search.load_state_dict(content["search"])
    return list(content["history"])


def _settings(pool: ExpertPool, labelled: TaskItems, arguments: FewShotArguments) -> dict[str, Any]:
    """What decides the outcome: a search does not resume from a state of other settings."""
    references = [labelled.grader.reference(row) for row in labelled.rows]
    asked = list(zip(labelled.prompts, references, strict=True))
    return {
        **asdict(arguments),
        "model": model_fingerprint(pool.model_arguments.location, pool.model.config),
        "experts": {
            name: _digest((pool.folders[name] / "adapter_model.safetensors").read_bytes()) for name in pool.names
        },
        "task": labelled.name,
        "labelled_prompts": _digest(json.dumps(asked, default=str).encode()),
        "reward": labelled.grader.describe(),
        "max_tokens": labelled.sampling.max_tokens,
        "stop": labelled.sampling.stop,
        "generator": _GENERATORS.get(type(pool.generator).__name__),
        "dtype": pool.model_arguments.dtype,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
