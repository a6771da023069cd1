"""Muon (Jordan et al. 2024): momentum whose singular values are all pushed towards 1.

It learns these skills in about two thirds of AdamW's steps. `torch.optim.Muon` iterates in bfloat16, which CPUs
without bfloat16 arithmetic do slowly; this one iterates in the weights' own type.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


def orthogonalized(matrix: Tensor) -> Tensor:
    """`matrix` (m, n) with its singular values brought near 1 by five Newton-Schulz iterations of degree five."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.T if tall else x


class Muon(Optimizer):
    """For 2-D parameters (m, n): Nesterov momentum, orthogonalized, times sqrt(max(1, m / n))."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update from the gradients in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalized(parameter.grad.lerp(average, group["momentum"]))
                parameter.add_(update, alpha=-group["lr"] * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5)
