"""What next-token training uses in place of a recipe's own settings."""

from collections.abc import Mapping
from typing import Any

from svf_rl.losses.objective import KL_ESTIMATES


def next_token_settings(kl_type: str) -> dict[str, Any]:
    """
    The values that next-token training uses instead of the recipe's: one target per prompt, all with the same weight,
    under the model's own distribution. The KL term is the exact one, in the loss: estimates need tokens sampled by the
    policy; an entropy bonus would work against the targets. So `objective: next_token` alone turns a recipe for policy
    gradient into its counterpart in an ablation.
    """
    return {
        "num_generations": 1,
        "advantage": "none",
        "normalize_advantages": False,
        "advantage_clip": None,
        "temperature": 1.0,
        "kl_placement": "loss",
        "entropy_coef": None,
        "kl_type": "policy_ref" if kl_type in KL_ESTIMATES else kl_type,
    }


def apply_next_token_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values with those of next-token training, and one line for each that differs in the recipe."""
    fixed = next_token_settings(values.get("kl_type", "policy_ref"))
    lines = [
        f"objective next_token: {key} is {value}, not {values[key]}"
        for key, value in fixed.items()
        if key in values and values[key] != value
    ]
    return {**values, **fixed}, lines
