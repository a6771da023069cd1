"""LoRA, the baseline, and DoRA."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from peft import LoraConfig, PeftConfig
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.models.kinds.kind import OF_COMBINATION, OF_SVF, AdapterKind
from svf_rl.svf.targets import target_regex

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments


class LoraKind(AdapterKind):
    """`W' = W + (alpha / r) B A`; `A` and `B` are trained. With DoRA (arXiv 2402.09353, section 4.1) each row of that
    is scaled to a trained norm."""

    same_as_saved = ("r", "lora_alpha", "lora_dropout", "use_dora")
    not_read = (*OF_SVF, *OF_COMBINATION)

    def check_training(self, values: Mapping[str, Any], zero_stage: int = 0) -> None:
        if values.get("vllm_weights") == "shared":
            raise SVFError("vllm_weights: shared does not go with an adapter other than SVF: set it to merged")

    def config(self, arguments: "AdapterArguments") -> LoraConfig:
        targets = arguments.lora_target_modules or arguments.target_modules
        if isinstance(arguments.exclude_modules, str):
            target_regex(arguments.exclude_modules, "exclude_modules")
        layers = arguments.layers_to_transform or None  # PEFT takes an empty list for one to look at
        if layers and isinstance(targets, str):
            raise SVFError(
                "layers_to_transform: LoRA takes it beside a list of names alone: set lora_target_modules, such as "
                "[gate_proj, up_proj, down_proj]"
            )
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            use_dora=arguments.lora_use_dora,
            exclude_modules=arguments.exclude_modules,
            layers_to_transform=layers,
            modules_to_save=arguments.modules_to_save,
            target_modules=target_regex(targets) if isinstance(targets, str) else targets,
        )

    def describe(self, arguments: "AdapterArguments") -> str:
        targets = arguments.lora_target_modules or arguments.target_modules
        return f"{_name(arguments.lora_use_dora)} r = {arguments.lora_r}, alpha = {arguments.lora_alpha} on {targets}"

    def trained_values(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
        norms = sum(shape[0] for shape in shapes.values()) if config.use_dora else 0
        return sum(config.r * sum(shape) for shape in shapes.values()) + norms

    def label(self, config: Mapping[str, Any]) -> str:
        return f"{_name(config.get('use_dora'))} r={config['r']}" if config.get("use_dora") else super().label(config)

    def describe_saved(self, config: Mapping[str, Any]) -> str:
        text = super().describe_saved(config)
        return text.replace(str(self.peft_type), "DoRA", 1) if config.get("use_dora") else text

    def rebuilt_weight(self, layer: Any) -> Tensor | None:
        # LoRA's own bias and other variants than DoRA change more than the weight by B·A
        has_weight = hasattr(layer, "get_delta_weight") and hasattr(layer.get_base_layer(), "weight")
        if layer.merged or not has_weight or any(layer.lora_bias.values()):  # fused experts have no `weight`
            return None
        if layer.lora_variant:
            return _dora_weight(layer)
        weight = layer.get_base_layer().weight
        total = weight.float()
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A or adapter in layer.lora_embedding_A:
                total = total + layer.get_delta_weight(adapter).float()
        return total.to(weight.dtype)


def _dora_weight(layer: Any) -> Tensor | None:
    """As PEFT merges it; `None` for other variants, and for several adapters, of which each scales those before it."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or type(layer.lora_variant.get(names[0])) is not DoraLinearVariant:
        return None
    weight = layer.lora_variant[names[0]].merge_safe(layer, names[0], layer.get_base_layer().weight.data)
    layer._cache_pop(f"{names[0]}-weight_norm")  # what unmerging would ask for
    return cast(Tensor, weight)


def _name(use_dora: object) -> str:
    return "DoRA" if use_dora else "LoRA"


KIND = LoraKind("lora", "LORA")
