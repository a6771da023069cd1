"""Adapters made of other adapters of the same model, like PEFT's `add_weighted_adapter`."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.svf.combine import assign_groups, check_form, check_weights, combine, even_weights
from svf_rl.svf.config import SVFConfig
from svf_rl.svf.core import DIAGONAL
from svf_rl.svf.layer import SVFLinear, svf_layers
from svf_rl.svf.vector import SVFCombination


class WeightedAdapters:
    """The part of [`SVFModel`] that combines its adapters. The formulas are in `combine.py`."""

    model: nn.Module
    peft_config: dict[str, Any]

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float] | Sequence[Sequence[float]] | Tensor,
        adapter_name: str,
        combination_type: str | None = None,
        *,
        scope: str = "global",
        form: str = "mask",
        normalized: bool = False,
    ) -> None:
        """
        Add the adapter `Σ_k α_k m_k` of adapters of the model. It is a plain adapter: it is used, trained, saved and
        loaded like any other, and has one vector for each matrix. It is not made active.

        Args:
            adapters (`Sequence[str]`): Names of `K` adapters.
            weights (`Sequence` or `Tensor` of shape `(K,)` or `(groups, K)`): Their weights.
            adapter_name (`str`): Name of the new adapter. An earlier combination of this name is replaced.
            combination_type (`str`, *optional*): The fourth argument for PEFT's other methods: `None` or `"linear"`.
            scope (`str`, *optional*, defaults to `"global"`): What the rows of `weights` are for: `"global"`,
                `"layer"` or `"matrix"`.
            form (`str`, *optional*, defaults to `"mask"`): `"mask"` or `"deviation"`, see `combine.py`.
            normalized (`bool`, *optional*, defaults to `False`): Refuse weights that do not sum to 1.

        Raises:
            SVFError: an adapter is missing or adapts other matrices, or the weights are not valid.
        """
        if combination_type not in (None, "linear"):
            raise SVFError(
                f"combination_type {combination_type!r} is one of LoRA's: SVF adds up masks (linear); give scope and "
                "form by name"
            )
        layers, rows = self._combined_layers(adapters, adapter_name, scope, form)
        table = check_weights(weights, len(adapters), max(rows) + 1, normalized)
        vectors = [
            combine(_masks(layer, adapters), table[row].to(layer.svf_factors.s), form)
            for layer, row in zip(layers, rows, strict=True)
        ]
        existing = [layer.svf_z[adapter_name] for layer in layers if adapter_name in layer.svf_z]
        if any(isinstance(vector, SVFCombination) for vector in existing):
            raise SVFError(
                f"the weights of adapter {adapter_name!r} are being trained: give the combination another name"
            )
        if any(adapter_name in layer.merged_adapters for layer in layers):
            warnings.warn(f"adapter {adapter_name!r} was merged: all are unmerged to replace it", stacklevel=2)
            self.unmerge_adapter()  # type: ignore[attr-defined]  # of SVFModel
        self._add_plain(adapters, adapter_name, table, scope, form, normalized)
        with torch.no_grad():
            for layer, z in zip(layers, vectors, strict=True):
                layer.svf_z[adapter_name].weight.copy_(z)

    def add_combination_adapter(
        self,
        adapters: Sequence[str],
        adapter_name: str,
        scope: str = "global",
        form: str = "mask",
        normalized: bool = False,
    ) -> None:
        """
        Add an adapter whose weights `α` are trained, starting from the plain mean of the adapters. It is saved as the
        plain adapter of its current weights, so it can be loaded without the others.

        Args: as above; with `normalized`, the adapter uses `α / Σ α`.
        """
        layers, rows = self._combined_layers(adapters, adapter_name, scope, form)
        table = even_weights(len(adapters), max(rows) + 1)
        masks = [_masks(layer, adapters).clone() for layer in layers]
        self._add_plain(adapters, adapter_name, table, scope, form, normalized)
        alphas = [nn.Parameter(row.clone()) for row in table.to(layers[0].svf_factors.s.device)]
        for layer, row, stack in zip(layers, rows, masks, strict=True):
            layer.svf_z[adapter_name] = SVFCombination(stack, alphas[row], form, normalized)
            layer.set_adapter(layer.active_adapters)  # sets whether the new module is trained

    def _combined_layers(
        self, adapters: Sequence[str], adapter_name: str, scope: str, form: str
    ) -> tuple[list[SVFLinear], list[int]]:
        check_form(form)
        if not adapters:
            raise SVFError("a combination needs at least one adapter: name those to combine")
        missing = [name for name in adapters if name not in self.peft_config]
        if missing:
            raise SVFError(f"there is no adapter {missing[0]!r}; the model has: {', '.join(self.peft_config)}")
        if adapter_name in self.peft_config and getattr(self.peft_config[adapter_name], "combination", None) is None:
            raise SVFError(f"the model already has an adapter {adapter_name!r}: give the combination another name")
        if adapter_name in adapters:
            raise SVFError(
                f"the combination cannot replace {adapter_name!r}, of which it is made: give it another name"
            )
        saved = [name for name in adapters if self.peft_config[name].modules_to_save]
        if saved:
            raise SVFError(
                f"adapter {saved[0]!r} contains whole modules, which cannot be combined: train without modules_to_save"
            )
        other = [name for name in adapters if not self.peft_config[name].is_multiplier]
        if other:
            raise SVFError(
                f"adapter {other[0]!r} is more than multipliers of singular values (its core mixes them, or it has "
                "biases), and cannot be combined: train with core: diagonal"
            )
        found = svf_layers(self.model)
        for path, layer in found.items():
            have = [name for name in adapters if name in layer.svf_z]
            if have and len(have) < len(adapters):
                lacking = next(name for name in adapters if name not in have)
                raise SVFError(
                    f"adapters {have[0]!r} and {lacking!r} have different targets: only the first adapts {path}"
                )
        layers = {path: layer for path, layer in found.items() if adapters[0] in layer.svf_z}
        existing = {path for path, layer in found.items() if adapter_name in layer.svf_z}
        if existing and existing != layers.keys():
            raise SVFError(
                f"adapter {adapter_name!r} has other targets than {adapters[0]!r}: give the combination another name"
            )
        return list(layers.values()), assign_groups(list(layers), scope)

    def _add_plain(
        self, adapters: Sequence[str], adapter_name: str, table: Tensor, scope: str, form: str, normalized: bool
    ) -> None:
        """An adapter with `z = 1` and the targets of the first of `adapters`, whose configuration records the
        combination."""
        combination = {
            "experts": list(adapters),
            "scope": scope,
            "form": form,
            "normalized": normalized,
            "alpha": [[round(value, 6) for value in row] for row in table.tolist()],
        }
        if adapter_name in self.peft_config:
            self.peft_config[adapter_name].combination = combination
            return
        first: SVFConfig = self.peft_config[adapters[0]]
        # no fingerprint: the experts are here, whatever their files say of the weights of their training
        self.peft_config[adapter_name] = replace(
            first, core=DIAGONAL, parameterization="direct", renormalize=False, init="identity",
            base_fingerprint=None, combination=combination,
        )  # fmt: skip
        try:
            self.inject_adapter(self.model, adapter_name)  # type: ignore[attr-defined]  # of SVFModel
        except BaseException:  # such as of a name that no module can have
            self.peft_config.pop(adapter_name, None)
            raise


def _masks(layer: SVFLinear, adapters: Sequence[str]) -> Tensor:
    """`(K, r)` multipliers."""
    return torch.stack([layer.multiplier(name) for name in adapters]).detach()
