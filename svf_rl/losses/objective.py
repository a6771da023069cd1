"""The objective of SVF REINFORCE as pure functions (Transformer², arXiv 2501.06252, equation 1):

    loss = mean over sequences of [ −A · Σ_t log p(y_t | x, y_<t) ]  +  β · KL

Shapes: `N` completions of all processes, `B` of them in a micro-batch, `T` tokens a completion (padded).
"""

import torch
from torch import Tensor

BASELINES = ("none", "leave_one_out", "group_mean", "batch_mean")
KL_TYPES = ("policy_ref", "ref_policy", "k1", "k2", "k3")


def compute_advantages(
    rewards: Tensor,
    group_size: int,
    baseline: str = "leave_one_out",
    normalize: bool = False,
    clip: float | None = None,
) -> Tensor:
    """
    Advantages of `N` completions; those of one prompt stand together.

    A completion without a reward (NaN: not scorable) gets advantage 0 and takes no part in any mean. In a group with
    one scorable completion, `leave_one_out` has nothing to compare with and gives it 0.

    Args:
        rewards (`Tensor` of shape `(N,)`): Rewards, NaN where a completion could not be scored.
        group_size (`int`): Completions a prompt; divides `N`.
        baseline (`str`): One of `BASELINES`.
        normalize (`bool`): Divide by the standard deviation of the rewards, of the group for the group baselines and of
            the batch for the others; where it is 0, all advantages are 0 anyway or stay as they are.
        clip (`float`, *optional*): Largest absolute value.

    Returns:
        `Tensor` of shape `(N,)`, fp32.
    """
    r = rewards.float().view(-1, group_size)  # (prompts, group)
    scored = ~r.isnan()
    values = r.nan_to_num(0.0)
    if baseline in ("batch_mean", "none"):
        values, scored = values.view(1, -1), scored.view(1, -1)
    count = scored.sum(1, keepdim=True)
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    if baseline == "none":
        result = values
    elif baseline in ("group_mean", "batch_mean"):
        result = values - mean
    elif baseline == "leave_one_out":
        others = (values.sum(1, keepdim=True) - values) / (count - 1).clamp(min=1)
        result = torch.where(count > 1, values - others, 0.0)
    else:
        raise ValueError(f"unknown baseline {baseline!r}")
    if normalize:
        variance = (((values - mean) ** 2) * scored).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        deviation = variance.sqrt()
        result = torch.where(deviation > 0, result / deviation.clamp(min=torch.finfo(torch.float32).tiny), result)
    result = torch.where(scored, result, 0.0).view(-1)
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


def compute_importance_weights(
    logps: Tensor, sampling_logps: Tensor, mask: Tensor, mode: str, minimum: float | None, maximum: float | None
) -> Tensor:
    """
    Importance weights `p_train / p_generator` that correct for tokens drawn from slightly other probabilities.

    Args:
        logps (`Tensor` of shape `(B, T)`): Log-probabilities under the policy in training.
        sampling_logps (`Tensor` of shape `(B, T)`): Those of the generator; NaN where it knows none (weight 1).
        mask (`Tensor` of shape `(B, T)`): 1 where a token counts.
        mode (`str`): `token_*` weighs each token, `sequence_*` the sequence as a whole; `*_truncate` clamps a weight to
            the bounds, `*_mask` drops what is outside of them.
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
    if mode.endswith("truncate"):
        return weights.clamp(minimum, maximum)
    inside = torch.ones_like(weights, dtype=torch.bool)
    if minimum is not None:
        inside &= weights >= minimum
    if maximum is not None:
        inside &= weights <= maximum
    return torch.where(inside, weights, 0.0)


def estimate_kl(logps: Tensor, ref_logps: Tensor, kind: str) -> Tensor:
    """
    Estimates of KL(policy ‖ reference) from the sampled token alone (J. Schulman, "Approximating KL divergence").

    Args:
        logps (`Tensor` of shape `(...)`): Log-probabilities of the tokens under the policy.
        ref_logps (`Tensor` of shape `(...)`): Those under the reference.
        kind (`str`): `k1` (unbiased; as a loss its gradient is 0 on average, so use it in the reward), `k2` (half the
            square; as a loss it has the gradient of the exact KL), `k3` (unbiased and never negative).

    Returns:
        `Tensor` of the shape of `logps`.
    """
    difference = ref_logps - logps
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference**2 / 2
    if kind == "k3":
        return torch.expm1(difference) - difference
    raise ValueError(f"unknown estimator {kind!r}")


def reduce_tokens(values: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """`(B, T)` to `(B,)`: the sum over the tokens that count, or their mean (0 where none does)."""
    total = torch.where(mask.bool(), values, 0.0).sum(1)
    return total if reduction == "sum" else total / mask.sum(1).clamp(min=1)


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
        mask (`Tensor` of shape `(B, T)`): 1 where a token counts; all 0 for a completion that takes no part.
        weights (`Tensor` of shape `(B, T)` or `(B, 1)`, *optional*): Importance weights.
        kl (`Tensor` of shape `(B, T)`, *optional*): Divergence from the reference at each token, with gradient.
        beta (`float`): Its coefficient.
        reduction (`str`): `sum` or `mean` over the tokens of a sequence.
        sequences (`float`): Sequences that take part in the whole update.

    Returns:
        Scalar `Tensor`.
    """
    likelihood = logps if weights is None else weights * logps
    loss = -advantages * reduce_tokens(likelihood, mask, reduction)  # (B,)
    if kl is not None and beta:
        loss = loss + beta * reduce_tokens(kl, mask, reduction)
    return loss.sum() / max(sequences, 1)
