"""Factored linear layers in vLLM, which come in where its quantisation methods do.

vLLM fuses some layers of a model (`qkv_proj`, `gate_up_proj`). Each part of such a layer is factored or plain, so that
any choice of targets can be served. The dense weight of a factored part is never allocated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.utils import set_weight_attrs

from svf_rl.errors import SVFError
from svf_rl.generation.vllm import CannotServeFactors
from svf_rl.generation.vllm.factored.table import MultiplierTable
from svf_rl.svf.layer import SVFFactors

_PLACES = {"q": 0, "k": 1, "v": 2}  # what vLLM calls the parts of `qkv_proj`; others have numbers
# of models that do not say what they fuse
_FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


class FactoredLayers(QuantizationConfig):
    """
    Gives each layer of a model that has factors a [`FactoredLinear`] method, and the others vLLM's plain one.

    Args:
        factors (`Mapping[str, SVFFactors]`): By the path of a layer in the model's files.
    """

    def __init__(self, factors: Mapping[str, SVFFactors]):
        super().__init__()
        self._named = {name: (name, held) for name, held in factors.items()}  # by the path in vLLM
        self.methods: dict[str, FactoredLinear] = {}  # by the path of vLLM's layer

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """vLLM says how it renames the model's layers."""
        self._named = hf_to_vllm_mapper.apply_dict(self._named)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, RoutedExperts):
            raise CannotServeFactors("a mixture of experts is not served in factors")
        if not isinstance(layer, LinearBase):
            return None
        parent, _, name = prefix.rpartition(".")
        fused = [f"{parent}.{part}" for part in {**_FUSED, **self.packed_modules_mapping}.get(name, ())]
        parts = [self._named.get(path) for path in (fused if fused and prefix not in self._named else [prefix])]
        if not any(parts):
            return UnquantizedLinearMethod()
        self.methods[prefix] = FactoredLinear(prefix, parts)
        return self.methods[prefix]

    def singular_values(self) -> dict[str, Tensor]:
        """`s` (r,) of each served matrix, those of one layer beside each other. Raises `SVFError` where a matrix is in
        no layer of vLLM's model."""
        served = {part[0]: part[1].s for method in self.methods.values() for part in method.parts if part}
        lost = [name for name, _ in self._named.values() if name not in served]
        if lost:
            raise CannotServeFactors(
                f"vLLM has no linear layer {lost[0]} of its own, so that it cannot be served in factors"
            )
        return served

    def use(self, table: MultiplierTable) -> None:
        for method in self.methods.values():
            own = [table.columns[part[0]] for part in method.parts if part]
            method.table, method.columns = table, slice(own[0].start, own[-1].stop)

    def get_name(self) -> Any:
        return "svf"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FactoredLayers":
        raise NotImplementedError  # of a checkpoint that is stored so: there is none


@dataclass
class _Part:
    """Some rows of a layer's output, from `weight`: `U` (rows, r) of `factors` behind these `columns` of the product
    with all `Vt`; or, without factors, a plain `W` (rows, in)."""

    weight: Tensor
    columns: slice | None = None
    factors: SVFFactors | None = None
    packed: Callable[[Tensor], Tensor] | None = None  # multiplies in the place of `weight`

    def load(self, loaded: Tensor) -> None:
        """Take the weight of the file, as vLLM lays it out. Raises `CannotServeFactors` where the factors make another
        one: some models' rows are put in another order."""
        if self.factors is None:
            self.weight.copy_(loaded)
            return
        u, s, vt = self.factors.tensors()
        some = torch.arange(32, device=u.device) * (len(u) - 1) // 31  # in whole numbers: bf16 has few of them
        made = (u[some].float() * s) @ vt.float()
        if (made - loaded.to(u.device)[some].float()).norm() > 0.05 * made.norm():
            raise CannotServeFactors("vLLM holds the rows of a matrix in another order than the model's files")


