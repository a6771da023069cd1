"""
Evolution strategies: the gradient of a reward from the fitness of perturbed values alone, without a derivative.

After T. Salimans, J. Ho, X. Chen, S. Sidor, I. Sutskever, "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning" (2017): antithetic perturbations, centered ranks, and perturbations that are drawn again from
their seeds instead of being kept. Members `2k` and `2k + 1` of a population are the pair `x + sigma·eps_k` and
`x − sigma·eps_k`.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def perturbation(seed: int, size: int) -> Tensor:
    """`eps` (size,), standard normal, fp32 on the CPU: the seed alone decides it, on every device and process."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def member_fitness(rewards: Tensor) -> Tensor:
    """
    The mean reward of each member over its prompts.

    A completion that could not be scored counts as the mean of its prompt, so that nobody gains by lacking the reward
    of a hard one; a prompt without any reward is left out.

    Args:
        rewards (`Tensor` of shape `(prompts, members)`): NaN where a completion could not be scored.

    Returns:
        `Tensor` of shape `(members,)`, fp32; NaN for a member without any reward.
    """
    rewards = rewards.double()  # or the order of a sum would decide between equals
    filled = torch.where(rewards.isnan(), rewards.nanmean(1, keepdim=True), rewards)
    return filled.nanmean(0).float().masked_fill(rewards.isnan().all(0), torch.nan)


def _centered_ranks(values: Tensor) -> Tensor:
    """From −0.5 for the worst to 0.5 for the best; equals share the mean of their ranks."""
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)  # itself included
    return (below + (equal - 1) / 2) / max(len(values) - 1, 1) - 0.5


def _standard_scores(values: Tensor) -> Tensor:
    deviation = values.std(correction=0)
    return (values - values.mean()) / deviation if deviation > 0 else torch.zeros_like(values)


FITNESS: dict[str, Callable[[Tensor], Tensor]] = {"ranks": _centered_ranks, "normalized": _standard_scores}
"""What becomes of the fitness `(members,)` of a population before the gradient is estimated from it."""


def shape_fitness(fitness: Tensor, kind: str) -> Tensor:
    """
    Args:
        fitness (`Tensor` of shape `(members,)`): NaN for a member without fitness, which is compared with nobody.
        kind (`str`): A key of `FITNESS`.

    Returns:
        `Tensor` of shape `(members,)`: the shaped fitness, NaN where there was none.
    """
    if kind not in FITNESS:
        raise ValueError(f"unknown shaping {kind!r}")
    there = ~fitness.isnan()
    shaped = torch.full_like(fitness, torch.nan)
    if there.any():
        shaped[there] = FITNESS[kind](fitness[there])
    return shaped


def estimate_gradient(shaped: Tensor, perturbations: Iterable[Tensor], sigma: float) -> Tensor:
    """
    The gradient of the loss (of minus the fitness): `−1 / (2·K·sigma) · Σ_k (F₊ₖ − F₋ₖ)·eps_k`.

    Args:
        shaped (`Tensor` of shape `(2·K,)`): Fitness of the members. A pair of which one has none (NaN) does not count
            among the K.
        perturbations (`Iterable[Tensor]`): The K `eps` (size,), each asked for once.
        sigma (`float`): The size of a perturbation.

    Returns:
        `Tensor` of shape `(size,)`, where the perturbations are.
    """
    differences = shaped[0::2] - shaped[1::2]  # (K,)
    pairs = max(int((~differences.isnan()).sum()), 1)
    steps = (-differences.nan_to_num(0.0) / (2 * pairs * sigma)).tolist()
    terms = (step * eps for step, eps in zip(steps, perturbations, strict=True))
    total = next(terms)
    for term in terms:
        total += term
    return total
