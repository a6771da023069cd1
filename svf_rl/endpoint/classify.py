r"""Which expert a request is for.

The classifier is asked as in dispatch, and writes nothing: `\boxed{label}` is put behind its prompt up to where the
labels part, and the next token's probabilities tell which of them it would go on with. For labels that part at one
token this is one prompt and one token, less than the whole labels' log-likelihoods take, and the same choice up to what
comes behind that token.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

NextToken = Callable[[list[int], list[int]], Awaitable[list[float]]]
"""Log-probabilities of these tokens (the second) after a prompt (the first)."""


@dataclass(frozen=True)
class Class:
    """The likeliest label, and its probability among the others where it was chosen."""

    label: str
    probability: float


async def classify(prompt: list[int], labels: Sequence[tuple[str, list[int]]], next_token: NextToken) -> Class:
    """
    Args:
        prompt (`list[int]`): What the classifier reads.
        labels (`Sequence`): Each label with the tokens of its answer, none of which begins another one.
        next_token ([`NextToken`]): Of the classifier.
    """
    left, place, probability = list(labels), 0, 1.0
    while len(left) > 1:
        branches = list(dict.fromkeys(ids[place] for _, ids in left))
        if len(branches) > 1:
            logps = await next_token(prompt + left[0][1][:place], branches)
            best = max(range(len(branches)), key=logps.__getitem__)
            probability *= math.exp(logps[best]) / sum(math.exp(logp) for logp in logps)
            left = [(label, ids) for label, ids in left if ids[place] == branches[best]]
        place += 1
    return Class(left[0][0], probability)
