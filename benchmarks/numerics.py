"""What bf16 does to the factored layer and to merged weights, which a generator has: errors against fp64 and fp32.

    python benchmarks/numerics.py [--device cuda] [--shape 8b] [--out results.json]

Both stand for `W' = U diag(s·m) Vᵀ` with multipliers `m = 1 + 0.05·N(0, 1)`. First single layers: the relative error
of their output for random inputs, against fp64 with the exact factors. Then log-probabilities of random tokens under a
model of a few such layers, against the same model in fp32 with weights merged in fp64. Its output layer is scaled so
that logits spread about as those of a trained model do.
"""

import copy
from typing import Any

import torch
from common import MLP, SHAPES, arguments, decompose_once, hardware, linears, random_llama, report
from peft import get_peft_model
from torch import Tensor, nn

from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.decompose import Factors, thin_svd

LAYERS, SEQUENCES, TOKENS, HEAD = 4, 8, 256, 3.0
SPREAD = 0.05


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@torch.no_grad()
def of_layers(model: nn.Module, exact: dict[str, Factors]) -> list[dict[str, Any]]:
    """The errors of one layer of each kind of matrix."""
    rows, generator = [], torch.Generator().manual_seed(2)
    for name, layer in list(svf_layers(model).items())[: len(MLP)]:
        kind = name.rpartition(".")[2]
        x = torch.randn(SEQUENCES * TOKENS, layer.in_features, generator=generator).to(layer.weight)
        weight, f, m = layer.base_weight(), exact[kind], layer.multiplier("default").double()
        change = (f.U * (f.s * (m - 1))) @ f.Vt
        want = x.double() @ (weight.double() + change).T
        want_base = x.double() @ weight.double().T
        layer.reference = True
        factored_base = layer(x)
        layer.reference = False
        merged = layer.merged_weight()
        rows.append(
            {
                "matrix": kind,
                "shape": list(weight.shape),
                "factored": relative(layer(x), want),
                "merged": relative(nn.functional.linear(x, merged), want),
                "factored_at_1": relative(factored_base, want_base),
                "base": relative(nn.functional.linear(x, weight), want_base),
                "merged_weight": relative(merged, weight.double() + change),
            }
        )
    return rows


@torch.no_grad()
def log_softmax(model: nn.Module, ids: Tensor) -> Tensor:
    """`(B·(T − 1), V)` in fp32."""
    return torch.cat([model(input_ids=row[None]).logits[0, :-1].float().log_softmax(-1) for row in ids])


def differences(found: Tensor, want: Tensor, labels: Tensor) -> dict[str, float]:
    """Of the log-probability of each token, and the divergence over the vocabulary."""
    difference = (found - want).gather(1, labels[:, None])[:, 0].abs()
    kl = (want.exp() * (want - found)).sum(1)
    return {
        "mean": difference.mean().item(),
        "p99": difference.quantile(0.99).item(),
        "max": difference.max().item(),
        "mean_kl": kl.mean().item(),
    }


def main() -> None:
    args = arguments(__doc__, __file__)
    base = random_llama(SHAPES[args.shape].config(LAYERS), torch.bfloat16, args.device)
    base.lm_head.weight.data *= HEAD
    exact = {
        name.rpartition(".")[2]: thin_svd(layer.weight) for name, layer in linears(base.model.layers[0], MLP).items()
    }
    wide = copy.deepcopy(base).float()
    model = get_peft_model(decompose_once(base), SVFConfig(target_modules=MLP)).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SHAPES[args.shape].vocabulary, (SEQUENCES, TOKENS), generator=generator).to(args.device)
    labels = ids[:, 1:].flatten()
    at_start = log_softmax(model, ids)
    with model.disable_adapter():
        plain = log_softmax(model, ids)
    at_1 = differences(at_start, plain, labels)
    del at_start
    exact_base = log_softmax(wide, ids)
    logits = {"entropy": -(exact_base.exp() * exact_base).sum(1).mean().item(), "std": exact_base.std(1).mean().item()}
    base_error = differences(plain, exact_base, labels)
    del plain, exact_base
    layers_of_wide = linears(wide, MLP)
    for name, layer in svf_layers(model).items():
        z = layer.svf_z["default"].weight
        z.data += SPREAD * torch.randn(z.shape, generator=generator).to(z.device)
        path = name.removeprefix("base_model.model.")
        f, m = exact[name.rpartition(".")[2]], layer.multiplier("default").detach().double()
        layers_of_wide[path].weight.data = (layer.base_weight().double() + (f.U * (f.s * (m - 1))) @ f.Vt).float()
    layer_rows = of_layers(model, exact)
    want = log_softmax(wide, ids)
    factored = log_softmax(model, ids)
    model.merge_adapter()
    merged = log_softmax(model, ids)
    model.unmerge_adapter()
    result = {
        "hardware": hardware(args.device),
        "shape": args.shape,
        "layers": LAYERS,
        "tokens": len(labels),
        "fp32_base": logits,
        "relative_errors": layer_rows,
        "log_probabilities": {
            "factored at m = 1 − base": at_1,
            "base − base in fp32": base_error,
            "factored − merged": differences(factored, merged, labels),
            "factored − merged in fp32": differences(factored, want, labels),
            "merged − merged in fp32": differences(merged, want, labels),
        },
    }
    print({row["matrix"]: row for row in layer_rows})
    rows = [
        {"difference of log p": name} | {key: f"{value:.2e}" for key, value in found.items()}
        for name, found in result["log_probabilities"].items()
    ]
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
