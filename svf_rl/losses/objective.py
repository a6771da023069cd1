"""The objective of SVF REINFORCE as pure functions (Transformer², arXiv 2501.06252, equation 1):

    loss = mean over sequences of [ −A · Σ_t log p(y_t | x, y_<t) ]  +  β · KL

Shapes: `N` completions of all processes, `B` of them in a micro-batch, `T` tokens per completion (padded).

`BASELINES`, `KL_ESTIMATES`, `EXACT_KL` (`token_logprobs.py`) and `REDUCTIONS` hold the variants by the names that a
recipe uses: an entry here is all that a new one takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svf_rl.losses.token_logprobs import EXACT_KL


@dataclass(frozen=True)
class Baseline:
    """How rewards become advantages: `subtract(values, count, mean)` takes the rewards `(rows, columns)`, with 0 for
    completions without one, and for each row how many have one and their mean, both `(rows, 1)`. A row is the
    completions of one prompt, or with `whole_batch` all of them."""

    subtract: Callable[[Tensor, Tensor, Tensor], Tensor]
    whole_batch: bool


def _subtract_others(values: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    others = (values.sum(1, keepdim=True) - values) / (count - 1).clamp(min=1)
    return torch.where(count > 1, values - others, 0.0)


BASELINES = {
    "none": Baseline(lambda values, count, mean: values, whole_batch=True),
    "leave_one_out": Baseline(_subtract_others, whole_batch=False),
    "group_mean": Baseline(lambda values, count, mean: values - mean, whole_batch=False),
    "batch_mean": Baseline(lambda values, count, mean: values - mean, whole_batch=True),
}


def compute_advantages(
    rewards: Tensor,
    group_size: int,
    baseline: str = "leave_one_out",
    normalize: bool = False,
    clip: float | None = None,
) -> Tensor:
    """
    Advantages of `N` completions; those of one prompt stand next to each other.

    A completion without a reward (NaN: not scorable) gets advantage 0 and is left out of every mean. In a group with
    one scorable completion, `leave_one_out` has nothing to compare with and gives it 0.

    Args:
        rewards (`Tensor` of shape `(N,)`): Rewards, NaN where a completion could not be scored.
        group_size (`int`): Completions per prompt; divides `N`.
        baseline (`str`): A key of `BASELINES`.
        normalize (`bool`): Divide by the standard deviation of the rewards, of the group for the group baselines and of
            the batch for the others. Where it is 0, the advantages stay as they are.
        clip (`float`, *optional*): Largest absolute value.

    Returns:
        `Tensor` of shape `(N,)`, fp32.
    """
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}")
    # in fp64 a mean of equal fp32 rewards is exact: of a group that teaches nothing, normalizing makes nothing
    whole_batch, r = BASELINES[baseline].whole_batch, rewards.float().double()
    r = r.view(1, -1) if whole_batch else r.view(-1, group_size)
    scored, values = ~r.isnan(), r.nan_to_num(0.0)
    count = scored.sum(1, keepdim=True)
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    result = BASELINES[baseline].subtract(values, count, mean)
    if normalize:
        variance = (((values - mean) ** 2) * scored).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        deviation = variance.sqrt()
        result = torch.where(deviation > 0, result / deviation.clamp(min=torch.finfo(r.dtype).tiny), result)
    result = torch.where(scored, result, 0.0).view(-1).float()
    return result if clip is None else result.clamp(-clip, clip)


def total_reward(rewards: Tensor, weights: Tensor) -> Tensor:
    """
    The weighted sum of several rewards.

    Args:
        rewards (`Tensor` of shape `(N, functions)`): NaN where a function could not score a completion.
        weights (`Tensor` of shape `(functions,)`): Of the functions.

    Returns:
        `Tensor` of shape `(N,)`: without those that could not score; NaN where none could.
    """
    total = (rewards * weights.to(rewards.device)).nansum(1)
    return total.masked_fill(rewards.isnan().all(1), torch.nan)


IMPORTANCE_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def compute_importance_weights(
    logps: Tensor, sampling_logps: Tensor, mask: Tensor, mode: str, minimum: float | None, maximum: float | None
) -> Tensor:
    """
    Importance weights `p_train / p_generator`, which correct for tokens sampled from slightly different probabilities.

    Args:
        logps (`Tensor` of shape `(B, T)`): Log-probabilities under the policy in training.
        sampling_logps (`Tensor` of shape `(B, T)`): Those of the generator; NaN where they are not known (weight 1).
        mask (`Tensor` of shape `(B, T)`): 1 where a token counts.
        mode (`str`): One of `IMPORTANCE_MODES`. `token_*` weighs each token, `sequence_*` the whole sequence;
            `*_truncate` clamps a weight to the bounds, `*_mask` sets a weight outside of them to 0.
        minimum, maximum (`float`, *optional*): The bounds.

    Returns:
        `Tensor` of shape `(B, T)` or `(B, 1)`, without gradient.
    """
    difference = ((logps.detach() - sampling_logps) * mask).nan_to_num(0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    weights = difference.exp()
    if minimum is None and maximum is None:
        return weights
    bounded = weights.clamp(minimum, maximum)
    return bounded if mode.endswith("truncate") else torch.where(weights == bounded, weights, 0.0)


# From log p_ref − log p of the sampled token. k1 is unbiased, but as a loss its gradient is 0 on average, so use it in
# the reward; k2 has, as a loss, the gradient of the exact KL; k3 is unbiased and never negative.
KL_ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda difference: -difference,
    "k2": lambda difference: difference**2 / 2,
    "k3": lambda difference: torch.expm1(difference) - difference,
}
KL_TYPES = (*EXACT_KL, *KL_ESTIMATES)


def estimate_kl(logps: Tensor, ref_logps: Tensor, kind: str) -> Tensor:
    """
    Estimates of KL(policy ‖ reference) from the sampled token alone (J. Schulman, "Approximating KL divergence").

    Args:
        logps (`Tensor` of shape `(...)`): Log-probabilities of the tokens under the policy.
        ref_logps (`Tensor` of shape `(...)`): Those under the reference.
        kind (`str`): A key of `KL_ESTIMATES`.

    Returns:
        `Tensor` of the shape of `logps`.
    """
    if kind not in KL_ESTIMATES:
        raise ValueError(f"unknown estimator {kind!r}")
    return KL_ESTIMATES[kind](ref_logps - logps)


# From the sums over the tokens that count (B,) and the mask (B, T); a sequence without such a token gives 0.
REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda total, mask: total,
    "mean": lambda total, mask: total / mask.sum(1).clamp(min=1),
}


def reduce_tokens(values: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """`(B, T)` to `(B,)`, over the tokens that count; `reduction` is a key of `REDUCTIONS`."""
    return REDUCTIONS[reduction](torch.where(mask.bool(), values, 0.0).sum(1), mask)


def reinforce_loss(
    logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    kl: Tensor | None,
    beta: float,
    reduction: str,
    sequences: float,
) -> Tensor:
    """
    The loss of one micro-batch; micro-batches add up to the mean over `sequences`.

    Args:
        logps (`Tensor` of shape `(B, T)`): Log-probabilities of the chosen tokens, with gradient.
        advantages (`Tensor` of shape `(B,)`): Advantages.
        mask (`Tensor` of shape `(B, T)`): 1 where a token counts; all 0 for a completion that is left out.
        weights (`Tensor` of shape `(B, T)` or `(B, 1)`, *optional*): Importance weights.
        kl (`Tensor` of shape `(B, T)`, *optional*): Divergence from the reference at each token, with gradient.
        beta (`float`): Its coefficient.
        reduction (`str`): A key of `REDUCTIONS`.
        sequences (`float`): Sequences that count in the whole optimizer step.

    Returns:
        Scalar `Tensor`.
    """
    likelihood = logps if weights is None else weights * logps
    loss = -advantages * reduce_tokens(likelihood, mask, reduction)  # (B,)
    if kl is not None and beta:
        loss = loss + beta * reduce_tokens(kl, mask, reduction)
    return loss.sum() / max(sequences, 1)


def entropy_bonus(entropy: Tensor, coefficient: float, tokens: float) -> Tensor:
    """
    What a bonus for entropy adds to the loss of one micro-batch; micro-batches add up to `−coefficient` times the mean
    over the `tokens` that count in the whole optimizer step, as TRL's `entropy_coef` has it.

    Args:
        entropy (`Tensor` of shape `(n,)`): Of the policy at each token that counts, with gradient.
    """
    return -coefficient * entropy.sum() / max(tokens, 1)
