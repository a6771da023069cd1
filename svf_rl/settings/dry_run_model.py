"""The part of the dry run that looks at the model: which weights are adapted, and how many values are trained."""

from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.tensor_parallel import check_divides
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.models.loading import adapter_config, named_experts
from svf_rl.runs.provenance import looks_local
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.recipe import Recipe
from svf_rl.svf.combine import assign_groups
from svf_rl.svf.model import SVFModel
from svf_rl.svf.sharding import without_values
from svf_rl.svf.targets import as_regex, find_targets, logical_weight

# What a combination takes from its experts.
_OF_EXPERTS = (
    "target_modules", "exclude_modules", "layers_to_transform", "modules_to_save", "parameterization", "max_multiplier",
    "renormalize", "init", "init_mean", "init_std",
)  # fmt: skip


@dataclass(frozen=True)
class Adapted:
    """
    What of a model is adapted, by its configuration alone.

    Args:
        config (`PretrainedConfig`, *optional*): The base model's, where it is at hand.
        peft_config (`PeftConfig`): The adapter's; for a combination, that of its first expert.
        matrices (`list[str]`): Paths of the adapted matrices in the base model.
        trained_values (`int`): How many values are trained, those of `modules_to_save` apart.
    """

    config: PretrainedConfig | None
    peft_config: PeftConfig
    matrices: list[str]
    trained_values: int


def check_model(recipe: Recipe, notes: list[str]) -> tuple[int | None, int | None]:
    """How many matrices are adapted and how many values are trained; `None` where the model's shape is not at hand."""
    adapted = find_adapted_matrices(recipe, notes)
    return (None, None) if adapted is None else (len(adapted.matrices), adapted.trained_values)


def find_adapted_matrices(recipe: Recipe, notes: list[str]) -> Adapted | None:
    """
    Which matrices the recipe adapts; `None`, and a note that says why, where that cannot be known here.

    Raises:
        SVFError: the targets match nothing that can be adapted, or a folder is missing or broken.
    """
    if recipe.adapter.adapter == "combination":
        return _find_combination(recipe, notes)
    peft_config = _check_adapter(recipe.adapter)
    if peft_config is None:
        notes.append(f"adapter {recipe.adapter.adapter_path} comes from the Hub: its targets were not checked")
        return None
    # as the recipe names them, for the error message: the configuration holds the expression behind a preset
    targets = peft_config.target_modules
    if recipe.adapter.adapter_path is None and not isinstance(peft_config, LoraConfig):
        targets = recipe.adapter.target_modules
    config = _model_config(recipe.model)
    if config is None:
        notes.append(f"model {recipe.model.model_name_or_path} is not on this machine: its targets were not checked")
        return None
    _check_generation(config, recipe.training)
    with without_values():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
    found = find_targets(model, targets if isinstance(targets, str) else as_regex(targets))
    # PEFT's and our own rule for what is excluded and which layers are meant
    adapted = {n: m for n, m in found.items() if SVFModel._check_target_module_exists(peft_config, n)}
    shapes = [logical_weight(module).shape for module in adapted.values()]
    if isinstance(peft_config, LoraConfig):
        values = sum(peft_config.r * sum(shape) for shape in shapes)
    else:
        values = sum(min(shape) for shape in shapes)
    return Adapted(config, peft_config, list(adapted), values)


def _find_combination(recipe: Recipe, notes: list[str]) -> Adapted | None:
    adapter = recipe.adapter
    given = [key for key in _OF_EXPERTS if key in recipe.raw]
    if given:
        notes.append(f"{', '.join(given)}: not read for adapter combination, its experts have their own")
    if recipe.training.weight_decay:
        raise SVFError("weight_decay would pull the weights of a combination to 0: set weight_decay to 0")
    config = _model_config(recipe.model)
    if config is not None:
        _check_generation(config, recipe.training)
    for path in adapter.experts or []:
        if not Path(path).expanduser().is_dir():
            if looks_local(path):
                raise SVFError(f"expert {path} does not exist (working directory: {Path.cwd()})")
            notes.append(f"expert {path} comes from the Hub: it was not checked against the others")
            return None
    experts = named_experts(adapter.experts or [])
    matrices = list(experts[0].z)
    values = (max(assign_groups(matrices, adapter.alpha_scope)) + 1) * len(experts)
    return Adapted(config, experts[0].config, matrices, values)


def _check_adapter(adapter: AdapterArguments) -> PeftConfig | None:
    """The configuration of the saved adapter, or of the fresh one; `None` for a saved one on the Hub."""
    if adapter.adapter_path is None:
        return adapter_config(adapter)
    folder = Path(adapter.adapter_path)
    if not folder.is_dir():
        if looks_local(adapter.adapter_path):
            raise SVFError(f"adapter folder {folder} does not exist (working directory: {Path.cwd()})")
        return None
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        detail = " ".join(str(error).split())[:300]
        raise SVFError(f"adapter folder {folder} has no usable adapter_config.json: {detail}") from error


def _model_config(model: ModelArguments) -> PretrainedConfig | None:
    location = model.location
    if looks_local(location) and not Path(location).is_dir():
        raise SVFError(f"model folder {location} does not exist (working directory: {Path.cwd()})")
    try:
        return AutoConfig.from_pretrained(
            location,
            revision=model.model_revision or "main",
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        if Path(location).is_dir():
            detail = " ".join(str(error).split())[:300]
            raise SVFError(f"model folder {location} has no usable config.json: {detail}") from error
        return None


def _check_generation(config: PretrainedConfig, training: SVFReinforceConfig) -> None:
    if training.use_vllm:
        check_divides(config, training.vllm_tensor_parallel_size)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    for key in ("max_completion_length", "vllm_max_model_length"):
        length = getattr(training, key)
        if length is not None and length > positions:
            raise SVFError(f"{key} ({length}) is more than the model's {positions} positions: lower it")
