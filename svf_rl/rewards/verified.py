"""Rows that name their verifiers: how they are graded, and whether the answers in the data can be used at all."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.references import WrittenObject
from svf_rl.rewards.registry import reward
from svf_rl.rewards.reward import Reward
from svf_rl.rewards.verifier import Verdict, Verifier, find_verifier, log_partial_share, pay, verify_all


@reward("verified", column_arguments=("column", "verifier_column"))
def verified(
    completions: Sequence[Any],
    *,
    column: str = "answer",
    verifier_column: str = "verifier",
    correct: float = 1.0,
    wrong: float = 0.0,
    max_failed: float = 0.25,
    partial: bool = False,
    **columns: Any,
) -> list[float | None]:
    """
    Grade a batch whose rows name their verifiers; the rows of one verifier are checked together.

    Args:
        column (`str`, *optional*, defaults to `"answer"`): the column with the references ([`parse_reference`]).
        verifier_column (`str`, *optional*, defaults to `"verifier"`): the column with the names of the verifiers.
        correct, wrong (`float`, *optional*, defaults to 1.0 and 0.0): the rewards.
        max_failed (`float`, *optional*, defaults to 0.25):
            the share of a batch whose checks may fail for a reason of the infrastructure before the run stops.
        partial (`bool`, *optional*, defaults to `False`): keep scores between 0 and 1 of verifiers that can.
    """
    references = [parse_reference(answer) for answer in columns[column]]
    verdicts = verify_rows(columns[verifier_column], completions, references, in_training=True, partial=partial)
    log_metric, log_extra = columns.get("log_metric"), columns.get("log_extra")
    if partial:
        log_partial_share(verdicts, log_metric)
    return pay("verified", verdicts, correct, wrong, max_failed, log_metric, log_extra)


def verify_rows(
    names: Sequence[str],
    completions: Sequence[Any],
    references: Sequence[Any],
    *,
    in_training: bool = False,
    partial: bool = False,
    **options: Any,
) -> list[Verdict]:
    """`verify_all` for rows of several verifiers; those of one verifier are checked together, `in_training` with the
    options that it has there, and with `partial` where it has that."""
    verdicts: dict[int, Verdict] = {}
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        found = find_verifier(name)
        own = {**found.in_training, **options} if in_training else options
        if partial and "partial" in found.options:
            own = {**own, "partial": True}
        given = [completions[row] for row in rows], [references[row] for row in rows]
        verdicts.update(zip(rows, verify_all(name, *given, **own), strict=True))
    return [verdicts[row] for row in range(len(completions))]


def parse_reference(answer: Any) -> Any:
    """The reference in a column of text: a mapping where the text is a JSON object, which verifiers of text read as the
    text; else the text itself."""
    if not isinstance(answer, str) or not answer.startswith('{"'):
        return answer
    try:
        return WrittenObject(json.loads(answer), answer)
    except (ValueError, RecursionError):  # no JSON, a number of too many digits, too deep
        return answer


def check_answers(
    reward: Reward, columns: Mapping[str, Sequence[Any]], where: str | Callable[[int], str], called: str | None = None
) -> None:
    """
    Raises `SVFError` for the first row whose reference the reward's verifier cannot use (empty, not text, without a
    number, ...). Rewards that are not made from a verifier are not checked; equal references are checked once.

    Args:
        reward ([`Reward`]): as loaded.
        columns (`Mapping`): the rows by column, with the columns that the reward needs.
        where (`str` or `Callable`): which rows these are, for the message; or what names a row by its number.
        called (`str`, *optional*): what the user's file calls the column `answer`.
    """
    column, found = reward.arguments.get("column", "answer"), getattr(reward.function, "verifier", None)
    rows: Iterable[tuple[Any, Any]] = ()  # the verifier or its name, and the reference
    if reward.function is verified:
        names = columns[reward.arguments.get("verifier_column", "verifier")]
        rows = ((name, parse_reference(answer)) for name, answer in zip(names, columns[column], strict=True))
    elif found is not None and found.check_reference is not None:
        rows = ((found, reference) for reference in columns[column])
    seen = set()
    for row, (which, reference) in enumerate(rows):
        try:
            own = which if isinstance(which, Verifier) else find_verifier(which)
            key = (own.name, json.dumps(reference, sort_keys=True, default=repr))
            if own.check_reference is None or key in seen:
                continue
            seen.add(key)
            own.check_reference(reference, **{k: v for k, v in reward.arguments.items() if k in own.options})
        except SVFError as error:
            named = called if called and column == "answer" else column
            place = f"{where}, row {row}" if isinstance(where, str) else where(row)
            raise SVFError(f"{place}: {error} (column {named!r})") from error
