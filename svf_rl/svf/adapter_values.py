"""The adapters of one layer: their trained values, and what these make of its factors."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from svf_rl.svf.core import Core
from svf_rl.svf.mask import Mask
from svf_rl.svf.probe import Projections, probe
from svf_rl.svf.sharding import whole

if TYPE_CHECKING:
    from svf_rl.svf.layer import SVFFactors


class AdapterValues:
    """The part of [`SVFLinear`] that asks the cores (`core.py`, and `mask.py` for `diagonal`)."""

    svf_factors: "SVFFactors"
    svf_z: nn.ModuleDict
    svf_bias: nn.ModuleDict
    svf_mask: dict[str, Core]
    projections: Projections
    quantized: bool
    active_adapters: list[str]

    def multiplier(self, adapter_name: str, z: Tensor | None = None) -> Tensor:
        """`m` (r,) of one adapter; `z` stands in for the stored vector when given."""
        s = self.svf_factors.s
        z = self._z(adapter_name) if z is None else z.to(s)
        return self.svf_mask[adapter_name](z, s)

    def _z(self, adapter_name: str) -> Tensor:
        return self._read(self.svf_z[adapter_name])

    def _read(self, vector: nn.Module) -> Tensor:
        if self.quantized:  # TRL's trainers have rounded what is trained over bitsandbytes' layers to bf16
            for parameter in vector.parameters():
                parameter.data = parameter.data.float()
        # not always called: ZeRO-3 would take the values back at once
        values = vector() if hasattr(vector, "_hf_hook") and next(vector.parameters()).is_meta else vector.weight
        return cast(Tensor, values)

    def active_multiplier(self) -> Tensor | None:
        """`m` (r,) of the active adapters together, or `None` where none of them adapts this layer."""
        names = [name for name in self.active_adapters if name in self.svf_z]
        if not names:
            return None
        m = self.multiplier(names[0])
        for name in names[1:]:
            m = m + (self.multiplier(name) - 1)
        return m

    def more_than_multiplier(self, adapter_names: Iterable[str] | None = None) -> list[str]:
        """Those of the given adapters (default: the active ones) whose core mixes, or that train a bias."""
        names = self.active_adapters if adapter_names is None else adapter_names
        return [n for n in names if n in self.svf_z and (self.svf_mask[n].mixes or n in self.svf_bias)]

    def off_diagonal(self, h: Tensor, names: Iterable[str], transposed: bool = False) -> Tensor | None:
        """`Σ C h` (..., r) of adapters, or of their `Cᵀ`; `None` where none of them mixes."""
        total = None
        for name in names:
            if name in self.svf_z and self.svf_mask[name].mixes:
                s, z = self.svf_factors.s.to(h.device), whole(self._z(name)).to(h.device)
                if h.dtype == torch.float64:
                    s, z = s.double(), z.double()
                part = self.svf_mask[name].mix(h, s, z, transposed)
                total = part if total is None else total + part
        return total

    def core_entries(self) -> Tensor | None:
        """The entries of `diag(s·m) + C` of the active adapters, see [`svf_rl.svf.core.Core.entries`]; `None` where
        none adapts this layer, and of several adapters of which one mixes."""
        names, s = [name for name in self.active_adapters if name in self.svf_z], self.svf_factors.s
        if len(names) == 1:
            return self.svf_mask[names[0]].entries(whole(self._z(names[0])), s)
        return s * self.active_multiplier() if names and not self.more_than_multiplier(names) else None

    def bias_change(self, adapter_names: Iterable[str] | None = None) -> Tensor | None:
        """The trained biases (out,) of the given adapters (default: the active ones) together; `None` for none."""
        names = self.active_adapters if adapter_names is None else adapter_names
        biases = [whole(self._read(self.svf_bias[name])) for name in names if name in self.svf_bias]
        return sum(biases[1:], start=biases[0]) if biases else None

    def masks_and_z(self, adapter_names: list[str] | None = None) -> list[tuple[Mask, Tensor]]:
        """The mask and the `z` (r,) of each of the given adapters (default: the active ones) that adapts this layer; of
        other cores than `diagonal` their multiplier, as a mask has it."""
        names = self.active_adapters if adapter_names is None else adapter_names
        return [self._mask_and_z(name) for name in names if name in self.svf_z]

    def _mask_and_z(self, name: str) -> tuple[Mask, Tensor]:
        core, z = self.svf_mask[name], whole(self._z(name))
        if isinstance(core, Mask):
            return core, z
        s = self.svf_factors.s
        # what mixes is sent nowhere as fp32: 1 + z keeps what is small against 1
        return Mask(), core(z.double(), s.double()) if core.mixes else core(z, s)

    def probe_of(self, adapter_name: str, z: Tensor) -> Tensor:
        """What a saved adapter's `z` does to this matrix, see `probe.py`: (16,)."""
        m, core = self.multiplier(adapter_name, z).detach(), self.svf_mask[adapter_name]
        mix = partial(core.mix, s=self.projections.s, z=z.detach().float().cpu()) if core.mixes else None
        return probe(self.projections, m, mix)

    def has_moved(self, name: str) -> bool:
        """Whether an adapter is no longer at the base weight, its bias apart."""
        core, z = self.svf_mask[name], self._z(name)
        change = self.multiplier(name) - 1 if isinstance(core, Mask) else z
        return bool(change.abs().max() > 1e-6)