class FactoredLinear(LinearMethodBase):
    """One layer of vLLM: name and factors of each of its parts, `None` for a plain one."""

    def __init__(self, prefix: str, parts: list[tuple[str, SVFFactors] | None]):
        self.prefix = prefix
        self.parts = parts
        self.table: MultiplierTable | None = None
        self.columns = slice(0)

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        if (input_size, output_size) != (input_size_per_partition, sum(output_partition_sizes)):
            raise CannotServeFactors(f"{self.prefix} is shared out over several devices, and factored layers are not")
        sizes = output_partition_sizes if len(self.parts) > 1 else [output_size]
        layer.svf_parts, vts, end = [], [], 0
        for part, size in zip(self.parts, sizes, strict=True):
            if part is None:
                layer.svf_parts.append(_Part(torch.empty(size, input_size, dtype=params_dtype)))
                continue
            name, factors = part
            u, s, vt = factors.tensors()
            if u.shape != (size, s.numel()) or vt.shape != (s.numel(), input_size) or u.dtype != params_dtype:
                raise SVFError(
                    f"{name} is {size} × {input_size} in {params_dtype} for vLLM, and by its factors {len(u)} × "
                    f"{vt.shape[1]} in {u.dtype}"
                )
            layer.svf_parts.append(_Part(u, slice(end, end := end + s.numel()), factors, packed_product(u)))
            vts.append(vt)
        layer.svf_vt = vts[0] if len(vts) == 1 else torch.cat(vts)  # one product for all
        layer.svf_packed = packed_product(layer.svf_vt)
        if layer.svf_packed is not None:
            layer.svf_vt = layer.svf_vt[:0].clone()
        elif len(vts) > 1:  # their holder has views of it from now on
            for part in layer.svf_parts:
                if part.factors is not None:
                    part.factors.Vt = layer.svf_vt[part.columns]
        # the parameter that vLLM's loaders look for
        weight = nn.Parameter(torch.empty(0, dtype=params_dtype), requires_grad=False)
        layer.register_parameter("weight", weight)
        set_weight_attrs(weight, {**extra_weight_attrs, "weight_loader": _loader_of(layer.svf_parts)})

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        for part in layer.svf_parts:
            if part.factors is None and (packed := packed_product(part.weight)) is not None:
                part.packed, part.weight = packed, part.weight[:0].clone()

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        tokens = x.flatten(0, -2)  # models of transformers' own classes have a batch of one
        h = _product(tokens, layer.svf_vt, layer.svf_packed)
        torch.ops.svf_rl.scale_(h, self.prefix)
        given = [(part, tokens if part.columns is None else h[:, part.columns]) for part in layer.svf_parts]
        if len(given) == 1:
            y = _product(h, layer.svf_parts[0].weight, layer.svf_parts[0].packed)
        elif torch.compiler.is_compiling() or any(part.packed is not None for part, _ in given):
            y = torch.cat([_product(x, part.weight, part.packed) for part, x in given], dim=1)
        else:  # written into their places, as a compiled model does by itself
            sizes = [len(part.weight) for part, _ in given]
            y = tokens.new_empty(len(tokens), sum(sizes))
            for (part, x), place in zip(given, y.split(sizes, dim=1), strict=True):
                torch.mm(x, part.weight.t(), out=place)
        y = y.unflatten(0, x.shape[:-1])
        return y if bias is None else y + bias

    def scale_(self, h: Tensor) -> None:
        if self.table is not None:  # while it measures its memory the engine has none yet
            self.table.scale_(h, self.columns)


def _product(x: Tensor, weight: Tensor, packed: Callable[[Tensor], Tensor] | None) -> Tensor:
    return F.linear(x, weight) if packed is None else packed(x)


def packed_product(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """vLLM's own product with a weight (out, in) that it has packed for this CPU; `None` where it has not, as in an
    engine whose weights stay those of a trainer."""
    if weight.device.type != "cpu":
        return None
    holder = nn.Module()
    holder.weight = nn.Parameter(weight, requires_grad=False)
    utils.dispatch_cpu_unquantized_gemm(holder, remove_weight=True)
    if holder.weight.numel():
        return None
    return lambda x: holder.cpu_linear(x.contiguous(), holder.weight, None)


def _loader_of(parts: list[_Part]) -> Callable[..., None]:
    """What vLLM gives a weight of the files to, with the place of the part that it is."""

    def load(parameter: nn.Parameter, loaded: Tensor, place: Any = None) -> None:
        chosen = parts
        if place is not None and len(parts) > 1:
            places = place if isinstance(place, tuple) else (place,)
            chosen = [parts[_PLACES[one] if isinstance(one, str) else one] for one in places]
        rows = loaded.split([len(part.weight) for part in chosen])
        for part, its_rows in zip(chosen, rows, strict=True):
            part.load(its_rows)

    return load


# An operation of its own, so that a compiled model reads the table as it is then.
@torch.library.custom_op("svf_rl::scale_", mutates_args=("h",))
def _scale(h: Tensor, layer: str) -> None:
    get_forward_context().no_compile_layers[layer].scale_(h)
