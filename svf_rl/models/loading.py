"""From a recipe's arguments to a model with its adapter, and its tokenizer."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.storage.path_names import path_names
from svf_rl.svf import SVFConfig
from svf_rl.svf.checkpoint import decompose_checkpoint
from svf_rl.svf.expert import Expert, check_same_base, distinct_adapter_names, expert_folder, read_expert
from svf_rl.svf.targets import as_regex, target_regex


def load_tokenizer(model: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs it."""
    try:
        return AutoTokenizer.from_pretrained(
            model.location,
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
            padding_side="left",
        )
    except (OSError, ValueError) as error:
        raise SVFError(f"no tokenizer in {model.location}: {_first_line(error)}") from error


def load_base(model: ModelArguments) -> PreTrainedModel:
    """The base model, on the CPU."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.model_revision,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise SVFError(f"cannot load the model {model.location}: {_first_line(error)}") from error


def load_adapted(model: ModelArguments, adapter: AdapterArguments) -> PeftModel:
    """The base model with the adapter that is to be trained."""
    base = load_base(model)
    if adapter.adapter == "combination":
        return load_combination(model, adapter, base)
    config = adapter_config(adapter) if adapter.adapter_path is None else saved_config(adapter)
    fill_factor_cache(model, config, base.dtype)
    return get_peft_model(base, config) if adapter.adapter_path is None else load_saved(base, adapter.adapter_path)


def load_combination(model: ModelArguments, adapter: AdapterArguments, base: PreTrainedModel) -> PeftModel:
    """`base` with a combination of the recipe's experts, whose weights are to be trained."""
    experts = named_experts(adapter.experts or [])
    fill_factor_cache(model, experts[0].config, base.dtype)
    first, *rest = experts
    adapted = load_saved(base, str(first.folder), first.name)
    for expert in rest:
        adapted.load_adapter(str(expert.folder), expert.name)
    names = [expert.name for expert in experts]
    adapted.add_combination_adapter(names, "default", adapter.alpha_scope, adapter.alpha_form, adapter.alpha_normalized)
    adapted.set_adapter("default")
    for name in names:  # the combination has their masks
        adapted.delete_adapter(name)
    return adapted


def named_experts(paths: Sequence[str]) -> list[Expert]:
    """The experts of these folders, checked against one another and named apart: `math`, or `runs-math` where two
    folders are called `math`. Raises `SVFError` for one that is missing, or does not go with the others."""
    names = path_names([expert_folder(path) for path in paths], taken=("default",), separator="-")
    adapters = distinct_adapter_names(names)
    experts = [read_expert(path, adapters[name]) for path, name in zip(paths, names, strict=True)]
    check_same_base(experts)
    return experts


def fill_factor_cache(model: ModelArguments, config: PeftConfig, dtype: torch.dtype) -> None:
    """For SVF, put the factors of the targeted weights into the cache, a matrix at a time, once for all processes, so
    that injecting the adapter finds them there."""
    if isinstance(config, SVFConfig):
        decompose_checkpoint(
            model.location,
            as_regex(config.target_modules),
            dtype,
            device="cuda" if torch.cuda.is_available() else "cpu",
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
        )


def saved_config(adapter: AdapterArguments) -> PeftConfig:
    """The configuration of the adapter in `adapter_path`; it must be the one that the recipe describes."""
    path = str(adapter.adapter_path)
    try:
        saved = PeftConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SVFError(f"no adapter in {path}: {_first_line(error)}") from error
    wanted = adapter_config(adapter)
    if saved.peft_type != wanted.peft_type:
        raise SVFError(f"{path} holds a {saved.peft_type} adapter, the recipe says adapter: {adapter.adapter}")
    for name in ("target_modules", "parameterization", "max_multiplier", "renormalize", "r"):
        if _plain(getattr(saved, name, None)) != _plain(getattr(wanted, name, None)):
            raise SVFError(f"the adapter in {path} has {name}={getattr(saved, name)!r}: give the recipe the same value")
    return saved


def load_saved(base: torch.nn.Module, path: str, name: str = "default") -> PeftModel:
    """`base` with a saved adapter, to be trained further."""
    try:
        return PeftModel.from_pretrained(base, path, adapter_name=name, is_trainable=True)
    except SVFError:
        raise
    except SafetensorError as error:
        raise SVFError(f"the adapter file in {path} is damaged ({_first_line(error)}): save it again") from error
    except (OSError, ValueError, KeyError) as error:
        raise SVFError(f"no adapter in {path}: {_first_line(error)}") from error
    except RuntimeError as error:  # PEFT's, where shapes differ
        detail = " ".join(str(error).split())[:300]
        raise SVFError(f"the adapter in {path} does not fit this base model: {detail}") from error


def adapter_config(adapter: AdapterArguments) -> PeftConfig:
    """The PEFT configuration that the recipe asks for."""
    if adapter.adapter == "lora":
        targets = adapter.lora_target_modules or adapter.target_modules
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.lora_r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            exclude_modules=adapter.exclude_modules,
            layers_to_transform=adapter.layers_to_transform,
            modules_to_save=adapter.modules_to_save,
            target_modules=target_regex(targets) if isinstance(targets, str) else targets,
        )
    return SVFConfig(
        task_type="CAUSAL_LM",
        target_modules=adapter.target_modules,
        parameterization=adapter.parameterization,
        max_multiplier=adapter.max_multiplier,
        renormalize=adapter.renormalize,
        init=adapter.init,
        init_mean=adapter.init_mean,
        init_std=adapter.init_std,
        exclude_modules=adapter.exclude_modules,
        layers_to_transform=adapter.layers_to_transform,
        modules_to_save=adapter.modules_to_save,
    )


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, list | set) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
