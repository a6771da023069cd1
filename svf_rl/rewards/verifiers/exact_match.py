"""`exact_match`: the answer, normalised, is the reference, normalised. The answer is the marked or stated one
(`reading/final_answer.py`), or else all of the completion that is not thinking; a reference is read in the same way."""

import re
import unicodedata
from functools import partial
from typing import Any

from svf_rl.rewards.reading.final_answer import answered_text, find_answer, visible_text
from svf_rl.rewards.reading.sentences import first_clause
from svf_rl.rewards.references import reference_text
from svf_rl.rewards.verifier import Verdict, verifier

_CLAUSES = ("statement", "label", "heading", "correction")
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
    wanted = reference_text("exact_match", reference, numbers=True)
    normalize = partial(_normalize, ignore_case=ignore_case, ignore_punctuation=ignore_punctuation)
    answer, right = find_answer(completion), find_answer(wanted)
    got = normalize(visible_text(completion) if answer is None else answer.text)
    expected = normalize(visible_text(wanted) if right is None else right.text)
    if not got:
        return Verdict(False, None, "the completion is empty")
    equal = got == expected
    if not equal and answer is not None and answer.kind in _CLAUSES and got == normalize(first_clause(wanted)):
        # a stated answer ends with its sentence, which "U.S." and "a; b" only seem to
        whole = re.escape(expected.removesuffix("."))
        equal = re.search(rf"(?<!\w){whole}\.?(?=[\s*\"')]|$)", normalize(answered_text(completion))) is not None
    return Verdict(equal, got, "equal" if equal else "not equal")


def _normalize(text: str, ignore_case: bool, ignore_punctuation: bool) -> str:
    """Text in the form in which it is compared."""
    text = unicodedata.normalize("NFC", _TEXT.sub(r"\1", text))
    if ignore_case:
        text = text.casefold()
    if ignore_punctuation:
        text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    return " ".join(text.split())
