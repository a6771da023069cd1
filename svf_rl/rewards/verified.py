"""`verified`: each row is graded by the verifier that it names, for rows of several tasks."""

import json
from collections.abc import Sequence
from typing import Any

from svf_rl.rewards.registry import reward
from svf_rl.rewards.verdict import Verdict
from svf_rl.rewards.verifier import check_failed_share, scale_verdicts, verify_all


@reward("verified", column_arguments=("column", "verifier_column"))
def verified(
    completions: Sequence[Any],
    *,
    column: str = "answer",
    verifier_column: str = "verifier",
    correct: float = 1.0,
    wrong: float = 0.0,
    max_failed: float = 0.25,
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
    """
    names, references = columns[verifier_column], [parse_reference(answer) for answer in columns[column]]
    verdicts: dict[int, Verdict] = {}
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        found = verify_all(name, [completions[row] for row in rows], [references[row] for row in rows])
        verdicts.update(zip(rows, found, strict=True))
    in_order = [verdicts[row] for row in range(len(completions))]
    check_failed_share("verified", in_order, max_failed, columns.get("log_metric"))
    return scale_verdicts(in_order, correct, wrong)


def parse_reference(answer: Any) -> Any:
    """The reference in a column of text: a mapping where the text is a JSON object, else the text itself."""
    if not isinstance(answer, str) or not answer.startswith('{"'):
        return answer
    try:
        return json.loads(answer)
    except json.JSONDecodeError:
        return answer
