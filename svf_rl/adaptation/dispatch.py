"""
Dispatch: the first pass finds out which kind of request each prompt is, the second answers with the expert for it
(Transformer², arXiv 2501.06252, section 3.2). The classifier is the base model with a prompt, or an expert that was
trained to classify.

Prompts are answered in the order of their experts: a generator that holds one adapter at a time is given each of them
once, and one that mixes adapters answers all in one batch. The base model answers what is of no expert's class:
"other", a class without an expert, and a prompt whose class could not be read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from svf_rl.adaptation.arguments import DispatchArguments
from svf_rl.adaptation.classifier import ClassifierPrompt, classification_ids
from svf_rl.adaptation.strategies import Classified, find_strategy
from svf_rl.errors import SVFError
from svf_rl.evaluation.answers import make_records
from svf_rl.evaluation.items import TaskItems
from svf_rl.evaluation.records import Record
from svf_rl.experts.pool import ExpertPool

# Prompts that go to the generator together: the bar moves between.
_BATCH = 512


@dataclass(frozen=True)
class Pass:
    """What one pass over the prompts took: seconds of weight syncs and of the model (without templates and grading),
    and weight syncs."""

    seconds: float
    syncs: int


@dataclass(frozen=True)
class Dispatched:
    """All prompts, in order."""

    classes: list[Classified]  # what the classifier said
    experts: list[str | None]  # who answered; `None` is the base model
    answers: list[Record]
    first: Pass  # classification
    second: Pass  # the answers


def dispatch(
    pool: ExpertPool,
    task: TaskItems,
    experts: Mapping[str, str],
    asked: ClassifierPrompt,
    *,
    classifier: str | None = None,
    method: str = DispatchArguments.method,
    max_tokens: int = DispatchArguments.classifier_tokens,
    template_arguments: Mapping[str, Any] | None = None,
    rows: Sequence[int] | None = None,
    seed: int = 0,
) -> Dispatched:
    """
    Classify and answer items of a task, and grade the answers.

    Args:
        pool ([`ExpertPool`]): the base model and all experts.
        task ([`TaskItems`]): prompts, sampling and verdicts are its own.
        experts (`Mapping[str, str]`): for each class (such as `code`) the name of its expert in the pool.
            A class that is left out is answered by the base model.
        asked ([`ClassifierPrompt`]): asks for the class; see
            [`svf_rl.adaptation.classifier.find_classifier_prompt`].
        classifier (`str`, *optional*): name of the dispatch expert in the pool; default: the base model classifies.
        method (`str`, *optional*): a strategy, see [`svf_rl.adaptation.strategies`].
        max_tokens (`int`, *optional*): of what the classifier writes.
        template_arguments (`Mapping`, *optional*): passed on to the chat template, as in `{"enable_thinking": False}`.
        rows (`Sequence[int]`, *optional*): which items, in which order; default: all.
        seed (`int`, *optional*, defaults to 0): of sampled answers, as in an evaluation.

    Raises:
        SVFError: no prompts, an unknown method, or an expert that is not in the pool.
    """
    rows = range(len(task.rows)) if rows is None else rows
    if not rows:
        raise SVFError("no prompts to dispatch: give at least one")
    strategy = find_strategy(method)
    conversations = [task.rows[row]["prompt"] for row in rows]
    prompts = classification_ids(pool.tokenizer, conversations, asked, **(template_arguments or {}))
    bar_of = partial(tqdm, total=len(rows), unit="prompt", disable=None, dynamic_ncols=True)
    started = Pass(pool.seconds, pool.syncs)
    pool.use(classifier)
    classes: list[Classified] = []
    with bar_of(desc="classes") as bar:
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            classes += strategy.classify(pool, batch, pool.tokenizer, max_tokens, asked.labels)
            bar.update(len(batch))
    first = Pass(pool.seconds - started.seconds, pool.syncs - started.syncs)

    started = Pass(pool.seconds, pool.syncs)
    answering = [None if found.label is None else experts.get(found.label) for found in classes]
    answers: dict[int, Record] = {}
    with bar_of(desc="answers") as bar:
        order = [place for group in by_expert(answering, loaded=classifier).values() for place in group]
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            which = [answering[place] for place in places]
            made = make_records(task, [(rows[place], 0) for place in places], pool, seed, which)
            answers.update(zip(places, made, strict=True))
            bar.update(len(places))
    second = Pass(pool.seconds - started.seconds, pool.syncs - started.syncs)
    return Dispatched(classes, answering, [answers[place] for place in range(len(rows))], first, second)


def by_expert(experts: Sequence[str | None], loaded: str | None) -> dict[str | None, list[int]]:
    """The places of each expert's prompts. The expert that is `loaded` already comes first, the others in the order in
    which they first appear."""
    groups: dict[str | None, list[int]] = {loaded: []} if loaded in experts else {}
    for place, expert in enumerate(experts):
        groups.setdefault(expert, []).append(place)
    return groups
