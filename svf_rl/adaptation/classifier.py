r"""The first pass of dispatch: which kind of request each prompt is (Transformer², arXiv 2501.06252, section 3.2).

The classifier is the base model with a prompt, or an expert that was trained to classify. Its verdict is read from what
it writes (`generate`), or is the class that it holds to be the likeliest (`loglikelihood`), which writes nothing and
always names one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from svf_rl.generation import Completion, Sampling
from svf_rl.generation.prompts import Conversation, encode_prompts
from svf_rl.quickstart import model_path
from svf_rl.quickstart.dispatch_skill import DISPATCH, DISPATCH_PROMPT
from svf_rl.rewards.verifiers.dispatch_label import LABELS, read_label
from svf_rl.runs.provenance import BUNDLED, list_tasks
from svf_rl.runs.run_folder import read_summary
from svf_rl.tasks.classification import classification
from svf_rl.tasks.dispatch import SYSTEM_PROMPT

METHODS = ("generate", "loglikelihood")
Method = Literal["generate", "loglikelihood"]


class Scorer(Protocol):
    """What completes prompts and scores continuations, with the weights it has."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One completion a prompt, in order."""

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        """Log p of each token of each continuation."""


@dataclass(frozen=True)
class Classified:
    """
    What the classifier says of a prompt.

    Args:
        label (`str` or `None`): `code`, `math`, `reasoning` or `other`; `None` where its text names none of them.
        text (`str`): what it wrote; empty with `loglikelihood`.
        logprobs (`dict[str, float]` or `None`): with `loglikelihood`, log p of each class; the p add up to 1.
    """

    label: str | None
    text: str = ""
    logprobs: Mapping[str, float] | None = None


def classification_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    system_prompt: str,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """What the classifier reads for each conversation: the last turn of the user, after `system_prompt`."""
    asked = [classification(conversation, system_prompt) for conversation in conversations]
    return encode_prompts(tokenizer, asked, **(template_arguments or {}))


def label_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    r"""The tokens of `\boxed{label}` for each class."""
    return {label: tokenizer(rf"\boxed{{{label}}}", add_special_tokens=False)["input_ids"] for label in LABELS}


def classify(
    scorer: Scorer, prompts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, method: Method, max_tokens: int
) -> list[Classified]:
    """
    The class of each prompt, in order.

    Args:
        scorer ([`Scorer`]): has the classifier's weights.
        prompts (`Sequence[list[int]]`): from [`classification_ids`].
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        method (`str`): `"generate"` or `"loglikelihood"`.
        max_tokens (`int`): of what the classifier writes.
    """
    if method == "loglikelihood":
        return _likeliest(scorer, prompts, label_ids(tokenizer))
    greedy = Sampling(max_tokens, temperature=0.0, logprobs=False)
    completions = scorer.generate(prompts, greedy, [0] * len(prompts))
    texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
    return [Classified(read_label(text), text) for text in texts]


def _likeliest(scorer: Scorer, prompts: Sequence[list[int]], labels: Mapping[str, list[int]]) -> list[Classified]:
    r"""
    The tokens' log-probabilities are summed: that is log p of the event that the answer begins with `\boxed{label}`.
    These events exclude one another, for the brace closes the label, so that what remains is to divide by their sum.
    A mean over tokens would favour long labels, whose last tokens follow from their first. No end-of-sequence token is
    scored behind the brace: whether the classifier would stop there says nothing of the class.
    """
    continuations = [ids for _ in prompts for ids in labels.values()]
    scores = scorer.loglikelihood([ids for ids in prompts for _ in labels], continuations)
    sums = torch.tensor([sum(score) for score in scores], dtype=torch.float64).view(len(prompts), len(labels))
    found = []
    for row in sums.log_softmax(1).tolist():
        logprobs = dict(zip(labels, row, strict=True))
        likeliest = None if math.isnan(row[0]) else max(logprobs, key=lambda label: logprobs[label])
        found.append(Classified(likeliest, logprobs=logprobs))
    return found


def default_system_prompt(model: str, classifier: Path | None = None) -> str:
    """
    The system message to classify with. A trained classifier is asked as it was in training, which its folder's
    `summary.json` tells; the bundled model as its corpus asks; any other as the task `dispatch` does.

    Args:
        model (`str`): the base model, as `from_pretrained` or a recipe takes it.
        classifier (`Path`, *optional*): folder of a trained dispatch expert.

    Raises:
        SVFError: the `summary.json` there is damaged.
    """
    recipe = {} if classifier is None else read_summary(classifier).recipe
    if recipe.get("system_prompt"):
        return str(recipe["system_prompt"])
    tasks = list_tasks(recipe)
    if "dispatch" in tasks:
        return SYSTEM_PROMPT
    bundled = model == BUNDLED or Path(model).resolve() == model_path().resolve()
    return DISPATCH_PROMPT if bundled or f"{BUNDLED}:{DISPATCH}" in tasks else SYSTEM_PROMPT
