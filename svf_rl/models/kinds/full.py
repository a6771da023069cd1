"""Full fine-tuning, the baseline that trains every value of the targeted matrices."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peft import LNTuningConfig, PeftConfig
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.models.kinds.kind import OF_COMBINATION, OF_LORA, OF_SVF, AdapterKind, named_targets
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.svf.targets import target_regex

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments


class FullKind(AdapterKind):
    """
    A copy of each targeted module is trained, weight and bias, and the original stays beside it as the reference.

    PEFT has this under the name of a special case, `LN_TUNING`, which takes modules of any sort. The copies have the
    type of the model.
    """

    title = "full fine-tuning of the targeted modules"
    not_read = (*OF_SVF, *OF_LORA, *OF_COMBINATION)

    def check_training(self, values: Mapping[str, Any], zero_stage: int = 0) -> None:
        if values.get("vllm_weights") == "shared":
            raise SVFError("vllm_weights: shared does not go with an adapter other than SVF: set it to merged")
        if zero_stage == 3:
            raise SVFError(
                "ZeRO-3 cannot copy the modules that adapter: full trains: use "
                f"{find_accelerate_config('accelerate_configs/zero2.yaml')}"
            )

    def config(self, arguments: "AdapterArguments") -> LNTuningConfig:
        if arguments.layers_to_transform:
            raise SVFError("layers_to_transform: adapter: full takes an expression in target_modules instead of it")
        if isinstance(arguments.exclude_modules, str):
            target_regex(arguments.exclude_modules, "exclude_modules")
        targets = arguments.target_modules
        return LNTuningConfig(
            task_type="CAUSAL_LM",
            target_modules=target_regex(targets) if isinstance(targets, str) else targets,
            exclude_modules=arguments.exclude_modules,
            modules_to_save=arguments.modules_to_save,
        )

    def describe(self, arguments: "AdapterArguments") -> str:
        return f"full fine-tuning of {arguments.target_modules}"

    def find_matrices(
        self, arguments: "AdapterArguments", config: PeftConfig, model: nn.Module | None
    ) -> tuple[list[str], int] | None:
        found = super().find_matrices(arguments, config, model)
        if found is None or model is None:
            return None
        names, values = found
        biases = [getattr(model.get_submodule(name), "bias", None) for name in names]
        return names, values + sum(bias.numel() for bias in biases if bias is not None)

    def trained_values(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return sum(rows * columns for rows, columns in shapes.values())

    def rebuilt_weight(self, layer: Any) -> Tensor | None:
        trained = _acting(layer)
        return None if trained is None or not hasattr(trained, "weight") else trained.weight.detach().clone()

    def rebuilt_bias(self, layer: Any) -> Tensor | None:
        bias = getattr(_acting(layer), "bias", None)
        return None if bias is None else bias.detach().clone()

    def rebuild_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        return shape[0] * shape[1] * itemsize

    def label(self, config: Mapping[str, Any]) -> str:
        return "full"

    def describe_saved(self, config: Mapping[str, Any]) -> str:
        return f"All values of {named_targets(config)} were trained; the files hold these modules (PEFT's LN_TUNING)."


def _acting(layer: Any) -> Any:
    """The module that a layer of PEFT's calls; `None` where an adapter is merged, which has swapped them."""
    if layer.merged:
        return None
    name = next((name for name in layer.active_adapters if name in layer.ln_tuning_layers), None)
    return layer.get_base_layer() if name is None else layer.ln_tuning_layers[name]


KIND = FullKind("full", "LN_TUNING")
