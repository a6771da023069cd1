"""How good a candidate is: the model that it makes answers the few labelled prompts, and is graded.

Greedy accuracy on ten prompts takes eleven values, and soon several candidates reach the highest of them: from then on
the search drifts. The accuracy of sampled completions is finer, and it rewards a margin: a model that is just about
right greedily is often wrong when it samples. The likelihood of the right completions is finer still. Of thirty random
combinations of the quickstart's experts, the one that greedy accuracy prefers answers 0.91 of other prompts (0.86 with
the unluckiest ten), the one that all three parts prefer 0.92 (0.91), and the best of the thirty 0.93.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from svf_rl.adaptation.arguments import FewShotArguments, FitnessWeights
from svf_rl.evaluation.answers import decode_completions
from svf_rl.evaluation.items import TaskItems
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.generation import Completion, sample_seed
from svf_rl.rewards import Verdict


@dataclass(frozen=True)
class Scored:
    """A graded completion of a labelled prompt."""

    prompt: int  # which of the prompts
    greedy: bool  # decoded greedily, or sampled
    correct: bool | None  # `None` when the check failed by itself: the completion is left out
    logp: float | None = None  # mean log-probability of its tokens, in nats; needed of right completions alone


class Fitness(NamedTuple):
    """`value` is between 0 and 1; `tie_break`, the mean of the right completions' `logp`, decides between equals.
    Either is NaN where there is nothing to take it from, which [`svf_rl.adaptation.search`] ranks last."""

    value: float
    tie_break: float


def evaluate_candidates(
    pool: ExpertPool, labelled: TaskItems, mixes: Sequence[Mix], arguments: FewShotArguments, generation: int
) -> list[Fitness]:
    """
    Let candidates answer the labelled prompts, each once greedily and some times sampled: all of them in one batch.

    The candidates of a generation are sampled with the same seeds, so that luck is the same for all of them; the next
    generation has other seeds, so that none wins by suiting one draw.
    """
    greedy = replace(labelled.sampling.greedy(), logprobs=True)
    sampled = replace(labelled.sampling, temperature=arguments.temperature, logprobs=True)
    count = len(labelled.prompt_ids)
    drawn = [(prompt, sample) for prompt in range(count) for sample in range(arguments.samples)]
    seeds = [sample_seed(arguments.seed, f"few_shot/{generation}", prompt, sample) for prompt, sample in drawn]
    of = [*range(count), *(prompt for prompt, _ in drawn)]
    completions = pool.generate(
        [labelled.prompt_ids[prompt] for prompt in of] * len(mixes),
        [*[greedy] * count, *[sampled] * len(drawn)] * len(mixes),
        [*[0] * count, *seeds] * len(mixes),
        [mix for mix in mixes for _ in of],
    )
    texts = decode_completions(pool.tokenizer, completions, labelled.sampling.stop)
    rows = [labelled.rows[prompt] for _ in mixes for prompt in of]
    verdicts = labelled.grader.grade(rows, texts, [completion.token_ids for completion in completions])
    found = []
    for start, mix in zip(range(0, len(completions), len(of)), mixes, strict=True):
        own = slice(start, start + len(of))
        found.append(_fitness_of(pool, labelled, mix, of, completions[own], verdicts[own], arguments.weights))
    return found


def _fitness_of(
    pool: ExpertPool,
    labelled: TaskItems,
    mix: Mix,
    of: Sequence[int],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    weights: FitnessWeights,
) -> Fitness:
    right = [i for i, verdict in enumerate(verdicts) if verdict.correct]
    logps = _logps(pool, mix, [labelled.prompt_ids[of[i]] for i in right], [completions[i] for i in right])
    logp = dict(zip(right, logps, strict=True))
    scored = [
        Scored(prompt, i < len(labelled.prompt_ids), verdict.correct, logp.get(i))
        for i, (prompt, verdict) in enumerate(zip(of, verdicts, strict=True))
    ]
    return fitness(scored, weights)


def _logps(pool: ExpertPool, mix: Mix, prompts: list[list[int]], completions: list[Completion]) -> list[float | None]:
    """Mean log-probability of the tokens; asked of the model where the generator does not tell it by itself."""
    known = [completion.logprobs for completion in completions]
    if any(values is None for values in known):
        pool.use(mix)
        known = list(pool.loglikelihood(prompts, [completion.token_ids for completion in completions]))
    return [sum(values) / len(values) if values else None for values in known]


def fitness(scored: Sequence[Scored], weights: FitnessWeights) -> Fitness:
    """The fitness of a candidate. Each prompt counts the same, however many of its completions could be graded."""
    graded = [s for s in scored if s.correct is not None]
    likelihoods = [(s.prompt, math.exp(s.logp) if s.correct and s.logp is not None else 0.0) for s in graded]
    parts = [
        (weights.greedy, _mean((s.prompt, float(s.correct is True)) for s in graded if s.greedy)),
        (weights.sampled, _mean((s.prompt, float(s.correct is True)) for s in graded if not s.greedy)),
        (weights.likelihood, _mean(likelihoods)),
    ]
    used = [(weight, value) for weight, value in parts if weight > 0]
    total = sum(weight * value for weight, value in used) / sum(weight for weight, _ in used)
    right = [s.logp for s in graded if s.correct and s.logp is not None]
    return Fitness(total, sum(right) / len(right) if right else math.nan)


def _mean(credits: Iterable[tuple[int, float]]) -> float:
    """Mean over the prompts of the mean over their completions; NaN without any."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for prompt, credit in credits:
        by_prompt[prompt].append(credit)
    shares = [sum(values) / len(values) for values in by_prompt.values()]
    return sum(shares) / len(shares) if shares else math.nan
