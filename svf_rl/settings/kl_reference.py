"""What the KL term of a recipe keeps the policy near: the base model, or what the run starts from."""

from collections.abc import Mapping
from typing import Any

from svf_rl.errors import SVFError


def with_kl_reference(values: Mapping[str, Any], zero_stage: int) -> tuple[dict[str, Any], list[str]]:
    """
    The values with `kl_reference`, and a line where it is not what one would expect.

    A run that starts from trained values (`adapter_path`, `warm_up_steps`) stays near these by default, as TRL's GRPO
    trainer does with a trained adapter: near the base model the term would first undo what it starts with.

    Raises:
        SVFError: the start is asked for, and cannot be kept.
    """
    hinders = {
        "ZeRO-3": zero_stage == 3,
        "adapter: full, of which it would be a second copy of the trained matrices": values.get("adapter") == "full",
    }
    hindrance = next((what for what, there in hinders.items() if there), None)
    wanted = values.get("kl_reference")
    if wanted == "start" and hindrance:
        raise SVFError(f"kl_reference: start does not go with {hindrance}: set it to base")
    starts = values.get("adapter_path") is not None or bool(values.get("warm_up_steps"))
    has_term = values.get("beta") != 0 and values.get("objective") != "evolution_strategies"
    if wanted is not None or not starts or not has_term:
        return dict(values), []
    if hindrance:
        return dict(values), [f"kl_reference is base, and not start: that does not go with {hindrance}"]
    return {**values, "kl_reference": "start"}, []
