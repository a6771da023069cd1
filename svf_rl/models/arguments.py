"""What a recipe says of the base model (`base.py`) and of the adapter that is trained."""

from dataclasses import dataclass, field
from typing import Any, Literal

from svf_rl.described import described
from svf_rl.models.base import ModelArguments
from svf_rl.models.kinds import find_kind
from svf_rl.svf import SVFConfig

__all__ = ["AdapterArguments", "ModelArguments"]


# ruff: noqa: RUF009  (`_as_in_svf` makes fields as `field` does)
def _as_in_svf(name: str) -> Any:
    """A field with the default and the help of [`svf_rl.svf.SVFConfig`]."""
    own = SVFConfig.__dataclass_fields__[name]
    return field(default=own.default, metadata=own.metadata)


@dataclass
class AdapterArguments:
    """What is trained: an adapter of one of the kinds in `svf_rl/models/kinds/`, whose files explain it."""

    adapter: str = described(
        "svf", "svf, lora, full: all values of the targeted matrices, or combination: the weights of trained experts."
    )
    target_modules: str | list[str] = _as_in_svf("target_modules")
    core: str = _as_in_svf("core")
    core_seed: int = _as_in_svf("core_seed")
    biases: bool = _as_in_svf("biases")
    parameterization: Literal["direct", "sigmoid"] = _as_in_svf("parameterization")
    max_multiplier: float = _as_in_svf("max_multiplier")
    renormalize: bool = _as_in_svf("renormalize")
    init: Literal["identity", "random"] = _as_in_svf("init")
    init_mean: float = _as_in_svf("init_mean")
    init_std: float = _as_in_svf("init_std")
    exclude_modules: str | list[str] | None = _as_in_svf("exclude_modules")
    layers_to_transform: list[int] | None = _as_in_svf("layers_to_transform")
    modules_to_save: list[str] | None = _as_in_svf("modules_to_save")
    lora_r: int = described(16, "Rank of LoRA.")
    lora_alpha: int = described(32, "Scale of LoRA, divided by its rank.")
    lora_dropout: float = described(0.0, "Dropout of LoRA.")
    lora_use_dora: bool = described(False, "DoRA: LoRA beside a trained norm of each row of the weight.")
    lora_target_modules: str | list[str] | None = described(
        None, "Targets of LoRA where they differ from target_modules."
    )
    adapter_path: str | None = described(None, "A saved adapter to train further.")
    experts: list[str] | None = described(None, "Adapter combination: folders or Hub names of the SVF experts.")
    alpha_scope: Literal["global", "layer", "matrix"] = described(
        "global", "Adapter combination: one weight per expert for all matrices, for each layer, or for each matrix."
    )
    alpha_form: Literal["mask", "deviation"] = described(
        "mask", "Adapter combination: mask: sum of alpha*m; deviation: 1 + sum of alpha*(m-1)."
    )
    alpha_normalized: bool = described(False, "Adapter combination: divide the weights by their sum.")

    def __post_init__(self) -> None:
        self.kind = find_kind(self.adapter)
        self.kind.check_arguments(self)
