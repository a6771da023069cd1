"""`choice`: the completion names the right option of a multiple-choice question."""

import re
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.references import reference_text, shortened
from svf_rl.rewards.verdict import Verdict
from svf_rl.rewards.verifier import verifier

_LABEL = r"[A-Za-z]|\d{1,2}"
# Without brackets only a capital is a label: "the answer is a number" holds none.
_ANSWER_IS = re.compile(rf"(?i:answer\s+is)[\s:*]*(?:\(({_LABEL})\)|([A-Z]|\d{{1,2}})(?!\w|[.,]\d))")
_IN_BRACKETS = re.compile(rf"\(({_LABEL})\)")
_ALONE = re.compile(rf"\W*({_LABEL})\W*")


def check_reference(reference: Any, **_: Any) -> None:
    """Raises `SVFError` for a reference that names no option."""
    _expected(reference)


@verifier("choice", check_reference=check_reference)
def choice(completion: str, reference: Any) -> Verdict:
    """Compare the labels of the options; both sides are read by the same rules (`extract_choice`)."""
    expected, got = _expected(reference), extract_choice(completion)
    if got is None:
        return Verdict(False, None, "the completion names no option")
    return Verdict(got == expected, got, "equal" if got == expected else f"{got} is not {expected}")


def extract_choice(text: str) -> str | None:
    """The label (a letter, in capitals, or a number) of the chosen option.

    It is the last one in "the answer is (X)", else the last in brackets, else all that `text` holds.
    """
    if matches := _ANSWER_IS.findall(text):
        return (matches[-1][0] or matches[-1][1]).upper()
    if matches := _IN_BRACKETS.findall(text):
        return matches[-1].upper()
    alone = _ALONE.fullmatch(text)
    return alone[1].upper() if alone else None


def _expected(reference: Any) -> str:
    expected = extract_choice(reference_text("choice", reference))
    if expected is None:
        raise SVFError(f"choice: the answer {shortened(reference)} names no option")
    return expected
