"""What a request can name as its model, beside single adapters: mixtures such as `math:0.6+code:0.4`."""

import math
from collections.abc import Mapping

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.mixture import Mixture

_LARGEST = 4.0
"""The weight of an expert, in size. Far from its training a model says nothing any more."""


def parse_mixture(name: str, experts: Mapping[str, str]) -> Mixture | None:
    """
    `math:0.6+code:0.4` as the base model with .6 of what `math` changes, and .4 of what `code` does.

    Args:
        name (`str`): The model of a request.
        experts (`Mapping[str, str]`): Folders by name.

    Returns:
        The mixture, with the experts in their own order, or `None` for a name without weights.

    Raises:
        SVFError: an unknown expert, one that comes twice, or a weight that is no number from -4 to 4.
    """
    if ":" not in name:
        return None
    weights: dict[str, float] = {}
    for part in name.split("+"):
        expert, _, number = part.partition(":")
        if expert not in experts:
            raise SVFError(f"there is no expert {expert!r:.80} in {name!r:.200}; there are: {', '.join(experts)}")
        if expert in weights:
            raise SVFError(f"{name!r:.200} names {expert} twice: add up its weights")
        try:
            weights[expert] = float(number)
        except ValueError:
            weights[expert] = math.nan
        if not abs(weights[expert]) <= _LARGEST:
            raise SVFError(f"{part!r:.80} has no weight from {-_LARGEST:g} to {_LARGEST:g}: write it as in math:0.6")
    used = [expert for expert in experts if expert in weights]
    return Mixture(tuple(experts[expert] for expert in used), (tuple(weights[expert] for expert in used),))
