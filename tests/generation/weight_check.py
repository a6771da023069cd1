"""An independent account of what vLLM's weights must be."""

import torch
from peft import PeftModel

from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.svf import svf_layers

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def expected_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """
    What every parameter of vLLM must hold, by its name there: `W + U diag(s(m − 1)) Vᵀ` of the model's factors in fp64,
    rounded once, then q, k, v and gate, up one upon the other. Written without the code that syncs.
    """
    weights = {n.replace(".base_layer", ""): p.data for n, p in model.get_base_model().named_parameters()}
    weights = {n: p for n, p in weights.items() if "svf_" not in n}
    for name, layer in svf_layers(model.get_base_model()).items():
        factors, w = layer.svf_factors, layer.base_layer.weight.data
        z = layer.svf_z["default"].weight.data.double()
        delta = factors.s.double() * (z - 1)
        weights[f"{name}.weight"] = (w.double() + (factors.U.double() * delta) @ factors.Vt.double()).to(w.dtype)
    return fused(weights)


def fused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Checkpoint weights under vLLM's names."""
    result = dict(weights)
    for whole, parts in FUSED.items():
        for name in [n for n in weights if f".{parts[0]}." in n]:
            names = [name.replace(parts[0], part) for part in parts]
            result[name.replace(parts[0], whole)] = torch.cat([result.pop(n) for n in names])
    return result


def ulps(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many representable numbers apart two tensors of one type are, element by element; NaN is far from all."""
    integer = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[actual.dtype]

    def ordered(t: torch.Tensor) -> torch.Tensor:
        bits = t.contiguous().view(integer).long()
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)

    distance = (ordered(actual) - ordered(expected)).abs()
    return distance.masked_fill(actual.isnan() | expected.isnan(), torch.iinfo(torch.long).max)


def wrong_weights(engine: ColocatedVLLMGenerator, expected: dict[str, torch.Tensor]) -> list[str]:
    """The parameters of the engine with an element more than one ulp off, or with more than 0.1 % of them off."""
    actual = {name.removesuffix(".bias"): p.data for name, p in engine.model.named_parameters()}
    wrong = []
    for name in sorted(set(actual) | set(expected)):
        if name not in actual or name not in expected or actual[name].dtype != expected[name].dtype:
            wrong.append(f"{name}: missing or of another type")
            continue
        off = ulps(actual[name], expected[name])
        share = (off > 0).double().mean().item()
        if off.max() > 1 or share > 1e-3:
            wrong.append(f"{name}: {off.max().item()} ulp, {share:.2%} off")
    return wrong
