"""How good a candidate is, from its graded completions of the few labelled prompts. Pure functions.

Greedy accuracy on ten prompts takes eleven values, and soon several candidates reach the highest of them: from then on
the search drifts. The accuracy of sampled completions is finer, and it rewards a margin: a model that is just about
right greedily is often wrong when it samples. The likelihood of the right completions is finer still. Of thirty random
combinations of the quickstart's experts, the one that greedy accuracy prefers answers 0.91 of other prompts (0.86 with
the unluckiest ten), the one that all three parts prefer 0.92 (0.91), and the best of the thirty 0.93.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from svf_rl.adaptation.arguments import FitnessWeights


@dataclass(frozen=True)
class Scored:
    """
    A graded completion of a labelled prompt.

    Args:
        prompt (`int`): which of the prompts.
        greedy (`bool`): decoded greedily, or sampled.
        correct (`bool` or `None`): `None` when the check failed by itself: the completion is left out.
        logp (`float` or `None`): mean log-probability of its tokens, in nats; needed of right completions alone.
    """

    prompt: int
    greedy: bool
    correct: bool | None
    logp: float | None = None


class Fitness(NamedTuple):
    """`value` is between 0 and 1; `tie_break`, the mean of the right completions' `logp`, decides between equals.
    Either is NaN where there is nothing to take it from, which [`svf_rl.adaptation.search`] ranks last."""

    value: float
    tie_break: float


def fitness(scored: Sequence[Scored], weights: FitnessWeights) -> Fitness:
    """The fitness of a candidate. Each prompt counts the same, however many of its completions could be graded."""
    parts = [
        (weights.greedy, _accuracy([s for s in scored if s.greedy], likelihood=False)),
        (weights.sampled, _accuracy([s for s in scored if not s.greedy], likelihood=False)),
        (weights.likelihood, _accuracy(scored, likelihood=True)),
    ]
    used = [(weight, value) for weight, value in parts if weight > 0]
    total = sum(weight * value for weight, value in used) / sum(weight for weight, _ in used)
    right = [s.logp for s in scored if s.correct and s.logp is not None]
    return Fitness(total, sum(right) / len(right) if right else math.nan)


def _accuracy(scored: Sequence[Scored], likelihood: bool) -> float:
    """Mean over the prompts of the mean over their completions; NaN without any."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for s in scored:
        if s.correct is not None:
            by_prompt[s.prompt].append(_credit(s, likelihood))
    shares = [sum(credits) / len(credits) for credits in by_prompt.values()]
    return sum(shares) / len(shares) if shares else math.nan


def _credit(scored: Scored, likelihood: bool) -> float:
    if not scored.correct:
        return 0.0
    if not likelihood:
        return 1.0
    return 0.0 if scored.logp is None else math.exp(scored.logp)
