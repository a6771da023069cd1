"""What an adapter kind is: how it is configured, put onto a model, saved, planned and described."""

import importlib
import math
import pkgutil
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from svf_rl.errors import SVFError, one_line
from svf_rl.markdown import code
from svf_rl.storage.same_settings import check_same_settings
from svf_rl.svf.expert import FINGERPRINT, PROBE, RANK, Expert, expert_folder
from svf_rl.svf.model import SVFModel
from svf_rl.svf.saved_config import WEIGHTS, read_config
from svf_rl.svf.targets import PRESETS, find_targets, logical_weight, regex_of

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments, ModelArguments


# What a recipe says of an adapter of one kind alone, by the names of its arguments.
OF_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_use_dora", "lora_target_modules")
OF_SVF = (
    "core", "core_seed", "biases", "parameterization", "max_multiplier", "renormalize", "init", "init_mean", "init_std",
)  # fmt: skip
OF_COMBINATION = ("alpha_scope", "alpha_form", "alpha_normalized")


class AdapterKind:
    """
    One adapter kind. Its module in this folder holds an object of a subclass as `KIND`; that is all it takes to be
    found. An object of this class itself stands for methods of PEFT that have no file here: the trainer takes them,
    and their saved adapters are listed and published.

    Args:
        name (`str`): The name in recipes.
        peft_type (`str`, *optional*): PEFT's name, in `adapter_config.json`; `None` where what is saved is an adapter
            of another kind.
    """

    title: str = ""
    """What a model card calls the method; by default PEFT's name."""
    limits: tuple[str, ...] = ()
    """What a model card says about using such an adapter, a point each."""
    import_line: str | None = None
    """What code has to import before PEFT can load such an adapter."""
    same_as_saved: tuple[str, ...] = ()
    """Settings that a recipe must have as the saved adapter it trains further has them, beside what is adapted."""
    not_read: tuple[str, ...] = ()
    """Recipe keys that other kinds read, and this one does not."""

    def __init__(self, name: str, peft_type: str | None = None):
        self.name, self.peft_type = name, peft_type
        self.title = self.title or str(peft_type)

    # ---- in a recipe

    def check_arguments(self, arguments: "AdapterArguments") -> None:
        """Raises `SVFError` where the recipe's arguments do not suit the kind."""
        if arguments.experts:
            raise SVFError("experts are for adapter: combination: set it, or remove experts")

    def check_training(self, values: Mapping[str, Any], zero_stage: int = 0) -> None:
        """Raises `SVFError` where the kind cannot be trained with these values of a recipe under this ZeRO stage."""
        if values.get("vllm_weights") == "shared" and values.get("modules_to_save"):
            raise SVFError("vllm_weights: shared does not go with modules_to_save: set it to merged")

    def config(self, arguments: "AdapterArguments") -> PeftConfig:
        """The PEFT configuration that the recipe asks for. Raises `SVFError` for values that do not suit."""
        raise NotImplementedError

    def describe(self, arguments: "AdapterArguments") -> str:
        """A few words for the dry run."""
        raise NotImplementedError

    def find_matrices(
        self, arguments: "AdapterArguments", config: PeftConfig, model: nn.Module | None
    ) -> tuple[list[str], int] | None:
        """Paths of the matrices that an adapter of `config`, fresh or saved, adapts, and how many values are trained,
        those of `modules_to_save` apart; `None` where this cannot be known without the base `model`, of which no
        values are read. Raises `SVFError` where the targets match nothing that can be adapted."""
        if model is None:
            return None
        shapes = {name: tuple(logical_weight(module).shape) for name, module in _adapted(config, model).items()}
        return list(shapes), self.trained_values(config, shapes)

    def trained_values(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """How many values are trained for matrices of these shapes `(out, in)`, by path."""
        raise NotImplementedError

    # ---- on a model

    def prepare(self, model: "ModelArguments", config: PeftConfig, dtype: torch.dtype) -> None:
        """What is done once for all processes before an adapter of `config` is put onto the base model in `dtype`."""

    def put_on(self, base: PreTrainedModel, model: "ModelArguments", arguments: "AdapterArguments") -> PeftModel:
        """`base` with the adapter that is to be trained: a new one, or that of `adapter_path`, which must be the one
        that the recipe describes (`SVFError`)."""
        config, given = self.config(arguments), arguments.adapter_path
        if given is None:
            self.prepare(model, config, base.dtype)
            return get_peft_model(base, _narrowed(config, base))
        path = expert_folder(given)
        self.check_saved(path, read_config(path), config, base)
        return load_saved(base, model, path)

    def check_saved(self, path: Path, saved: PeftConfig, config: PeftConfig, model: nn.Module) -> None:
        """Raises `SVFError` where the adapter in `path`, of the configuration `saved`, is not the one that a recipe
        with `config` describes, on this base model."""
        if kind_of(saved) is not self:
            raise SVFError(f"{path} holds a {kind_of(saved).peft_type} adapter, the recipe says adapter: {self.name}")
        names = [*self.same_as_saved, "modules_to_save"]
        if _adapted(saved, model).keys() != _adapted(config, model).keys():  # else said in other words
            names += ["target_modules", "exclude_modules", "layers_to_transform"]
        there, here = ({name: _comparable(getattr(each, name, None)) for name in names} for each in (saved, config))
        check_same_settings(there, here, f"the adapter in {path} was trained", "give the recipe the same values")

    def rebuilt_weight(self, layer: Any) -> Tensor | None:
        """A new tensor: the weight that `layer` acts as, in the layout and type of its base layer's; `None` where no
        weight says all that the adapter changes."""
        return None

    def rebuilt_bias(self, layer: Any) -> Tensor | None:
        """A new tensor: the bias beside [`rebuilt_weight`] where the adapter changes it, else `None`. Raises `SVFError`
        where the base model has none in this place, and neither a model nor an engine could take it."""
        return None

    # ---- without values, for the memory plan

    def put_on_empty(
        self, model: Any, matrices: Sequence[str], config: PeftConfig, arguments: "AdapterArguments"
    ) -> nn.Module:
        """`model`, which is on the meta device, with the adapter that is to be trained, there too."""
        config.inference_mode = False  # a saved one is to be trained further
        return get_peft_model(model, _narrowed(config, model), low_cpu_mem_usage=True)

    def frozen_bytes(
        self, shapes: Sequence[tuple[int, int]], itemsize: int, arguments: "AdapterArguments"
    ) -> dict[str, int]:
        """Bytes that the adapter of matrices of these shapes `(out, in)` holds beside what is trained, as fields of
        `svf_rl.memory.arithmetic.TensorBytes`, in a model whose values have `itemsize` bytes."""
        return {}

    def rebuild_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        """Bytes at the peak of [`rebuilt_weight`] of `(out, in)`: here `W`, its change and their sum in fp32, and the
        result."""
        return shape[0] * shape[1] * (12 + itemsize)

    # ---- saved

    def label(self, config: Mapping[str, Any]) -> str:
        """What a table calls a saved adapter; `config` is the content of `adapter_config.json`."""
        return f"{self.peft_type} r={config['r']}" if "r" in config else str(self.peft_type)

    def describe_saved(self, config: Mapping[str, Any]) -> str:
        """The method of a saved adapter, for its model card."""
        rank = f" of rank {config['r']}, alpha {config.get('lora_alpha')}," if "r" in config else ""
        return f"{self.peft_type}{rank} on {named_targets(config)}."

    def read_expert(self, folder: Path, config: Mapping[str, Any], name: str | None = None) -> Expert | None:
        """The saved adapter as an expert of SVF; `None` where it is not one. Raises `SVFError` for a damaged file."""
        return None

    def count_values(self, folder: Path, config: Mapping[str, Any]) -> int:
        """How many values were trained, from the saved weights. Raises `SVFError` where they are missing or damaged."""
        return sum(self.stored_sizes(folder).values())

    def stored_sizes(self, folder: Path) -> dict[str, int]:
        """How many values each trained tensor has, by its name in the file. Raises `SVFError` as [`count_values`]."""
        file = folder / WEIGHTS
        try:
            with safe_open(file, framework="pt") as saved:
                names = [name for name in saved.keys() if not name.endswith((FINGERPRINT, PROBE, RANK))]  # noqa: SIM118
                return {name: math.prod(saved.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise SVFError(f"{file} is missing or damaged: save the adapter again") from error


def _adapted(config: PeftConfig, model: nn.Module) -> dict[str, nn.Module]:
    targets = regex_of(config)
    found = find_targets(model, PRESETS.get(targets, targets), listed=not isinstance(config.target_modules, str))
    # PEFT's and our own rule for what is excluded and which layers are meant
    adapted = {n: m for n, m in found.items() if SVFModel._check_target_module_exists(config, n)}
    if not adapted:
        raise SVFError("the targets are left without a layer: change layers_to_transform or exclude_modules")
    return adapted


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | set) else PRESETS.get(str(value), value)


def _narrowed(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """PEFT adapts, saves or refuses all that the targets match: where that is more than matrices, such as what holds
    them, these are named one by one."""
    matched = {name for name, _ in model.named_modules() if name and SVFModel._check_target_module_exists(config, name)}
    if matched != (adapted := _adapted(config, model)).keys():
        config.target_modules = sorted(adapted)
    return config


@cache
def all_kinds() -> dict[str, AdapterKind]:
    """Every `KIND` of the modules in this folder, by name."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    return {module.KIND.name: module.KIND for module in modules if hasattr(module, "KIND")}


def find_kind(name: str) -> AdapterKind:
    """The kind of that name in recipes. Raises `SVFError` when there is none."""
    kinds = all_kinds()
    if name not in kinds:
        raise SVFError(f"unknown adapter {name!r}: use one of {', '.join(sorted(kinds))}")
    return kinds[name]


def kind_of(config: PeftConfig | Mapping[str, Any]) -> AdapterKind:
    """The kind of a saved adapter, by its configuration or the content of `adapter_config.json`."""
    peft_type = config.get("peft_type", "PEFT") if isinstance(config, Mapping) else config.peft_type
    peft_type = str(getattr(peft_type, "name", peft_type))
    found = (kind for kind in all_kinds().values() if kind.peft_type == peft_type)
    return next(found, AdapterKind(peft_type.lower(), peft_type))


def kind_of_model(model: Any) -> AdapterKind:
    """The kind of the adapters of a model."""
    return kind_of(next(iter(model.peft_config.values())))


def load_saved(base: Any, model: "ModelArguments", path: str | Path, name: str = "default") -> PeftModel:
    """`base`, a model of `model` with or without other adapters, with a saved adapter, to be trained further. Raises
    `SVFError` for one that is missing, damaged, or of another base model."""
    folder = expert_folder(path)
    config = read_config(folder)
    kind_of(config).prepare(model, config, base.dtype)
    try:
        if isinstance(base, PeftModel):
            base.load_adapter(str(folder), name, is_trainable=True)
            return base
        return PeftModel.from_pretrained(base, str(folder), adapter_name=name, is_trainable=True)
    except SVFError:
        raise
    except SafetensorError as error:
        raise SVFError(f"the adapter file in {path} is damaged ({one_line(error)}): save it again") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SVFError(f"no adapter in {path}: {one_line(error)}") from error
    # PEFT's where shapes differ, and what its methods and `re` raise for values that they do not expect
    except (RuntimeError, TypeError, AttributeError, IndexError, ArithmeticError, AssertionError, re.error) as error:
        raise SVFError(f"the adapter in {path} does not fit this base model: {one_line(error)}") from error


def named_targets(config: Mapping[str, Any]) -> str:
    """The targets of a saved adapter in Markdown: a preset's name, an expression, or names of modules."""
    targets = config.get("target_modules")
    return f"`{PRESETS.get(targets, targets)}`" if isinstance(targets, str) else code(sorted(targets or []))
