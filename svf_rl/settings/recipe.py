"""A recipe: one flat YAML file. Each key is a field of one of five dataclasses, and `--key value` overrides it."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from svf_rl.described import described
from svf_rl.errors import SVFError, one_line
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.episodes import EpisodeArguments
from svf_rl.settings.kl_reference import with_kl_reference
from svf_rl.settings.limits import check_limits
from svf_rl.settings.next_token import apply_next_token_settings
from svf_rl.settings.recipe_checks import check_batch, check_engines, check_launcher, check_zero
from svf_rl.settings.recipe_paths import with_resolved_paths
from svf_rl.settings.refused_options import NOT_HERE, NOT_READ, UNSUPPORTED, refused_option
from svf_rl.settings.several_runs import RunsArguments, changes_of_runs, check_several
from svf_rl.settings.without_gpu import cpu_process_keys, drop_gpu_keys, without_autocast
from svf_rl.settings.yaml_values import fit, parse_override, read_mapping
from svf_rl.storage.bundled import find_recipe
from svf_rl.tasks.options import TaskOptions


@dataclass
class DataArguments(EpisodeArguments, TaskOptions):
    """The task, where its rows come from ([`svf_rl.tasks.TaskOptions`]), the rewards, tools and environments."""

    task: str = described("columns", "A file of svf_rl/tasks; columns is your own dataset.")
    rewards: list[str | dict[str, Any]] | str | dict[str, Any] | None = described(
        None,
        "Names, or mappings of name, weight and the reward's arguments; default: the task's, or with environment none.",
    )
    drop_long_prompts: bool = described(
        False, "Leave out rows whose prompt leaves no room for an answer, and say how many, instead of stopping."
    )

    def __post_init__(self) -> None:
        if isinstance(self.rewards, str | dict):
            self.rewards = [self.rewards]


@dataclass
class Recipe:
    """A loaded recipe. `raw`: the values that the run uses; `warnings`: what was changed and why; `lacks_gpu`: it runs
    on the CPU since there is no GPU, and not because that was said."""

    model: ModelArguments
    adapter: AdapterArguments
    data: DataArguments
    training: SVFReinforceConfig
    runs: RunsArguments
    path: Path
    raw: dict[str, Any]
    warnings: list[str]
    lacks_gpu: bool = False


_NOT_OF_A_SERVER = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size", "steps_per_generation",
    "num_generations", "num_iterations", "vllm_mode", "vllm_server_base_url", "vllm_server_host", "vllm_server_port",
)  # fmt: skip

_PARTS = (ModelArguments, AdapterArguments, DataArguments, SVFReinforceConfig, RunsArguments)


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    gpus: int | None = None,
    processes: int | None = None,
    serving: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read a recipe. Touches neither the network nor the output directory.

    Args:
        path (`str` or `Path`): the YAML file, or the name of a bundled recipe.
        overrides (`Sequence[str]`, *optional*): `--key value`, `--key=value`, or `--key` for true; the last one wins.
        gpus (`int`, *optional*): read it for this many processes with one GPU each, even if this machine has none.
        processes (`int`, *optional*): read it for this many processes on this machine.
        serving (`bool`, *optional*, defaults to `False`):
            read it for a vLLM server: without its settings of batches and of server addresses.
        changes (`Mapping`, *optional*): values in place of the recipe's and of the overrides'.

    Raises:
        SVFError: the file cannot be read, a key is unknown or given twice, a value does not fit; in one line.
    """
    path = find_recipe(path)
    values, explicit = _read(path, overrides, changes or {})
    if serving:
        values = {key: value for key, value in values.items() if key not in _NOT_OF_A_SERVER}
    _check_values(values)
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2" if deepspeed else "0")  # not set for a JSON file
    if deepspeed or int(stage):
        check_zero(values, int(stage), int(os.environ.get("WORLD_SIZE", "1")))
    if not values.setdefault("output_dir", f"runs/{path.stem}"):  # as of a variable of the shell that is not set
        raise SVFError("output_dir must not be empty: give a folder, or leave it out")
    if values.get("device") == "cpu":
        values["use_cpu"] = True
    lacks_gpu = gpus is None and not values.get("use_cpu") and not torch.cuda.is_available()
    for key, value in cpu_process_keys().items():
        values.setdefault(key, value)
    warnings: list[str] = []
    if gpus is not None:
        values, warnings = without_autocast(values)
    elif values.get("use_cpu") or not torch.cuda.is_available():
        values, warnings = drop_gpu_keys(values, explicit)
    if values.get("objective") == "next_token":
        values, changed = apply_next_token_settings(values)
        warnings += changed
    if values.get("objective") == "evolution_strategies":
        values = {**values, "vllm_weights": values.get("vllm_weights") or "shared"}
    values, said = with_kl_reference(values, int(stage))
    warnings += said
    values = with_resolved_paths(values, path.parent)
    planned = gpus or processes
    processes = planned or int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        values.pop("ddp_backend", None)  # a process alone has nobody to talk to
    check_batch(values, processes)
    warnings += check_engines(values, processes, read_alone=planned is None)
    config: Any = SVFReinforceConfig
    if planned is not None:  # transformers counts the running processes, and TRL computes batches from their number
        config = type("PlannedConfig", (SVFReinforceConfig,), {"world_size": planned})
    else:
        check_launcher()

    def build(part: Any) -> Any:
        return part(**{f.name: values[f.name] for f in fields(part) if f.name in values})

    try:
        model, adapter, data = build(ModelArguments), build(AdapterArguments), build(DataArguments)
        return Recipe(model, adapter, data, build(config), build(RunsArguments), path, values, warnings, lacks_gpu)
    except SVFError:
        raise
    # raised by TRL and transformers for settings that contradict each other or need a missing package
    except (ValueError, NotImplementedError, ImportError) as error:
        raise SVFError(f"{path}: {one_line(error)}") from error


