"""Whether rewards can use the answers in the data, before a run starts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.reward import Reward
from svf_rl.rewards.verified import parse_reference, verified
from svf_rl.rewards.verifier import Verifier, find_verifier


def check_answers(reward: Reward, columns: Mapping[str, Sequence[Any]], where: str) -> None:
    """
    Raises `SVFError` for the first row whose reference the reward's verifier cannot use (empty, not text, without a
    number, ...). Rewards that are not made from a verifier are not checked; equal references are checked once.

    Args:
        reward ([`Reward`]): as loaded.
        columns (`Mapping`): the rows by column, with the columns that the reward needs.
        where (`str`): which rows these are, for the message.
    """
    seen = set()
    for row, (found, reference) in enumerate(_references(reward, columns)):
        key = (found.name, json.dumps(reference, sort_keys=True, default=repr))
        if found.check_reference is None or key in seen:
            continue
        seen.add(key)
        options = {name: value for name, value in reward.arguments.items() if name in found.options}
        try:
            found.check_reference(reference, **options)
        except SVFError as error:
            raise SVFError(f"{where}, row {row}: {error}") from error


def _references(reward: Reward, columns: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Verifier, Any]]:
    """The verifier and the reference of each row."""
    found = getattr(reward.function, "verifier", None)
    if found is not None and found.check_reference is not None:
        for reference in columns[reward.arguments.get("column", "answer")]:
            yield found, reference
    elif reward.function is verified:
        names = columns[reward.arguments.get("verifier_column", "verifier")]
        for name, answer in zip(names, columns[reward.arguments.get("column", "answer")], strict=True):
            yield find_verifier(name), parse_reference(answer)
