"""What is compared: one YAML file that names the recipes of the experts, the unseen tasks and the ablations."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from svf_rl.adaptation.arguments import FewShotArguments, FitnessWeights, check_classes
from svf_rl.errors import SVFError
from svf_rl.experts.arguments import SHARE_ALONE, EngineArguments
from svf_rl.reproduce.arguments import PARTS
from svf_rl.reproduce.methods import DISPATCH, RESERVED, is_few_shot, slug
from svf_rl.reproduce.probes import Probe, read_probe
from svf_rl.reproduce.sections import fit_keys, read_section
from svf_rl.settings.yaml_values import read_mapping
from svf_rl.storage.bundled import bundled_files, find_recipe
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.dispatch import class_labels

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class ExpertRecipe:
    """The recipe of an expert and the keys of it that are changed here."""

    name: str
    path: Path
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Unseen:
    """A task that no expert is trained on, with its options."""

    label: str
    task: str
    options: TaskOptions


@dataclass(frozen=True)
class EvaluationSettings:
    """How answers are made ([`svf_rl.experts.arguments.EngineArguments`]), and how many items of a task are reported:
    the first `limit`, or all."""

    backend: Literal["vllm", "transformers"] = EngineArguments.backend
    limit: int | None = None
    enforce_eager: bool = EngineArguments.enforce_eager
    batch_size: int | None = EngineArguments.batch_size
    gpu_memory_utilization: float = SHARE_ALONE


@dataclass(frozen=True)
class Ablations:
    """
    Args:
        experts (`list[str]`, *optional*): those that are trained once more for each variant.
        variants (`dict[str, dict]`, *optional*): a name, and the keys of the recipe that it changes.
        shots (`list[int]`, *optional*): few-shot adaptation from so many prompts, beside `few_shot: {shots: …}`.
    """

    experts: list[str] = field(default_factory=list)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    shots: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """
    A comparison as read from its file.

    Args:
        model (`str`): the base model of every run, in place of the recipes' own.
        seeds (`dict[str, list[int]]`): by part, each of its training runs, draws of shots and searches once for each.
        experts (`dict[str, ExpertRecipe]`): one expert a task.
        training (`dict`): keys that are changed in every recipe.
        lora (`dict`): keys that make the LoRA baseline of an expert's recipe; empty for no baseline.
        dispatch ([`ExpertRecipe`], *optional*): the expert that classifies prompts.
        classes (`dict[str, str]`): the expert of each class that a prompt can have.
        unseen (`list[Unseen]`): the tasks to adapt to.
        few_shot ([`FewShotArguments`]): how weights of the experts are searched for; the seed is that of the run.
        evaluation ([`EvaluationSettings`]): of all reported figures.
        ablations ([`Ablations`]): further variants.
        probes (`dict[str, Probe]`): further evaluations by name.
        weight_changes (`bool`): measure what every training run moved, with the part `probes`.
    """

    path: Path
    model: str
    seeds: dict[str, list[int]]
    experts: dict[str, ExpertRecipe]
    training: dict[str, Any]
    lora: dict[str, Any]
    dispatch: ExpertRecipe | None
    classes: dict[str, str]
    unseen: list[Unseen]
    few_shot: FewShotArguments
    evaluation: EvaluationSettings
    ablations: Ablations
    probes: dict[str, Probe]
    weight_changes: bool

    @property
    def name(self) -> str:
        return self.path.stem

    def seeds_of(self, parts: Iterable[str]) -> list[int]:
        """Those of some of the parts together."""
        return list(dict.fromkeys(seed for part in parts for seed in self.seeds[part]))

    @property
    def reserve(self) -> int:
        """How many test rows of an unseen task without validation rows are set aside for the shots: twice the largest
        number of these, whatever parts are made now."""
        return 2 * max([self.few_shot.shots, *self.ablations.shots])


_KEYS: dict[str, Any] = {
    "model": str, "seeds": list[int] | dict, "experts": dict, "training": dict, "lora": dict, "dispatch": dict | None,
    "classes": dict, "unseen": dict, "few_shot": dict, "evaluation": dict, "ablations": dict, "probes": dict,
    "weight_changes": bool,
}  # fmt: skip


def read_comparison(path: str | Path) -> Comparison:
    """
    Read the file of a comparison. Loads no recipe and no data.

    Raises:
        SVFError: the file cannot be read, a key is unknown (the line names the nearest one), a value does not fit, a
            recipe is not there, or a class names an expert that is not.
    """
    path = find_recipe(path)
    values = read_mapping(path)
    given = fit_keys("the comparison", values, _KEYS)
    for key in ("model", "experts"):
        if not given.get(key):
            raise SVFError(f"{path} needs the key {key!r}")
    experts = {str(name): _expert(str(name), spec, path.parent) for name, spec in given["experts"].items()}
    for name in experts:
        if name in RESERVED or is_few_shot(name) or not _NAME.fullmatch(name):
            raise SVFError(f"expert {name!r}: the name must be letters and digits, and none of {', '.join(RESERVED)}")
        slug(name)
    dispatch = None if given.get("dispatch") is None else _expert(DISPATCH, given["dispatch"], path.parent)
    ablations = _ablations(given.get("ablations", {}), experts)
    comparison = Comparison(
        path=path,
        model=given["model"],
        seeds=_seeds(given.get("seeds", [0])),
        experts=experts,
        training=given.get("training", {}),
        lora=given.get("lora", {}),
        dispatch=dispatch,
        classes=_classes(given.get("classes", {}), experts, dispatch),
        unseen=[_unseen(str(label), spec) for label, spec in given.get("unseen", {}).items()],
        few_shot=_few_shot(given.get("few_shot", {})),
        evaluation=read_section("evaluation", given.get("evaluation", {}), EvaluationSettings),
        ablations=ablations,
        probes={
            str(name): read_probe(str(name), spec, experts, ablations.variants, path.parent)
            for name, spec in given.get("probes", {}).items()
        },
        weight_changes=given.get("weight_changes", False),
    )
    if comparison.dispatch is not None and not comparison.classes:
        raise SVFError("a dispatch expert needs classes: {math: NAME, …}, the expert of each class")
    labels = {"unseen tasks": [task.label for task in comparison.unseen], "probes": list(comparison.probes)}
    for what, names in labels.items():
        folders: dict[str, str] = {}
        for name in names:
            if other := folders.get(slug(name)):
                raise SVFError(f"{what} {other!r} and {name!r} would share a folder: rename one")
            folders[slug(name)] = name
    return comparison


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds. Raises `SVFError` for none, one that NumPy does not take, and one that comes twice."""
    if not seeds:
        raise SVFError("seeds is empty: name at least one, as in 0,1,2")
    for seed in seeds:
        if not 0 <= seed < 2**32 or list(seeds).count(seed) > 1:
            raise SVFError(f"seeds must be different numbers from 0 to {2**32 - 1}, not {','.join(map(str, seeds))}")
    return list(seeds)


