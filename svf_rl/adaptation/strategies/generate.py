"""Strategy `generate`: the class is read from what the classifier writes."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from svf_rl.adaptation.strategies import Classified, Strategy
from svf_rl.evaluation.answers import decode_completions
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation import Sampling
from svf_rl.rewards.verifiers.dispatch_label import read_label


def classify(
    pool: ExpertPool,
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    labels: Sequence[str],
) -> list[Classified]:
    greedy = Sampling(max_tokens, temperature=0.0, logprobs=False)
    texts = decode_completions(tokenizer, pool.generate(prompts, greedy, [0] * len(prompts)))
    return [Classified(read_label(text, labels), text) for text in texts]


STRATEGY = Strategy("generate", classify, count_tokens=lambda tokenizer, max_tokens, labels: max_tokens)
