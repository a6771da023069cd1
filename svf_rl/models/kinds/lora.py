"""LoRA, the baseline."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftConfig
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.models.kinds.kind import AdapterKind
from svf_rl.svf.targets import target_regex

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments


class LoraKind(AdapterKind):
    """`W' = W + (alpha / r) B A`; `A` and `B` are trained."""

    same_as_saved = ("target_modules", "r")

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
            exclude_modules=arguments.exclude_modules,
            layers_to_transform=layers,
            modules_to_save=arguments.modules_to_save,
            target_modules=target_regex(targets) if isinstance(targets, str) else targets,
        )

    def describe(self, arguments: "AdapterArguments") -> str:
        targets = arguments.lora_target_modules or arguments.target_modules
        return f"LoRA r = {arguments.lora_r}, alpha = {arguments.lora_alpha} on {targets}"

    def trained_values(self, config: PeftConfig, shapes: Sequence[tuple[int, ...]]) -> int:
        return sum(config.r * sum(shape) for shape in shapes)

    def rebuilt_weight(self, layer: Any) -> Tensor | None:
        # variants (DoRA and others) and LoRA's own bias change more than the weight by B·A
        plain = hasattr(layer, "get_delta_weight") and not layer.lora_variant and not any(layer.lora_bias.values())
        if layer.merged or not plain:
            return None
        weight = layer.get_base_layer().weight
        total = weight.float()
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A or adapter in layer.lora_embedding_A:
                total = total + layer.get_delta_weight(adapter).float()
        return total.to(weight.dtype)


KIND = LoraKind("lora", "LORA")
