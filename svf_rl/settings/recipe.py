"""A recipe: one flat YAML file. Each key is a field of one of five dataclasses, and `--key value` overrides it."""

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from svf_rl.described import described
from svf_rl.errors import SVFError, one_line
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.settings.config import SVFReinforceConfig, next_token_settings
from svf_rl.settings.episodes import EpisodeArguments
from svf_rl.settings.kl_reference import with_kl_reference
from svf_rl.settings.limits import check_limits
from svf_rl.settings.recipe_checks import check_batch, check_engines, check_launcher, check_zero
from svf_rl.settings.refused_options import NOT_HERE, NOT_READ, UNSUPPORTED, refused_option
from svf_rl.settings.several_runs import RunsArguments, changes_of_runs, check_several
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
    values.setdefault("output_dir", f"runs/{path.stem}")
    if values.get("device") == "cpu":
        values["use_cpu"] = True
    lacks_gpu = gpus is None and not values.get("use_cpu") and not torch.cuda.is_available()
    for key, value in _of_cpu_processes().items():
        values.setdefault(key, value)
    warnings: list[str] = []
    if gpus is not None:
        values, warnings = _without_autocast(values)
    elif values.get("use_cpu") or not torch.cuda.is_available():
        values, warnings = drop_gpu_keys(values, explicit)
    if values.get("objective") == "next_token":
        values, changed = apply_next_token_settings(values)
        warnings += changed
    if values.get("objective") == "evolution_strategies":
        values = {**values, "vllm_weights": values.get("vllm_weights") or "shared"}
    values, said = with_kl_reference(values, int(stage))
    warnings += said
    values = _with_resolved_paths(values, path.parent)
    planned = gpus or processes
    processes = planned or int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        values.pop("ddp_backend", None)  # a process alone has nobody to talk to
    check_batch(values, processes)
    warnings += check_engines(values, processes, read_alone=planned is None)
    # Evaluation here has no batches, but TRL checks theirs.
    settings = {**values, "per_device_eval_batch_size": max(2, values.get("num_generations") or 8)}
    config: Any = SVFReinforceConfig
    if planned is not None:  # transformers counts the running processes, and TRL computes batches from their number
        config = type("PlannedConfig", (SVFReinforceConfig,), {"world_size": planned})
    else:
        check_launcher()

    def build(part: Any) -> Any:
        return part(**{f.name: settings[f.name] for f in fields(part) if f.name in settings})

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


def _of_cpu_processes() -> dict[str, Any]:
    """Settings without which each process that accelerate starts on the CPU would count as the only one: not all of its
    launchers pass on its `use_cpu`, and TrainingArguments does not read it."""
    launched = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        if on_cpu:
            raise SVFError("with ACCELERATE_USE_CPU in the environment accelerate leaves DeepSpeed out: unset it")
        return {"ddp_backend": "gloo"} if launched else {}
    return {"use_cpu": True} if launched or on_cpu else {}


def drop_gpu_keys(values: Mapping[str, Any], explicit: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The values for a machine without CUDA, and one line for each that was changed.

    A half-precision `dtype` becomes float32, unless it is among the `explicit` keys: on a CPU it works, only slowly.
    """
    kept, warnings = dict(values), []
    for key in ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "vllm_enable_sleep_mode"):
        # `bf16: null` would let TRL turn it on
        if kept.get(key, False) is not False:
            kept[key] = False
            warnings.append(f"no CUDA device: {key} is off")
    if "vllm_gpu_memory_utilization" in kept:
        del kept["vllm_gpu_memory_utilization"]
        warnings.append("no CUDA device: vllm_gpu_memory_utilization has no effect")
    if kept.get("dtype") in ("bfloat16", "float16") and "dtype" not in explicit:
        warnings.append(f"no CUDA device: dtype is float32 (--dtype {kept['dtype']} keeps what the recipe says)")
        kept["dtype"] = "float32"
    if str(kept.get("attn_implementation")).startswith("flash_attention"):
        warnings.append(f"no CUDA device: attn_implementation is sdpa instead of {kept['attn_implementation']}")
        kept["attn_implementation"] = "sdpa"
    return kept, warnings


def _without_autocast(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values without those that transformers refuses without a GPU, and one line for each that matters."""
    kept = {key: value for key, value in values.items() if key not in ("use_cpu", "tf32")}
    warnings = []
    for key in ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"):
        if kept.pop(key, False):
            warnings.append(f"{key}: the half-precision copies of autocast are not part of the plan")
    return kept, warnings


def apply_next_token_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values with those of next-token training, and one line for each that differs in the recipe."""
    fixed = next_token_settings(values.get("kl_type", "policy_ref"))
    lines = [
        f"objective next_token: {key} is {value}, not {values[key]}"
        for key, value in fixed.items()
        if key in values and values[key] != value
    ]
    return {**values, **fixed}, lines


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
    "batch_size": "per_device_train_batch_size", "model": "model_name_or_path", "dataset": "dataset_name",
    "lora_rank": "lora_r", "r": "lora_r", "rank": "lora_r", "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length", "group_size": "num_generations", "kl_coef": "beta", "kl_beta": "beta",
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


def _with_resolved_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Files that do not exist relative to the working directory are taken from the recipe's folder, if they exist
    there."""

    def resolve(name: str) -> str:
        path = os.path.expanduser(name)  # noqa: PTH111  (pathlib raises for an unknown user, and for long names)
        if not os.path.exists(path) and os.path.exists(folder / path):  # noqa: PTH110
            return str(folder / path)
        return path

    def resolve_code(spec: Any, in_keys: Collection[str]) -> Any:
        if isinstance(spec, Mapping):
            return {name: resolve_code(v, in_keys) if name in in_keys else v for name, v in spec.items()}
        if isinstance(spec, str):
            file, colon, function = spec.rpartition(":")
            return resolve(file) + colon + function if file.endswith(".py") else spec
        return spec

    resolved = dict(values)
    code = {"rewards", "tools", "environment", "rollout_func"}
    for key in {"data_path", "data_dir", "adapter_path", "experts", *code} & resolved.keys():
        value = resolved[key]
        names = value.keys() if key == "environment" and isinstance(value, Mapping) else ("name",)
        find = partial(resolve_code, in_keys=names) if key in code else resolve
        if value is not None:
            resolved[key] = [find(each) for each in value] if isinstance(value, list) else find(value)
    return resolved
