"""REINFORCE with SVF written a second time, densely: every `W'` is built, and autograd goes through it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

Sample = tuple[list[int], list[int]]  # prompt and completion


def masked_weight(w: Tensor, z: Tensor, sigmoid: float | None = None, renormalize: bool = False) -> Tensor:
    """`W' = U diag(s·m) Vᵀ · Σs / Σ(s·m)`; `sigmoid` is its largest value, `None` takes `m = z`."""
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    m = z if sigmoid is None else sigmoid * torch.sigmoid(z)
    scale = s.sum() / (s * m).sum() if renormalize else 1.0
    return (u * (s * m)) @ vt * scale


def dense_gradients(
    base: nn.Module,
    z: dict[str, Tensor],
    samples: Sequence[Sample],
    advantages: Sequence[float],
    *,
    sigmoid: float | None = None,
    renormalize: bool = False,
    beta: float = 0.0,
    direction: str = "policy_ref",
    reduction: str = "sum",
    sampled_logps: Sequence[Tensor] | None = None,
) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """
    Gradients of the loss by the name of the weight; log-probabilities `(T,)` of each sample; divergences `(T,)`.

    One sequence at a time, in the precision of `base` (fp64 in the tests), so without padding, chunks or estimates.
    """
    leaves = {name: value.detach().double().requires_grad_() for name, value in z.items()}
    parameters = dict(base.named_parameters())
    frozen = {n: p.detach() for n, p in parameters.items() if "." in n}
    policy = {name: masked_weight(frozen[name], p, sigmoid, renormalize) for name, p in leaves.items()}
    loss, all_logps, all_kl = torch.zeros(()), [], []
    for i, (prompt, completion) in enumerate(samples):
        ids, rows = torch.tensor([prompt + completion]), torch.arange(len(completion))
        lp, lq = (
            functional_call(base, weights, (ids,)).logits[0, len(prompt) - 1 : -1].log_softmax(1)
            for weights in (policy, {})
        )
        logps = lp[rows, torch.tensor(completion)]
        a, b = (lp, lq.detach()) if direction == "policy_ref" else (lq.detach(), lp)
        kl = (a.exp() * (a - b)).sum(1)
        weights = 1.0 if sampled_logps is None else (logps.detach() - sampled_logps[i]).exp().clamp(max=3.0)
        count = 1 if reduction == "sum" else len(completion)
        loss = loss + (-advantages[i] * (weights * logps).sum() + beta * kl.sum()) / count
        all_logps, all_kl = [*all_logps, logps.detach()], [*all_kl, kl.detach()]
    gradients = torch.autograd.grad(loss / max(len(samples), 1), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True)), all_logps, all_kl
