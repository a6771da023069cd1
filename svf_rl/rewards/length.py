"""`length`: the completion is not too long. A shaping reward, to be added to another with a small weight.

Its shape is the soft overlong punishment of DAPO (Yu et al., arXiv 2503.14476, equation 13), shifted to lie between 0
and 1: full reward up to `target`, none from `maximum` on, and linear in between.
"""

from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.verifier import Verdict, verifier


@verifier("length", column="completion_ids")
def length(
    completion: str,
    reference: Any = None,
    *,
    target: int = 512,
    maximum: int = 1024,
    unit: str = "tokens",
) -> Verdict:
    """
    1 up to `target`, 0 from `maximum` on, linear in between.

    The reference is the completion's token ids, which the trainer passes to rewards; without them, `unit` must be
    `"characters"` or `"words"`.

    Args:
        target (`int`, *optional*, defaults to `512`): the largest length with full reward.
        maximum (`int`, *optional*, defaults to `1024`): the smallest length without reward.
        unit (`str`, *optional*, defaults to `"tokens"`): `"tokens"`, `"characters"` or `"words"`.

    Raises:
        SVFError: limits that are not whole numbers with 0 <= target < maximum, an unknown unit, or no token ids.
    """
    for name, limit in (("target", target), ("maximum", maximum)):
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise SVFError(f"length: {name} must be a whole number, got {limit!r}")
    if not 0 <= target < maximum:
        raise SVFError(f"length: target must be from 0 up and below maximum, got {target} and {maximum}")
    match unit:
        case "tokens":
            if reference is None or isinstance(reference, str):
                raise SVFError("length: there are no token ids; set unit to characters or words")
            measured = len(reference)
        case "characters":
            measured = len(completion)
        case "words":
            measured = len(completion.split())
        case _:
            raise SVFError(f"length: unit must be tokens, characters or words, got {unit!r}")
    score = min(1.0, max(0.0, (maximum - measured) / (maximum - target)))
    return Verdict(score == 1.0, None, f"{measured} {unit}", score=score)
