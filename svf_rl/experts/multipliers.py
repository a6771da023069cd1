"""The multipliers `m` of a saved expert, from its file alone."""

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svf_rl.svf.cache import FactorCache
from svf_rl.svf.expert import Expert
from svf_rl.svf.mask import Mask


def multipliers(expert: Expert) -> tuple[dict[str, Tensor], str | None]:
    """
    `m` (r,) of each matrix, fp32, and what is to be said about them.

    A renormalised expert's `m` depends on the singular values. The factor cache has them on a machine where the base
    model was decomposed; elsewhere `m` is given before the renormalisation, and the note says so.
    """
    mask = Mask.of(expert.config)
    plain = Mask(mask.parameterization, mask.max_multiplier, renormalize=False)
    before = {name: plain(z, torch.ones_like(z)) for name, z in expert.z.items()}
    if not mask.renormalize:
        return before, None
    scaled = {}
    for name, z in expert.z.items():
        s = _singular_values(expert.fingerprints[name])
        if s is None or s.shape != z.shape:
            return before, "m before its renormalisation: the factor cache lacks the base model's singular values"
        scaled[name] = mask(z, s)
    return scaled, None


def _singular_values(fingerprint: str) -> Tensor | None:
    """`s` (r,) in whatever type the factors were stored; U and V, the bulk of the file, are not read."""
    cache = FactorCache()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        path = cache.path(fingerprint, dtype)
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("s")
        except (OSError, SafetensorError):
            continue
    return None
