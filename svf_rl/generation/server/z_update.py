"""What a vLLM server needs to rebuild its weights: the layout of an adapter once, then only `z`.

Both sides use this file: the training process packs, the server's workers unpack.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.generation.weights import stored_name
from svf_rl.svf import SVFLinear, svf_layers
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.config import LARGEST
from svf_rl.svf.decompose import Factors
from svf_rl.svf.mask import Mask
from svf_rl.svf.sharding import gather_parameters, is_sharded

ROWS = "/svf_rl/rows"
"""Where a server of rows takes a version."""


@dataclass(frozen=True)
class AdaptedMatrix:
    """One weight of the model: its name in the checkpoint, its fingerprint (the key of its factors too), whether it is
    stored as (in, out), the length `r` of a `z`, and the mask of each adapter that acts on it."""

    name: str
    fingerprint: str
    transposed: bool
    rank: int
    masks: tuple[Mask, ...]

    def check_served(self, fingerprint: str, model: str) -> None:
        """Raises `SVFError` where a server of `model` has another weight of the name, with this `fingerprint`."""
        if fingerprint != self.fingerprint:
            raise SVFError(
                f"it serves {model}, whose {self.name} differs from that of the trained model: start it with "
                "the model of the recipe (svf-rl serve RECIPE)"
            )

    def check_rank(self, rank: int) -> None:
        """Raises `SVFError` where the factors that are served have another."""
        if rank != self.rank:
            raise SVFError(f"the layout has rank {self.rank} for {self.name}, which has {rank}")


@dataclass(frozen=True)
class Layout:
    """The adapted weights of a model in a fixed order, and where their factors are: `cache` is a folder that the
    server's machine must be able to read. `prefix` is the base model's, `dtype` the type of its weights
    (`"bfloat16"`)."""

    cache: str
    prefix: str
    dtype: str
    matrices: tuple[AdaptedMatrix, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Layout":
        """From what `dataclasses.asdict` makes of it. Raises `SVFError` for anything else."""
        try:
            matrices = [
                AdaptedMatrix(**{**matrix, "masks": tuple(Mask(**mask) for mask in matrix["masks"])})
                for matrix in data["matrices"]
            ]
            return cls(**{**data, "matrices": tuple(matrices)})
        except (TypeError, KeyError, AttributeError) as error:
            raise SVFError(f"a layout that is none ({error}): use the same svf_rl on both sides") from error

    def check(self, model: str, dtype: torch.dtype) -> None:
        """Raises `SVFError` where a server of `model` in `dtype` cannot use it, for a field of another type, a matrix
        that comes twice, a rank that is not positive, or a mask that no adapter has. (Plain data from another
        process.)"""
        served = str(dtype).removeprefix("torch.")
        if self.dtype != served:
            raise SVFError(
                f"it serves {model} in {served}, and the trained model has {self.dtype}: start it with "
                f"--dtype {self.dtype}"
            )
        names = [matrix.name for matrix in self.matrices]
        texts = [self.cache, self.prefix, self.dtype, *names, *(matrix.fingerprint for matrix in self.matrices)]
        if not all(isinstance(text, str) for text in texts):
            raise SVFError("a layout whose names are not text: use the same svf_rl on both sides")
        if len(set(names)) != len(names):
            raise SVFError("a layout that names a matrix twice: an update would be of neither")
        for matrix in self.matrices:
            if type(matrix.rank) is not int or matrix.rank < 1 or type(matrix.transposed) is not bool:
                raise SVFError(f"the layout has rank {matrix.rank!r} for {matrix.name}: it must be a positive number")
            for mask in matrix.masks:
                mask.check()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def version(self, z: bytes) -> str:
        """The name of the weights of this layout and these `z`: equal exactly where the weights are equal."""
        return hashlib.sha256(self.digest.encode() + z).hexdigest()

    def unpack(self, version: str, z: bytes) -> list[list[tuple[Mask, Tensor]]]:
        """[`split`] of the `z` that `version` names. Raises `SVFError` for others."""
        parts = self.split(z)
        if self.version(z) != version:
            raise SVFError("an update did not arrive as it was sent: its digest differs")
        return parts

    def split(self, z: bytes) -> list[list[tuple[Mask, Tensor]]]:
        """Undo `pack`: for each matrix the mask and the `z` (r,) of each of its adapters. Raises `SVFError` for another
        number of values than the layout has, or one that is not finite."""
        sizes = [matrix.rank for matrix in self.matrices for _ in matrix.masks]
        if len(z) != 4 * sum(sizes):
            raise SVFError(f"an update has {len(z)} bytes instead of the {4 * sum(sizes)} of the layout")
        values = torch.frombuffer(bytearray(z), dtype=torch.float32) if z else torch.empty(0)
        check_values(values, "z", LARGEST)
        parts = iter(values.split(sizes))
        return [[(mask, next(parts)) for mask in matrix.masks] for matrix in self.matrices]


def check_values(values: Tensor, name: str, bound: float) -> None:
    """Raises `SVFError` for values that are not finite, or above `bound` in size: the training has diverged."""
    largest = values.abs().max().item() if values.numel() else 0.0  # NaN where a value is
    if not largest <= bound:
        found = f"a value of {largest:g}" if math.isfinite(largest) else "NaN or infinite values"
        raise SVFError(f"{name} holds {found}: the training has diverged, lower its learning_rate")


def has_only_svf(model: nn.Module) -> bool:
    """Whether multipliers describe every change by the adapters of `model`; true for a model without adapters."""
    adapted = (m for m in model.modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper))
    return all(isinstance(module, SVFLinear) and not module.more_than_multiplier() for module in adapted)


def describe_layout(model: nn.Module) -> Layout:
    """The layout of the active SVF adapters of `model`. Factors that were computed on injection and are missing in the
    cache are stored there; raises `SVFError` where that cannot be done, or a base weight is quantised."""
    cache, dtype = FactorCache(), next(model.parameters()).dtype
    matrices = []
    for name, layer in svf_layers(model).items():
        layer.check_mergeable()
        factors, dtype = layer.svf_factors, layer.base_weight().dtype
        # factors that ZeRO-3 has sharded are in the cache already
        if not is_sharded(factors.U) and not cache.contains(layer.weight_id, dtype):
            cache.store(layer.weight_id, Factors(factors.U.detach(), factors.s, factors.Vt.detach()))
        masks = tuple(mask for mask, _ in layer.masks_and_z())
        weight, r = stored_name(model, f"{name}.weight"), factors.s.numel()
        matrices.append(AdaptedMatrix(weight, layer.weight_id, layer.transposed, r, masks))
    prefix = getattr(model, "base_model_prefix", "")
    return Layout(str(cache.root.resolve()), prefix, str(dtype).removeprefix("torch."), tuple(matrices))


def pack(model: nn.Module) -> bytes:
    """The `z` of the active SVF adapters of `model`, in the order of its layout: fp32, little-endian."""
    z: list[Tensor] = []
    for layer in svf_layers(model).values():
        with gather_parameters(layer.svf_z.parameters()):
            z.extend(part.detach().float().cpu().clone() for _, part in layer.masks_and_z())
    return torch.cat(z).numpy().astype("<f4").tobytes() if z else b""
