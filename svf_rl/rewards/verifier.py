"""Verifiers: functions that check one completion against one reference, and how they are run over a batch."""

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from tqdm import tqdm

from svf_rl.errors import InfrastructureError, SVFError, one_line
from svf_rl.rewards.reading.final_answer import count_marked_answers
from svf_rl.rewards.references import check_argument, shorten
from svf_rl.rewards.registry import import_built_ins, reward
from svf_rl.rewards.reward import completion_text, nearest
from svf_rl.sandbox.workers import parallel_checks

logger = logging.getLogger(__name__)

# Seconds after which the checks of a batch show a progress bar.
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Verdict:
    """
    The result of one check.

    Args:
        correct (`bool` or `None`): whether the completion is right; `None` when that could not be found out.
        extracted (`str` or `None`): what was read as the answer; `None` where there was none.
        reason (`str`): why, in one line; without what cannot be printed.
        score (`float`, *optional*): between 0 and 1; default: 1 for right, 0 for wrong. Only shaping rewards and the
            share of passed tests lie between.
        infrastructure (`bool`, *optional*, defaults to `False`): the check itself failed (a sandbox did not start, a
            worker died), which says nothing about the completion. Then `correct` is `None`.
        raised (`bool`, *optional*, defaults to `False`): what checks could not cope with the completion, which is wrong
            for that.
    """

    correct: bool | None
    extracted: str | None
    reason: str
    score: float | None = None
    infrastructure: bool = False
    raised: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))  # it may quote the completion

    @property
    def value(self) -> float | None:
        """`score`, or 1.0 and 0.0 for right and wrong; `None` when not scorable."""
        return float(self.correct) if self.score is None and self.correct is not None else self.score


F = TypeVar("F", bound=Callable[..., Verdict])