def load_runs(recipe: Recipe, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """
    The recipe of each run that `recipe` (read with `overrides`) has by its `seeds` or `runs`, by the run's name, which
    is that of its folder in `output_dir` too; empty where it is one run. Raises `SVFError` as [`load_recipe`], and
    where the runs cannot share a model and an engine.
    """
    of_model = [f.name for part in (ModelArguments, AdapterArguments) for f in fields(part)]
    changes = changes_of_runs(recipe.runs, of_model)
    if changes:
        check_several(recipe.training, recipe.adapter, recipe.runs)
    found = {}
    for name, change in changes.items():
        own = {"seeds": None, "runs": None, "output_dir": str(Path(recipe.training.output_dir) / name)}
        try:
            found[name] = load_recipe(recipe.path, overrides, changes={**change, **own})
        except SVFError as error:
            raise SVFError(f"run {name}: {error}") from error
        for key in ("seeds", "runs"):  # as if it were alone
            del found[name].raw[key]
    return found


def _read(path: Path, overrides: Sequence[str], changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a recipe with those of the command line and with `changes`, and without those of the file."""
    wanted = {f.name: f.type for part in _PARTS for f in fields(part) if f.init}
    values = {key: fit(key, value, _type_of(key, wanted)) for key, value in read_mapping(path).items()}
    explicit = {}
    for name, text in _pairs(overrides):
        key = name.replace("-", "_")
        explicit[key] = parse_override(key, text, _type_of(key, wanted))
    explicit |= {key: fit(key, value, _type_of(key, wanted)) for key, value in changes.items()}
    return {**values, **explicit}, explicit


def _check_values(values: Mapping[str, Any]) -> None:
    """Raises `SVFError` for a key that is not for a recipe, or a value that its key cannot have."""
    for key, value in values.items():
        if key in NOT_HERE and value:
            raise SVFError(f"{key} is not set in a recipe: {NOT_HERE[key]}")
        if key in NOT_READ or key in UNSUPPORTED or (key == "remove_unused_columns" and value):
            raise refused_option(key, key)
    check_limits(values, {key: find_default(key) for key in values})
    if values.get("reward_weights") is not None:
        raise SVFError(
            "reward_weights has no effect: give each reward its weight, as in rewards: [{name: …, weight: 2}]"
        )


def find_default(key: str) -> Any:
    """The value of `key` in a recipe without it; `None` if it has no default."""
    field = next((f for part in _PARTS for f in fields(part) if f.name == key), None)
    if field is None:
        return None
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


_QUANTISED = (
    "a recipe loads no quantised weights: dtype: bfloat16 halves the memory of float32, and ZeRO-3 or "
    "vllm_tensor_parallel_size share a model out over GPUs (svf-rl plan says what fits)"
)
# What other tools call a key, or have and a recipe does not.
_ELSEWHERE = {
    "load_in_4bit": _QUANTISED, "load_in_8bit": _QUANTISED, "quantization_config": _QUANTISED,
    "quantization": _QUANTISED,
    "lr": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "steps": "max_steps",
    "batch_size": "per_device_train_batch_size", "model": "model_name_or_path",
    "lora_rank": "lora_r", "r": "lora_r", "rank": "lora_r", "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length", "group_size": "num_generations", "kl_coef": "beta", "kl_beta": "beta",
    "use_peft": "adapter", "peft_config": "adapter", "max_prompt_length": "drop_long_prompts",
    "reward_funcs": "rewards", "reward": "rewards", "lora_target": "lora_target_modules", "out": "output_dir",
}  # fmt: skip


def _type_of(key: str, wanted: Mapping[str, Any]) -> Any:
    if key not in wanted:
        known = _ELSEWHERE.get("load_in_4bit" if key.startswith("bnb_") else key)
        if known is not None:
            raise SVFError(
                f"unknown recipe key {key!r}; {f'it is called {known!r} here' if known in wanted else known}"
            )
        near = difflib.get_close_matches(key, wanted, n=1)
        if not near:
            raise SVFError(f"unknown recipe key {key!r}, and none is spelt like it: see the reference of recipe keys")
        raise SVFError(f"unknown recipe key {key!r}; the nearest one is {near[0]!r}")
    return wanted[key]


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str | None]]:
    """`--key value`, `--key=value` and `--key` as (key, text); a bare key has no text."""
    pairs: list[tuple[str, str | None]] = []
    waits = False
    for token in overrides:
        if token.startswith("--"):
            key, equals, text = token[2:].partition("=")
            pairs.append((key, text if equals else None))
            waits = not equals
        elif waits:
            pairs[-1] = (pairs[-1][0], token)
            waits = False
        else:
            raise SVFError(f"expected --key value after the recipe, got {token!r}")
    return pairs
