"""`exact_match`: the completion, normalised, is the reference, normalised."""

import unicodedata
from typing import Any

from svf_rl.rewards.references import reference_text
from svf_rl.rewards.verifier import Verdict, verifier


@verifier("exact_match", check_reference=lambda reference, **_: reference_text("exact_match", reference, numbers=True))
def exact_match(
    completion: str, reference: Any, *, ignore_case: bool = False, ignore_punctuation: bool = False
) -> Verdict:
    """
    Compare all of the completion with all of the reference.

    Both are normalised: to Unicode's composed form (NFC), each run of white space to one space, none at the ends.

    Args:
        ignore_case (`bool`, *optional*, defaults to `False`): compare case-folded text.
        ignore_punctuation (`bool`, *optional*, defaults to `False`): drop punctuation (Unicode categories P).
    """
    expected = normalize_text(reference_text("exact_match", reference, numbers=True), ignore_case, ignore_punctuation)
    got = normalize_text(completion, ignore_case, ignore_punctuation)
    if not got:
        return Verdict(False, None, "the completion is empty")
    return Verdict(got == expected, got, "equal" if got == expected else "not equal")


def normalize_text(text: str, ignore_case: bool = False, ignore_punctuation: bool = False) -> str:
    """`text` in the form used for the comparison."""
    text = unicodedata.normalize("NFC", text)
    if ignore_case:
        text = text.casefold()
    if ignore_punctuation:
        text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    return " ".join(text.split())