@dataclass(frozen=True)
class Verifier:
    """A registered verifier; the fields are described at [`verifier`]."""

    name: str
    function: Callable[..., Verdict]
    waits: bool
    check_reference: Callable[..., Any] | None
    column: str | None = None
    finds_answer: bool = False
    in_training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the function."""
        parameters = inspect.signature(self.function).parameters
        return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


_verifiers: dict[str, Verifier] = {}


def verifier(
    name: str,
    *,
    waits: bool = False,
    check_reference: Callable[..., Any] | None = None,
    column: str | None = None,
    finds_answer: bool = False,
    in_training: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """
    Register the decorated function as a verifier, and a reward of the same name.

    The function checks one completion: `(completion, reference, *, tolerance=0.0) -> Verdict`. What is keyword-only is
    an option, in recipes too. They have `column` (the dataset column with the references), `correct`, `wrong`, and
    `max_failed` as well: the share of a batch whose checks may fail for a reason of the infrastructure before the run
    stops.

    Args:
        name (`str`): its name in recipes and in `verify`.
        waits (`bool`, *optional*, defaults to `False`): the check runs in another process, so that several threads
            check a batch.
        check_reference (`Callable`, *optional*): called with the reference and the options; raises `SVFError` for a
            reference that no completion can match. Without it, the verifier needs no reference.
        column (`str`, *optional*): the column that a verifier without references gets in their place where there is
            one, like the trainer's `completion_ids`.
        finds_answer (`bool`, *optional*, defaults to `False`): it reads the answer from a text, so that training logs
            the shares of completions that mark one (`reward/marked`) and several (`reward/several_answers`).
        in_training (`dict`, *optional*): options whose default is another where the verdict is a reward, since a policy
            finds what pays.
    """

    def register(function: F) -> F:
        _verifiers[name] = Verifier(name, function, waits, check_reference, column, finds_answer, in_training or {})
        reward(name, column_arguments=["column"] if check_reference else [])(_make_reward(_verifiers[name]))
        return function

    return register


def find_verifier(name: str) -> Verifier:
    """The verifier of that name. Raises `SVFError` when there is none."""
    import_built_ins()
    if not isinstance(name, str) or name not in _verifiers:  # of a column, anything may come
        raise SVFError(f"unknown verifier {shorten(name)}{nearest(str(name), _verifiers)}")
    return _verifiers[name]


def verify(name: str, completion: str | Sequence[Mapping[str, Any]], reference: Any = None, **options: Any) -> Verdict:
    """
    Check one completion.

    Args:
        name (`str`): a verifier: `exact_match`, `numeric`, `choice`, `math`, `unit_tests`, ...
        completion (`str` or `Sequence`): text, or a list of chat messages, whose last assistant turn counts.
        reference (`Any`): what a correct answer must match; each verifier says what it accepts.
        **options: options of the verifier.

    Returns:
        [`Verdict`]: `correct=None` when the check could not be made.

    Raises:
        SVFError: no such verifier or option, a completion that is not text, or an unusable reference.
    """
    return verify_all(name, [completion], [reference], **options)[0]


def verify_all(
    name: str, completions: Sequence[Any], references: Sequence[Any], *, progress: bool = True, **options: Any
) -> list[Verdict]:
    """`verify` for many completions, in order. Verifiers that wait for other processes check in several threads; a
    progress bar appears where the checks take long."""
    found = find_verifier(name)
    known = found.options if options else {}
    for option, value in options.items():
        if option not in known:
            raise SVFError(f"verifier {name!r} has no option {option!r}{nearest(option, known)}")
        check_argument(name, option, known[option].annotation, value)
    texts = [_text(name, completion) for completion in completions]
    for reference in references:
        if found.check_reference is not None:
            found.check_reference(reference, **options)

    def check(text: str, reference: Any) -> Verdict:
        try:
            return found.function(text, reference, **options)
        except InfrastructureError as error:
            return Verdict(None, None, str(error), infrastructure=True)

    run = _pool().map if len(texts) > 1 and found.waits else map
    verdicts = run(check, texts, references)
    return list(tqdm(verdicts, total=len(texts), desc=name, delay=PATIENCE_SECONDS, disable=not progress, leave=False))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(parallel_checks(), thread_name_prefix="verify")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has none of its parent's threads


def _text(name: str, completion: Any) -> str:
    if isinstance(completion, list | tuple) and all(isinstance(message, Mapping) for message in completion):
        return completion_text(completion)
    if not isinstance(completion, str):
        raise SVFError(f"{name}: a completion must be text or chat messages, not {type(completion).__name__}")
    return completion


def _make_reward(found: Verifier) -> Callable[..., list[float | None]]:
    """The reward function of a verifier, with the arguments that `verifier` describes."""
    parameters = {name: p.replace(default=found.in_training.get(name, p.default)) for name, p in found.options.items()}

    def score(
        completions: Sequence[Any],
        *,
        column: str = "answer",
        correct: float = 1.0,
        wrong: float = 0.0,
        max_failed: float = 0.25,
        **columns: Any,
    ) -> list[float | None]:
        options = {name: columns.get(name, p.default) for name, p in parameters.items()}
        if found.check_reference:
            references = columns[column]
        else:
            references = columns.get(found.column or "") or [None] * len(completions)
        verdicts = verify_all(found.name, completions, references, **options)
        log_metric = columns.get("log_metric")
        if options.get("partial") or options.get("share"):
            log_partial_share(verdicts, log_metric)
        if found.finds_answer and log_metric is not None and completions:
            counts = [count_marked_answers(_text(found.name, completion)) for completion in completions]
            log_metric("reward/marked", sum(count > 0 for count in counts) / len(counts))
            log_metric("reward/several_answers", sum(count > 1 for count in counts) / len(counts))
        log_extra = columns.get("log_extra") if found.finds_answer else None
        return pay(found.name, verdicts, correct, wrong, max_failed, log_metric, log_extra)

    own = list(inspect.signature(score).parameters.values())
    known = {p.name for p in own}
    score.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*own[:-1], *(p for name, p in parameters.items() if name not in known), own[-1]]
    )
    score.__module__, score.__qualname__ = found.function.__module__, found.function.__qualname__
    score.__doc__ = found.function.__doc__
    score.verifier = found  # type: ignore[attr-defined]  # for `check_answers`
    return score


def pay(
    name: str,
    verdicts: Sequence[Verdict],
    correct: float,
    wrong: float,
    max_failed: float,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[str | None]], None] | None = None,
) -> list[float | None]:
    """`wrong + value · (correct − wrong)` for each verdict; `None` where it is not scorable. By `log_extra`, what was
    read as each answer goes to the table of completions. Raises `SVFError` as [`check_failed_share`] does."""
    check_failed_share(name, verdicts, max_failed, log_metric)
    if log_extra is not None:
        log_extra(f"{name}/answer", [verdict.extracted for verdict in verdicts])
    values = [verdict.value for verdict in verdicts]
    return [None if value is None else wrong + value * (correct - wrong) for value in values]


def log_partial_share(verdicts: Sequence[Verdict], log_metric: Callable[[str, float], None] | None) -> None:
    """Log the share of completions that are paid in part."""
    if log_metric is not None and verdicts:
        log_metric("reward/partial", sum(0 < (verdict.score or 0) < 1 for verdict in verdicts) / len(verdicts))


def check_failed_share(
    name: str, verdicts: Sequence[Verdict], most: float, log_metric: Callable[[str, float], None] | None
) -> None:
    """Log the share of checks that the infrastructure failed; raises `SVFError` when it is more than `most`."""
    failed = [verdict for verdict in verdicts if verdict.infrastructure]
    if log_metric is not None:
        log_metric(f"checks_failed/{name}", len(failed) / max(1, len(verdicts)))
        log_metric(f"checks_raised/{name}", sum(verdict.raised for verdict in verdicts) / max(1, len(verdicts)))
    if failed:
        logger.warning("%s: %d of %d checks failed: %s", name, len(failed), len(verdicts), failed[0].reason)
    if len(failed) > most * len(verdicts):
        raise SVFError(
            f"{name} could not check {len(failed)} of {len(verdicts)} completions ({failed[0].reason}); more than the "
            f"share max_failed={most:g}: fix the cause, or raise max_failed"
        )