def _seeds(given: Sequence[int] | Mapping[Any, Any]) -> dict[str, list[int]]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(PARTS, check_seeds(given))
    by_part = fit_keys("seeds", given, dict.fromkeys(PARTS, list[int]))
    if missing := [part for part in PARTS if part not in by_part]:
        raise SVFError(f"seeds by part: {', '.join(missing)} has none; give one list for all parts, or one for each")
    return {part: check_seeds(seeds) for part, seeds in by_part.items()}


def _expert(name: str, spec: Any, folder: Path) -> ExpertRecipe:
    if not isinstance(spec, dict) or not isinstance(spec.get("recipe"), str):
        raise SVFError(f"expert {name!r} must be a mapping with a recipe, as in {{recipe: quickstart}}")
    path = folder / Path(spec["recipe"]).expanduser()
    path = path if path.is_file() else bundled_files("recipes").get(spec["recipe"], path)
    if not path.is_file():
        raise SVFError(f"expert {name!r}: there is no recipe {path}")
    return ExpertRecipe(name, path.resolve(), {key: value for key, value in spec.items() if key != "recipe"})


def _classes(
    given: Mapping[Any, Any], experts: Mapping[str, ExpertRecipe], dispatch: ExpertRecipe | None
) -> dict[str, str]:
    if given:
        keys = {} if dispatch is None else {**read_mapping(dispatch.path), **dispatch.overrides}
        check_classes(given, class_labels(keys.get("classes")))
    for label, name in given.items():
        if not isinstance(name, str) or name not in experts:
            raise SVFError(f"classes: {label} names the expert {name!r}; the experts are {', '.join(experts)}")
    return dict(given)


def _unseen(label: str, spec: Any) -> Unseen:
    if not isinstance(spec, dict) or not isinstance(spec.get("task"), str):
        raise SVFError(f"unseen task {label!r} must be a mapping with a task, as in {{task: humaneval}}")
    find_task(spec["task"])
    options = read_section(f"unseen task {label!r}", {k: v for k, v in spec.items() if k != "task"}, TaskOptions)
    return Unseen(label, spec["task"], options)


def _few_shot(given: Mapping[Any, Any]) -> FewShotArguments:
    if "seed" in given:
        raise SVFError("few_shot takes no seed: it is that of the run, see seeds")
    parts = given.get("weights", {})
    if not isinstance(parts, dict):
        raise SVFError("few_shot: weights must be a mapping, as in {greedy: 0.5, sampled: 0.5}")
    weights = read_section("few_shot: weights", parts, FitnessWeights)
    others = {key: value for key, value in given.items() if key != "weights"}
    return read_section("few_shot", others, FewShotArguments, weights=weights)


def _ablations(given: Mapping[Any, Any], experts: Mapping[str, ExpertRecipe]) -> Ablations:
    ablations = read_section("ablations", given, Ablations)
    for name in ablations.experts:
        if name not in experts:
            raise SVFError(f"ablations: there is no expert {name!r}; the experts are {', '.join(experts)}")
    names = [slug(str(name)) for name in ablations.variants]
    for name, changes in ablations.variants.items():
        plain = slug(str(name))
        if not isinstance(changes, dict) or plain.lower() in RESERVED or names.count(plain) > 1:
            raise SVFError(f"ablations: variant {name!r} must have a name of its own and the keys that it changes")
    for shots in ablations.shots:
        if shots < 1:
            raise SVFError(f"ablations: shots must be at least 1, not {shots}")
    if ablations.variants and not ablations.experts:
        raise SVFError("ablations: name the experts that are trained in each variant, as in experts: [math]")
    return ablations
