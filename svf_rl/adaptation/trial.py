"""One candidate tried out: the model that it makes answers the labelled prompts, and is graded."""

from collections.abc import Sequence
from dataclasses import replace

from svf_rl.adaptation.arguments import FitnessWeights
from svf_rl.adaptation.fitness import Fitness, Scored, fitness
from svf_rl.evaluation.answers import decode_completions
from svf_rl.evaluation.items import TaskItems
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.generation import Completion, sample_seed


class Trial:
    """
    Lets candidates answer the labelled prompts: once greedily, and some times sampled.

    Args:
        pool ([`ExpertPool`]): generates.
        items ([`TaskItems`]): of which the rows `shots` are asked.
        shots (`Sequence[int]`): the labelled prompts.
        samples (`int`): completions sampled of each prompt beside the greedy one.
        temperature (`float`): of the samples.
        weights ([`FitnessWeights`]): the parts of the fitness.
        seed (`int`): of the samples.
    """

    def __init__(
        self,
        pool: ExpertPool,
        items: TaskItems,
        shots: Sequence[int],
        samples: int,
        temperature: float,
        weights: FitnessWeights,
        seed: int,
    ):
        self._pool, self._grader = pool, items.grader
        self._samples, self._weights, self._seed = samples, weights, seed
        self._rows = [items.rows[row] for row in shots]
        self._prompts = [items.prompt_ids[row] for row in shots]
        self._greedy = replace(items.sampling.greedy(), logprobs=True)
        self._sampled = replace(items.sampling, temperature=temperature, logprobs=True)

    def evaluate(self, mix: Mix, generation: int) -> Fitness:
        """The candidates of a generation are sampled with the same seeds, so that luck is the same for all of them; the
        next generation has other seeds, so that none wins by suiting one draw."""
        count, samples = len(self._prompts), self._samples
        self._pool.use(mix)
        completions = self._pool.generate(self._prompts, self._greedy, [0] * count)
        if samples:
            purpose = f"few_shot/{generation}"
            keys = [(prompt, sample) for prompt in range(count) for sample in range(samples)]
            completions = completions + self._pool.generate(
                [self._prompts[prompt] for prompt, _ in keys],
                self._sampled,
                [sample_seed(self._seed, purpose, prompt, sample) for prompt, sample in keys],
            )
        of = [*range(count), *(prompt for prompt in range(count) for _ in range(samples))]
        tokens = [completion.token_ids for completion in completions]
        texts = decode_completions(self._pool.tokenizer, completions, self._greedy.stop)
        verdicts = self._grader.grade([self._rows[prompt] for prompt in of], texts, tokens)
        right = [i for i, verdict in enumerate(verdicts) if verdict.correct]
        logp = dict(zip(right, self._logps([(of[i], completions[i]) for i in right]), strict=True))
        scored = [
            Scored(prompt, i < count, verdict.correct, logp.get(i))
            for i, (prompt, verdict) in enumerate(zip(of, verdicts, strict=True))
        ]
        return fitness(scored, self._weights)

    def _logps(self, right: Sequence[tuple[int, Completion]]) -> list[float | None]:
        """Mean log-probability of the tokens; asked of the model where the generator does not tell it by itself."""
        known = [completion.logprobs for _, completion in right]
        if any(values is None for values in known):
            known = list(
                self._pool.loglikelihood(
                    [self._prompts[prompt] for prompt, _ in right], [completion.token_ids for _, completion in right]
                )
            )
        return [sum(values) / len(values) if values else None for values in known]
