"""The SVF linear layer: frozen factors, and what an adapter trains on them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.errors import SVFError
from svf_rl.svf.adapter_values import AdapterValues
from svf_rl.svf.config import SVFConfig
from svf_rl.svf.core import Core
from svf_rl.svf.decompose import Factors
from svf_rl.svf.mask import change_of_singular_values, core_of, initial_z
from svf_rl.svf.merge import merged_weight
from svf_rl.svf.offload_hook import cast_offloaded, is_offloaded, keep_onloaded, onload
from svf_rl.svf.probe import Projections, was_written
from svf_rl.svf.sharding import (
    is_sharded,
    loaded,
    plain_path,
    put_into,
    shard_like,
    shared_out_like,
    whole,
    will_be_sharded,
)
from svf_rl.svf.targets import logical_weight, quantization_of
from svf_rl.svf.vector import SVFVector, keeping_type


class SVFFactors(nn.Module):
    """
    `U` (out, r) and `Vt` (r, in) in the model's type; `s` (r,) in fp32.

    They are plain tensors: parameters would count as the adapter's, and DDP sends buffers around in every step. Where
    ZeRO-3 or FSDP must share them out (`sharded`), `U` and `Vt` are frozen parameters.
    """

    U: Tensor
    Vt: Tensor

    def __init__(self, factors: Factors, sharded: bool):
        super().__init__()
        self.s = factors.s
        for name in ("U", "Vt"):
            if sharded:
                # Through _parameters: with `low_cpu_mem_usage=True` the injection context moves every registered
                # parameter to the meta device, and no checkpoint would restore these values.
                self._parameters[name] = nn.Parameter(getattr(factors, name), requires_grad=False)
            else:
                setattr(self, name, getattr(factors, name))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.U, self.s, self.Vt

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SVFFactors":
        self.s = keeping_type(fn)(self.s)
        if "U" not in self._parameters:
            self.U, self.Vt = fn(self.U), fn(self.Vt)
        super()._apply(fn, recurse)
        return self


class SVFLinear(AdapterValues, nn.Module, BaseTunerLayer):
    """
    `y = ((x V) · (s·m)) Uᵀ + b` around a `Linear` or GPT-2's `Conv1D`.

    The factored form needs `2·r·(in + out)` multiplications a token, forward and backward together, and never the
    full-size gradient of `W'`. Several active adapters add up: `m = 1 + Σ_k (m_k − 1)`. `weight_id` is the fingerprint
    of the frozen `W`; `projections` is what the probe of an adapter needs of it; `path` is the layer's, for errors.

    A core that mixes (`core.py`) adds `C (x V)` before `Uᵀ`, and a trained bias is added after it.

    A quantised base layer keeps its kernel, `y = base(x) + ((x V) · (s·(m − 1))) Uᵀ`, and all the rest is of the `W`
    that it was quantised from.
    """

    adapter_layer_names: tuple[str, ...] = ("svf_z", "svf_bias")
    other_param_names: tuple[str, ...] = ("svf_mask",)
    cast_input_dtype_enabled = True  # PEFT's disable_input_dtype_casting sets it

    def __init__(
        self, base_layer: nn.Module, factors: Factors, weight_id: str, projections: Projections, path: str = "a layer"
    ):
        super().__init__()
        self.base_layer = base_layer
        linear = isinstance(base_layer, nn.Linear)
        self.in_features = base_layer.in_features if linear else base_layer.nx
        self.out_features = base_layer.out_features if linear else base_layer.nf
        self.quantized = quantization_of(base_layer) is not None
        self.svf_factors = SVFFactors(factors, will_be_sharded(base_layer.weight))
        shard_like(self.svf_factors, base_layer.weight)
        self.svf_z = nn.ModuleDict()
        self.svf_bias = nn.ModuleDict()
        self.svf_mask: dict[str, Core] = {}
        self.reference = False  # compute as if m were 1, see `reference_mode`
        self.merged_adapters: list[str] = []
        self.weight_id = weight_id
        self.projections = projections
        self.path = path
        self._unmerged_weight: Tensor | None = None
        self._unmerged_bias: tuple[nn.Parameter | None] | None = None  # where a merge has replaced it
        self._seen = _state_of(base_layer.weight)
        self._rounding = 1e-6  # of the weight since it was decomposed, by casts

    def update_layer(self, adapter_name: str, config: SVFConfig, shared: nn.Module | None = None) -> None:
        """Add the adapter `adapter_name` to this layer; `shared` is the vector of the layers before it, where its core
        has one for all."""
        s = self.svf_factors.s
        self.svf_mask[adapter_name] = core = core_of(config, plain_path(self.path))
        size = core.size(s.numel())  # refuses what is too large, before anything is drawn
        if not s.is_meta:
            core.prepare(s)
        if not core.shared or shared is None:
            z = initial_z(size, config)
            shared = SVFVector(z.to(s.device), decays_well=core.identity == 0)
        self.svf_z[adapter_name] = shared
        if config.biases:
            self.svf_bias[adapter_name] = SVFVector(torch.zeros(self.out_features, device=s.device), decays_well=True)
        self.set_adapter(self.active_adapters)

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """`adapter_names`: an adapter for each row of `x` (B, ..., in), `"__base__"` for none, in place of the active
        ones."""
        if adapter_names is not None:
            return self._mixed(x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        # The reference is z = 1 also while merged, when the base layer computes with W'.
        direct = self.disable_adapters or (self.merged and not self.reference)
        m = None if direct else self.active_multiplier()
        # a layer that no active adapter adapts has its factors at hand where W would have to be read
        by_factors = m is not None or (not direct and is_offloaded(self.base_layer))
        if not by_factors or (self.quantized and self.reference):
            return self.base_layer(x, *args, **kwargs)
        if self.reference:
            return self._adapted(x, None, (), *args, **kwargs)
        return self._adapted(x, m, self.more_than_multiplier(), *args, **kwargs)

    def _mixed(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        if len(names) != len(x):
            raise ValueError(f"adapter_names must name one adapter for each of {len(x)} rows, not {len(names)}")
        if self.merged:
            raise ValueError("adapter_names cannot choose among merged adapters: call unmerge_adapter first")
        rows = [row for row, name in enumerate(names) if name in self.svf_z]
        if self.disable_adapters or not rows:
            return self.base_layer(x, *args, **kwargs)
        if any(self.more_than_multiplier(names)):
            return self._one_by_one(x, names, *args, **kwargs)
        multipliers = {name: self.multiplier(name) for name in {names[row] for row in rows}}
        m = torch.stack([multipliers[names[row]] for row in rows])
        m = m.view(len(rows), *[1] * (x.dim() - 2), -1)
        if len(rows) == len(names):
            return self._adapted(x, m, (), *args, **kwargs)
        y = self.base_layer(x, *args, **kwargs).clone()
        y[rows] = self._adapted(x[rows], m, (), *args, **kwargs).to(y.dtype)
        return y

    def _one_by_one(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs).clone()
        for name in sorted({name for name in names if name in self.svf_z}):
            rows, more = [row for row, own in enumerate(names) if own == name], self.more_than_multiplier([name])
            y[rows] = self._adapted(x[rows], self.multiplier(name), more, *args, **kwargs).to(y.dtype)
        return y

    def _adapted(self, x: Tensor, m: Tensor | None, more: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """`m`: `(r,)`, or with the dimensions of `x` before it; `None`: 1. `more`: the adapters that are more than
        that."""
        self.check_weight()
        factors = self.svf_factors
        if factors.s.device != x.device:  # the base layer is loaded for each call, and so was not where it runs
            factors.to(x.device)
            m = m if m is None else m.to(x.device)
        # (r,) fp32
        scale = factors.s if m is None else factors.s * (m - 1 if self.quantized else m)
        h = F.linear(self._cast_input_dtype(x, factors.Vt.dtype), factors.Vt)  # (..., r)
        # fp32 product: rounding s·m itself to bf16 would make small changes of z invisible
        scaled, beside = h * scale, self.off_diagonal(h, more) if more else None
        h = (scaled if beside is None else scaled + beside).to(h.dtype)
        change = self.bias_change(more) if more else None
        if self.quantized:
            y = self.base_layer(x, *args, **kwargs)
            return _plus(y + F.linear(h, factors.U).to(y.dtype), change)
        (bias,) = self._unmerged_bias or (self.base_layer.bias,)
        if bias is not None and bias.is_meta:
            with loaded(self.base_layer):
                bias = self.base_layer.bias
        return _plus(F.linear(h, factors.U, bias).to(x.dtype), change)

    def enable_adapters(self, enabled: bool) -> None:
        """As PEFT has it; while adapters are disabled, an offloaded weight is read once."""
        super().enable_adapters(enabled)
        keep_onloaded(self.get_base_layer(), not enabled)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """`W' − W` of one adapter, in the layout and type of the base layer's weight."""
        return self.merged_weight([adapter_name]) - self.base_weight()

    def base_weight(self) -> Tensor:
        """The untouched weight, in the base layer's own layout, also while merged."""
        if self._unmerged_weight is not None:
            return self._unmerged_weight
        with loaded(self.get_base_layer()):
            return self.get_base_layer().weight.data

    def merged_weight(self, adapter_names: list[str] | None = None) -> Tensor:
        """`W'` of the given adapters (default: the active ones), a new tensor in the base layer's layout and type."""
        self.check_mergeable()
        weight, factors = self.base_weight(), self.svf_factors
        delta = change_of_singular_values(factors.s, self.masks_and_z(adapter_names))
        left, right = whole(factors.U), whole(factors.Vt)
        if self.transposed:  # (in, out): W'ᵀ = V diag(s·m) Uᵀ, made as it is stored
            left, right = right.T, left.T
        more = self.more_than_multiplier(adapter_names)
        beside = partial(self.off_diagonal, names=more, transposed=not self.transposed) if more else None
        return shared_out_like(merged_weight(whole(weight), left, right, delta, beside), weight)

    def check_weight(self, look: bool = False) -> None:
        """
        Notice a write to the frozen `W` since it was decomposed: by its version and place, and with `look` by its
        values, which also shows a write through `.data`. Where no adapter has moved, the layer decomposes it again.

        Raises:
            SVFError: an adapter has moved: its `z` belongs to the singular values of the weight as it was.
        """
        weight = self.get_base_layer().weight
        # Only ordinary tensors: what is sharded, loaded for each call or traced changes its place all the time.
        if self.merged or self.quantized or is_sharded(weight) or type(weight) is not nn.Parameter:
            return
        if weight.dim() != 2 or weight.is_meta:
            return
        if torch.compiler.is_compiling() or (not look and _state_of(weight) == self._seen):
            return
        weight = logical_weight(self.get_base_layer()).detach()
        if weight.dtype != self.svf_factors.Vt.dtype:  # cast by itself, as PEFT's `cast_mixed_precision_params` does
            self._rounding = max(self._rounding, torch.finfo(weight.dtype).eps)
        if was_written(self.projections, weight, self._rounding):
            if any(self.has_moved(name) for name in self.svf_z):
                raise SVFError(
                    f"the weight of {self.path} was changed after SVF decomposed it, and z belongs to the one before: "
                    "change weights before the adapter is put on the model, or put the old ones back"
                )
            from svf_rl.svf.model import decompose  # which imports this module

            self.weight_id, factors, self.projections = decompose(weight)
            self.svf_factors = SVFFactors(factors, sharded=False)
        self._seen = _state_of(self.get_base_layer().weight)

    def check_mergeable(self) -> None:
        """Raises `SVFError` where the base layer is quantised: it has no weight to which `W' − W` could be added."""
        if self.quantized:
            raise SVFError(
                f"{self.path} is quantized, and SVF cannot be merged into it: merge the saved adapter into the "
                "unquantised model (svf-rl merge), and quantise what comes out"
            )

    @property
    def transposed(self) -> bool:
        """Whether the base layer stores (in, out), as GPT-2's `Conv1D` does."""
        return not isinstance(self.get_base_layer(), nn.Linear)

    def merged_bias(self, adapter_names: list[str] | None = None) -> Tensor | None:
        """The bias (out,) of the given adapters (default: the active ones), a new tensor in the type of the weight;
        `None` where they train none."""
        change, base = self.bias_change(adapter_names), self.get_base_layer()
        if change is None:
            return None
        with loaded(base):
            (untouched,) = self._unmerged_bias or (base.bias,)
            total = change.detach() if untouched is None else whole(untouched).float() + change.detach()
        return total.to(self.svf_factors.Vt.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Replace `W` by `W'`. `W` is kept too, so that `unmerge` is bit-exact."""
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.svf_z]
        if not names:
            return
        onload(self.get_base_layer())
        self.check_weight(look=True)
        merged, bias = self.merged_weight(self.merged_adapters + names), self.merged_bias(self.merged_adapters + names)
        if safe_merge and not all(part.isfinite().all() for part in (merged, bias) if part is not None):
            raise ValueError(f"NaNs detected in the merged weights. The adapter {names[0]} seems to be broken")
        old = put_into(self.get_base_layer().weight, merged)
        if self._unmerged_weight is None:
            self._unmerged_weight = old
        if bias is not None:
            self._unmerged_bias = self._unmerged_bias or (self.get_base_layer().bias,)
            self.get_base_layer().bias = nn.Parameter(bias, requires_grad=False)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put `W` back."""
        if self._unmerged_weight is not None:
            put_into(self.get_base_layer().weight, self._unmerged_weight)
            self._unmerged_weight = None
            if self._unmerged_bias is not None:
                (self.get_base_layer().bias,), self._unmerged_bias = self._unmerged_bias, None
            self._seen = _state_of(self.get_base_layer().weight)
        self.merged_adapters.clear()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer, as PEFT takes it out of the model."""
        if merge:
            self.merge(safe_merge, adapter_names)
            if self._unmerged_bias == (None,):
                warnings.warn(  # the same text for all, so that it is shown once
                    "layers without a bias have one now, which a saved model of this configuration is loaded without: "
                    "save the adapter, or train it with biases=False",
                    stacklevel=2,
                )
        onload(self.get_base_layer())
        return self.get_base_layer()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SVFLinear":
        if self._unmerged_weight is not None:  # it must move too, though it is not a parameter
            self._unmerged_weight = fn(self._unmerged_weight)
        for bias in self._unmerged_bias or ():
            if bias is not None:
                bias.data = fn(bias.data)
        dtype = self.weight.dtype
        super()._apply(fn, recurse)
        cast_offloaded(self.get_base_layer(), self.svf_factors.Vt.dtype)
        if self.weight.dtype != dtype:
            self._rounding = max(self._rounding, torch.finfo(self.weight.dtype).eps)
        self._seen = _state_of(self.get_base_layer().weight)
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT calls it after loading with `low_cpu_mem_usage`. `W` may be offloaded; the factors are in place."""
        super()._move_adapter_to_device_of_base_layer(adapter_name, device or self.svf_factors.s.device)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return not self.quantized and adapter_name not in self.svf_bias


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    """With a trained bias. Not within the matrix product, so that a bias of 0 leaves all bits as they are."""
    return y if bias is None else (y + bias.to(y.device)).to(y.dtype)


def _state_of(weight: Tensor) -> tuple[int, int] | None:
    """What changes when a tensor is written to or put elsewhere; `None` where this is not known."""
    if type(weight) is not nn.Parameter or weight.is_meta or weight.is_inference():
        return None
    return weight.data_ptr(), weight._version


@contextmanager
def reference_mode(model: nn.Module) -> Iterator[None]:
    """
    Within it, every SVF layer of `model` computes with `m = 1`, and the originals replace `modules_to_save`.

    This is the reference policy of the KL term. It differs from `disable_adapter`, which runs the base weight itself:
    the same factored operations at `m = 1` make the divergence exactly 0 at the start, in every floating-point type.
    """
    layers = list(svf_layers(model).values())
    saved = [m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper) and not m.disable_adapters]
    for layer in layers:
        layer.reference = True
    for wrapper in saved:
        # Not through enable_adapters, which also makes every active copy trainable when it returns.
        wrapper._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer.reference = False
        for wrapper in saved:
            wrapper._disable_adapters = False


def fetch_with_layers(model: nn.Module) -> None:
    """Under ZeRO-3, after DeepSpeed has taken over `model`: gather the parameters of each SVF layer while it runs,
    though they belong to submodules that are never called; except `W`, which the factored form does not need."""
    for layer in svf_layers(model).values():
        weight = layer.get_base_layer().weight
        for parameter in layer.parameters():
            if is_sharded(parameter) and parameter is not weight:
                import deepspeed

                deepspeed.zero.register_external_parameter(layer, parameter)


def svf_layers(model: nn.Module) -> dict[str, SVFLinear]:
    """The SVF layers of a model by module path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SVFLinear)}


def held_factors(model: nn.Module) -> list[Tensor]:
    """`U`, `s` and `Vt` of every SVF layer of a model, which are neither parameters nor buffers."""
    return [part for layer in svf_layers(model).values() for part in layer.svf_factors.tensors()]
