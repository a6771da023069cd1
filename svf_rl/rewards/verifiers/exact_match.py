"""`exact_match`: the answer, normalised, is the reference, normalised. The answer is the marked or stated one
(`reading/final_answer.py`), or else all of the completion that is not thinking; a reference is read in the same way."""

import re
import unicodedata
from typing import Any

from svf_rl.rewards.reading.final_answer import find_answer, visible_text
from svf_rl.rewards.references import reference_text
from svf_rl.rewards.verifier import Verdict, verifier

_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}")


@verifier(
    "exact_match",
    check_reference=lambda reference, **_: reference_text("exact_match", reference, numbers=True),
    finds_answer=True,
)
def exact_match(
    completion: str, reference: Any, *, ignore_case: bool = False, ignore_punctuation: bool = False
) -> Verdict:
    """
    Compare all of the answer with all of the reference.

    Both are normalised: to Unicode's composed form (NFC), each run of white space to one space, none at the ends.

    Args:
        ignore_case (`bool`, *optional*, defaults to `False`): compare case-folded text.
        ignore_punctuation (`bool`, *optional*, defaults to `False`): drop punctuation (Unicode categories P).
    """
    expected = _read(reference_text("exact_match", reference, numbers=True), ignore_case, ignore_punctuation)
    got = _read(completion, ignore_case, ignore_punctuation)
    if not got:
        return Verdict(False, None, "the completion is empty")
    return Verdict(got == expected, got, "equal" if got == expected else "not equal")


def _read(text: str, ignore_case: bool, ignore_punctuation: bool) -> str:
    """The answer in the form in which it is compared."""
    answer = find_answer(text)
    text = visible_text(text) if answer is None else _TEXT.sub(r"\1", answer.text)
    text = unicodedata.normalize("NFC", text)
    if ignore_case:
        text = text.casefold()
    if ignore_punctuation:
        text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    return " ".join(text.split())
