r"""Strategy `loglikelihood`: the class that is the likeliest to the classifier, which writes nothing.

The tokens' log-probabilities are summed: that is log p of the event that the answer begins with `\boxed{label}`. These
events exclude one another, for the brace closes the label, so that what remains is to divide by their sum. A mean over
tokens would favour long labels, whose last tokens follow from their first. No end-of-sequence token is scored behind
the brace: whether the classifier would stop there says nothing of the class.
"""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from svf_rl.adaptation.strategies import Classified, Strategy
from svf_rl.experts.pool import ExpertPool


def label_ids(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> dict[str, list[int]]:
    r"""The tokens of `\boxed{label}` for each class."""
    return {label: tokenizer(rf"\boxed{{{label}}}", add_special_tokens=False)["input_ids"] for label in labels}


def classify(
    pool: ExpertPool,
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    labels: Sequence[str],
) -> list[Classified]:
    continuations = [ids for _ in prompts for ids in label_ids(tokenizer, labels).values()]
    scores = pool.loglikelihood([ids for ids in prompts for _ in labels], continuations)
    sums = torch.tensor([sum(score) for score in scores], dtype=torch.float64).view(len(prompts), len(labels))
    found = []
    for row in sums.log_softmax(1).tolist():
        logprobs = dict(zip(labels, row, strict=True))
        likeliest = None if math.isnan(row[0]) else max(logprobs, key=lambda label: logprobs[label])
        found.append(Classified(likeliest, logprobs=logprobs))
    return found


def count_tokens(tokenizer: PreTrainedTokenizerBase, max_tokens: int, labels: Sequence[str]) -> int:
    return 1 + max(map(len, label_ids(tokenizer, labels).values()))  # one is left to generate


STRATEGY = Strategy("loglikelihood", classify, count_tokens)
