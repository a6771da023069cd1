"""The part of the dry run that looks at the model: which weights are adapted, and how many values are trained."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoHfQuantizer

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.vllm.tensor_parallel import check_divides
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.hub_config import fetch_config
from svf_rl.models.kinds import AdapterKind
from svf_rl.models.kinds.svf import no_place_for_bias
from svf_rl.models.loading import load_tokenizer
from svf_rl.rewards.reward import nearest
from svf_rl.runs.provenance import looks_local
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.recipe import Recipe
from svf_rl.storage.loading_errors import check_no_adapter, loading_error
from svf_rl.svf.saved_config import read_config
from svf_rl.svf.sharding import without_values


@dataclass(frozen=True)
class Adapted:
    """What of a model is adapted, by its configuration alone."""

    config: PretrainedConfig | None  # the base model's, where it is on this machine
    kind: AdapterKind
    peft_config: PeftConfig  # as saved where the recipe names a saved adapter; for a combination, of its first expert
    matrices: list[str]  # paths in the base model
    trained_values: int  # those of `modules_to_save` apart
    parameters: int | None  # of the base model


def find_adapted_matrices(recipe: Recipe, notes: list[str]) -> Adapted | None:
    """
    Which matrices the recipe adapts; `None`, and a note that says why, where that cannot be known here.

    Raises:
        SVFError: the targets match nothing that can be adapted, or a folder is missing or broken.
    """
    arguments, kind = recipe.adapter, recipe.adapter.kind
    kind.check_training(recipe.raw)
    ignored = [key for key in kind.not_read if key in recipe.raw]
    if ignored:
        notes.append(f"{', '.join(ignored)}: not read for adapter {kind.name}")
    for path in (arguments.adapter_path, *(arguments.experts or [])):
        if path is not None and not os.path.isdir(path):  # noqa: PTH112  (pathlib raises for long names)
            if looks_local(path):
                raise SVFError(f"adapter folder {path} does not exist (working directory: {Path.cwd()})")
            notes.append(f"adapter {path} comes from the Hub: it was not checked")
            return None
    described = peft_config = kind.config(arguments)
    if arguments.adapter_path is not None:
        peft_config = read_config(Path(arguments.adapter_path))
    model = None
    config, missing = _model_config(recipe.model)
    if config is not None:
        check_no_adapter(recipe.model.location)
        _check_generation(config, recipe.training)
        model = _empty_model(config, recipe.model)
        _check_modules_to_save(model, peft_config)
        if arguments.adapter_path is not None:
            kind.check_saved(Path(arguments.adapter_path), peft_config, described, model)
    found = kind.find_matrices(arguments, peft_config, model)
    if found is None:
        name = recipe.model.model_name_or_path
        notes.append(f"model {name} is not on this machine, and {missing}: its targets were not checked")
        return None
    if model is not None and recipe.training.use_vllm and getattr(peft_config, "biases", False):
        for name in found[0]:
            if model.get_submodule(name).bias is None:
                raise no_place_for_bias(name)
    return Adapted(config, kind, peft_config, *found, None if model is None else model.num_parameters())


def _empty_model(config: PretrainedConfig, model: ModelArguments) -> PreTrainedModel:
    """The model without values. Raises `SVFError` for one that cannot be built, or is none that writes text."""
    remote = getattr(config, "auto_map", {}) if model.trust_remote_code else {}
    if type(config) not in AutoModelForCausalLM._model_mapping and "AutoModelForCausalLM" not in remote:
        raise SVFError(
            f"model {model.model_name_or_path} is a {config.model_type} model, for which transformers has no causal "
            "language model: choose one that continues text"
        )
    try:
        with without_values():
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=model.attn_implementation, trust_remote_code=model.trust_remote_code
            )
    except (RuntimeError, ValueError, ImportError, TypeError, AttributeError, LookupError) as error:
        raise _unusable(model, error) from error


def check_quantizer(config: PretrainedConfig | None, model: ModelArguments) -> None:
    """Raises `SVFError` where a quantised checkpoint cannot be loaded for want of a package; a plan loads none."""
    quantised = getattr(config, "quantization_config", None)
    try:
        if quantised is not None:
            AutoHfQuantizer.from_config(quantised, pre_quantized=True).validate_environment()
    except RuntimeError:
        pass  # a GPU that is not there, where a recipe is only checked
    except (ValueError, ImportError, TypeError, AttributeError, LookupError) as error:
        raise _unusable(model, error) from error


def _unusable(model: ModelArguments, error: Exception) -> SVFError:
    attention = f" with attn_implementation {model.attn_implementation!r}" if model.attn_implementation else ""
    return SVFError(
        f"model {model.model_name_or_path}{attention} cannot be built: {type(error).__name__}: {one_line(error)}"
    )


def _check_modules_to_save(model: PreTrainedModel, config: PeftConfig) -> None:
    """PEFT ignores a name that no module has."""
    names = [name for name, _ in model.named_modules() if name]
    last = {last for name in names if not (last := name.rpartition(".")[2]).isdigit()}
    for wanted in getattr(config, "modules_to_save", None) or []:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            raise SVFError(f"modules_to_save: no module is called {wanted!r}{nearest(wanted, last)}")


def find_tokenizer(model: ModelArguments, notes: list[str]) -> PreTrainedTokenizerBase | None:
    """The tokenizer where it is on this machine; `None`, and a note, where it is not. Raises `SVFError` for a folder
    with weights and without a tokenizer."""
    folder = Path(model.location)
    has_weights = folder.is_dir() and any(folder.glob("*.safetensors")) | any(folder.glob("*.bin"))
    try:
        return load_tokenizer(model, local_files_only=True)
    except SVFError:
        if has_weights:
            raise
        notes.append(f"the tokenizer of {model.model_name_or_path} is not on this machine: prompts were not checked")
        return None


def find_positions(model: ModelArguments) -> int | None:
    """[`positions_of`] a model that is on this machine by now."""
    return positions_of(_model_config(model)[0])


def positions_of(config: PretrainedConfig | None) -> int | None:
    """How many tokens the model can read; `None` where that is not limited, or not known."""
    return None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)


def _model_config(model: ModelArguments) -> tuple[PretrainedConfig | None, str]:
    """The configuration, from the Hub where it is not on this machine; `None`, and why, where it cannot be had."""
    location = model.location
    is_folder = os.path.isdir(location)  # noqa: PTH112  (Path raises for a name that is too long)
    if looks_local(location) and not is_folder:
        raise SVFError(f"model folder {location} does not exist (working directory: {Path.cwd()})")
    given: dict[str, Any] = {"revision": model.model_revision or "main", "trust_remote_code": model.trust_remote_code}
    try:
        return AutoConfig.from_pretrained(location, **given, local_files_only=True), ""
    except (OSError, ValueError) as error:
        if is_folder:
            check_no_adapter(location)
            raise SVFError(f"model folder {location} has no usable config.json: {one_line(error)}") from error
    if missing := fetch_config(location, model.model_revision):
        return None, missing
    try:  # code that is trusted is fetched with it
        return AutoConfig.from_pretrained(location, **given, local_files_only=not model.trust_remote_code), ""
    except (OSError, ValueError) as error:
        raise loading_error("model", location, error, model.model_revision) from error


def _check_generation(config: PretrainedConfig, training: SVFReinforceConfig) -> None:
    if training.use_vllm:
        check_divides(config, training.vllm_tensor_parallel_size)
    positions = positions_of(config)
    if positions is None:
        return
    for key in ("max_completion_length", "vllm_max_model_length", "pad_to_multiple_of"):
        length = getattr(training, key)
        if isinstance(length, int) and length > positions:
            raise SVFError(f"{key} ({length}) is more than the model's {positions} positions: lower it")
