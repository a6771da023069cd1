"""
Dispatch: the first pass finds out which kind of request each prompt is, the second answers with the expert for it
(Transformer², arXiv 2501.06252, section 3.2).

Both passes go through the model expert by expert and not prompt by prompt, so that an expert's weights are brought to
the generator once. The base model answers what is of no expert's class: "other", a class without an expert, and a
prompt whose class could not be read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from svf_rl.adaptation.arguments import DispatchArguments, check_classes
from svf_rl.adaptation.classifier import classification_ids
from svf_rl.adaptation.strategies import Classified, find_strategy
from svf_rl.errors import SVFError
from svf_rl.evaluation.answers import make_records
from svf_rl.evaluation.items import TaskItems
from svf_rl.evaluation.records import Record
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation.prompts import Conversation

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
    """
    All prompts, in order.

    Args:
        classes (`list[Classified]`): what the classifier said.
        experts (`list[str | None]`): who answered; `None` is the base model.
        answers (`list[Record]`): the answers.
        first ([`Pass`]), second ([`Pass`]): classification, and the answers.
    """

    classes: list[Classified]
    experts: list[str | None]
    answers: list[Record]
    first: Pass
    second: Pass


class Dispatcher:
    """
    Args:
        pool ([`ExpertPool`]): the base model and all experts.
        experts (`Mapping[str, str]`): for each class (`code`, `math`, `reasoning`) the name of its expert in the pool.
            A class that is left out is answered by the base model.
        system_prompt (`str`): asks for the class; see [`svf_rl.adaptation.classifier.default_system_prompt`].
        classifier (`str`, *optional*): name of the dispatch expert in the pool; default: the base model classifies.
        method (`str`, *optional*): a strategy, see [`svf_rl.adaptation.strategies`].
        max_tokens (`int`, *optional*): of what the classifier writes.
        template_arguments (`Mapping`, *optional*): passed on to the chat template, as in `{"enable_thinking": False}`.

    Raises:
        SVFError: no classes, an unknown one, or an expert that is not in the pool.
    """

    def __init__(
        self,
        pool: ExpertPool,
        experts: Mapping[str, str],
        system_prompt: str,
        *,
        classifier: str | None = None,
        method: str = DispatchArguments.method,
        max_tokens: int = DispatchArguments.classifier_tokens,
        template_arguments: Mapping[str, Any] | None = None,
    ):
        check_classes(experts)
        known = [*pool.names, *pool.others]
        named = {f"the expert of class {label}": name for label, name in experts.items()}
        for role, name in {**named, "the classifier": classifier}.items():
            if name is not None and name not in known:
                raise SVFError(f"{role} is {name!r}, which is not in the pool: use one of {', '.join(known)}")
        if max_tokens < 1:
            raise SVFError(f"max_tokens of the classifier must be at least 1, not {max_tokens}")
        self._pool, self._experts, self._system_prompt = pool, dict(experts), system_prompt
        self._classifier, self._strategy, self._max_tokens = classifier, find_strategy(method), max_tokens
        self._template = dict(template_arguments or {})
        self.tokenizer = pool.tokenizer

    def classify(self, conversations: Sequence[Conversation]) -> list[Classified]:
        """The first pass alone: the class of each conversation's last request."""
        if not conversations:
            raise SVFError("no prompts to dispatch: give at least one")
        prompts = classification_ids(self.tokenizer, conversations, self._system_prompt, self._template)
        self._pool.use(self._classifier)
        found: list[Classified] = []
        with tqdm(total=len(prompts), desc="classes", unit="prompt", disable=None, dynamic_ncols=True) as bar:
            for batch in _batches(prompts):
                found += self._strategy.classify(self._pool, batch, self.tokenizer, self._max_tokens)
                bar.update(len(batch))
        return found

    def answer_items(self, task: TaskItems, indices: Sequence[int] | None = None, seed: int = 0) -> Dispatched:
        """
        Classify and answer items of a task, and grade the answers.

        Args:
            task ([`TaskItems`]): prompts, sampling and verdicts are its own.
            indices (`Sequence[int]`, *optional*): which items, in which order; default: all.
            seed (`int`, *optional*, defaults to 0): of sampled answers, as in an evaluation.
        """
        chosen = range(len(task.rows)) if indices is None else indices
        with _measured(self._pool) as first:
            classes = self.classify([task.rows[index]["prompt"] for index in chosen])
        experts = [None if found.label is None else self._experts.get(found.label) for found in classes]
        answers: dict[int, Record] = {}
        with (
            _measured(self._pool) as second,
            tqdm(total=len(experts), desc="answers", unit="prompt", disable=None, dynamic_ncols=True) as bar,
        ):
            for expert, group in by_expert(experts, loaded=self._classifier).items():
                self._pool.use(expert)
                for batch in _batches(group):
                    made = make_records(task, [(chosen[place], 0) for place in batch], self._pool, seed)
                    answers.update(zip(batch, made, strict=True))
                    bar.update(len(batch))
        return Dispatched(classes, experts, [answers[place] for place in range(len(experts))], first[0], second[0])


def by_expert(experts: Sequence[str | None], loaded: str | None) -> dict[str | None, list[int]]:
    """The places of each expert's prompts. The expert that is `loaded` already comes first, the others in the order in
    which they first appear."""
    groups: dict[str | None, list[int]] = {loaded: []} if loaded in experts else {}
    for place, expert in enumerate(experts):
        groups.setdefault(expert, []).append(place)
    return groups


@contextmanager
def _measured(pool: ExpertPool) -> Iterator[list[Pass]]:
    """A list that holds, after the block, what went on in it."""
    seconds, syncs, result = pool.seconds, pool.syncs, list[Pass]()
    yield result
    result.append(Pass(pool.seconds - seconds, pool.syncs - syncs))


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
