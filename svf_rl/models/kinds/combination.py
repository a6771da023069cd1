"""Combination: the weights of trained SVF experts are trained (`svf_rl.svf.combine`). It is saved as a plain adapter
of SVF."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.models.kinds.kind import OF_LORA, load_saved
from svf_rl.models.kinds.svf import SETTINGS, SVFKind
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.storage.path_names import path_names
from svf_rl.svf import SVFConfig
from svf_rl.svf.combine import assign_groups, even_weights
from svf_rl.svf.core import DIAGONAL
from svf_rl.svf.expert import Expert, check_same_base, distinct_adapter_names, expert_folder, read_expert
from svf_rl.svf.vector import SVFCombination

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments, ModelArguments


class CombinationKind(SVFKind):
    """`m = Σ α m_k` or `1 + Σ α (m_k − 1)` over the masks of `K` experts; `α` is trained."""

    not_read = (*SETTINGS, *OF_LORA)

    def check_arguments(self, arguments: "AdapterArguments") -> None:
        if not arguments.experts:
            raise SVFError("adapter: combination needs experts, a list of folders of trained SVF adapters")
        if arguments.adapter_path is not None:
            raise SVFError(
                "adapter_path has no meaning for adapter: combination: remove it, or train with adapter: svf"
            )

    def check_training(self, values: Mapping[str, Any], zero_stage: int = 0) -> None:
        if values.get("weight_decay"):
            raise SVFError("weight_decay would pull the weights of a combination to 0: set weight_decay to 0")
        if zero_stage == 3:
            raise SVFError(
                "ZeRO-3 does not share out combinations, which train a few values: use "
                f"{find_accelerate_config('accelerate_configs/zero2.yaml')}"
            )

    def config(self, arguments: "AdapterArguments") -> SVFConfig:
        """That of the first expert, as a multiplier of every singular value, whatever the cores of the experts."""
        first = _experts(arguments)[0].config
        return first if first.core == DIAGONAL else replace(first, core=DIAGONAL)

    def describe(self, arguments: "AdapterArguments") -> str:
        experts = ", ".join(Path(path).name for path in arguments.experts or [])
        normalized = ", normalized" if arguments.alpha_normalized else ""
        return f"weights of {experts}: {arguments.alpha_scope}, {arguments.alpha_form}{normalized}"

    def find_matrices(
        self, arguments: "AdapterArguments", config: PeftConfig, model: nn.Module | None
    ) -> tuple[list[str], int]:
        experts = _experts(arguments)
        matrices = list(experts[0].z)
        return matrices, (max(assign_groups(matrices, arguments.alpha_scope)) + 1) * len(experts)

    def put_on(self, base: PreTrainedModel, model: "ModelArguments", arguments: "AdapterArguments") -> PeftModel:
        first, *rest = experts = _experts(arguments)
        adapted = load_saved(base, model, first.folder, first.name)
        for expert in rest:
            adapted.load_adapter(str(expert.folder), expert.name)
        names = [expert.name for expert in experts]
        adapted.add_combination_adapter(
            names, "default", arguments.alpha_scope, arguments.alpha_form, arguments.alpha_normalized
        )
        adapted.set_adapter("default")
        for name in names:  # the combination has their masks
            adapted.delete_adapter(name)
        return adapted

    def put_on_empty(
        self, model: Any, matrices: Sequence[str], config: PeftConfig, arguments: "AdapterArguments"
    ) -> nn.Module:
        model = super().put_on_empty(model, matrices, config, arguments)
        experts, groups = len(arguments.experts or []), assign_groups(matrices, arguments.alpha_scope)
        alphas = [nn.Parameter(row) for row in even_weights(experts, max(groups) + 1)]
        for name, group in zip(matrices, groups, strict=True):
            vectors = model.get_submodule(name).svf_z
            masks = torch.empty(experts, vectors["default"].weight.numel())
            # not normalized: that asks for values, and takes no memory to speak of
            vectors["default"] = SVFCombination(masks, alphas[group], arguments.alpha_form, False)
        return model

    def frozen_bytes(
        self, shapes: Sequence[tuple[int, int]], itemsize: int, arguments: "AdapterArguments"
    ) -> dict[str, int]:
        held = super().frozen_bytes(shapes, itemsize, arguments)
        return {**held, "masks": len(arguments.experts or []) * held["singular_values"]}


def _experts(arguments: "AdapterArguments") -> list[Expert]:
    """The recipe's experts, checked against one another and named apart: `math`, or `runs-math` where two folders are
    called `math`. Raises `SVFError` for one that is missing, or does not go with the others."""
    paths = arguments.experts or []
    names = path_names([expert_folder(path) for path in paths], taken=("default",), separator="-")
    adapters = distinct_adapter_names(names)
    experts = [read_expert(path, adapters[name]) for path, name in zip(paths, names, strict=True)]
    check_same_base(experts)
    return experts


KIND = CombinationKind("combination")
