r"""`numeric`: the number that a completion gives as its answer equals that of the reference.

`reading/final_answer.py` says where the answer stands; `reading/number_text.py` reads the number there. A box or tag
holds the number and its unit and nothing else; a line `####` or a statement may add a remark ("$18 for 3 days").
Without a mark and a statement the last sentence with a number counts: its bold number, the right side of its equation,
or its last number.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from svf_rl.errors import SVFError
from svf_rl.rewards.reading.final_answer import answered_text, find_answer
from svf_rl.rewards.reading.number_text import read_number, read_sentence
from svf_rl.rewards.reading.number_tokens import Number
from svf_rl.rewards.reading.sentences import statements_from_end
from svf_rl.rewards.references import is_number, reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier

# Two numbers that differ in the 15th digit differ by what floating-point numbers lose.
_FLOAT_NOISE = Fraction(1, 10**15)
# GSM8K's notes of a calculation, and whether its result stands behind: <<9*2=18>>18
_NOTE = re.compile(r"<<[^<>\n]{0,100}=([^<>=\n]{1,30})>>(?P<shown>(?=[ $]?\d))?")


def check_reference(reference: Any, *, tolerance: float = 0.0, **_: Any) -> None:
    """Raises `SVFError` for a reference without a number, or an invalid tolerance."""
    if not is_number(tolerance) or not 0 <= tolerance < float("inf"):
        raise SVFError(f"numeric: tolerance must be a number from 0 up, got {tolerance!r}")
    _expected(reference)


@verifier("numeric", check_reference=check_reference, finds_answer=True, in_training={"form": "value"})
def numeric(
    completion: str, reference: Any, *, tolerance: float = 0.0, form: Literal["value", "equal"] = "equal"
) -> Verdict:
    """
    Compare by value; both sides are read by the same rules (those above), so that a reference may be a bare number or a
    worked solution, as GSM8K's are.

    Args:
        tolerance (`float`, *optional*, defaults to `0.0`): how far the value may be from the reference.
        form (`str`, *optional*, defaults to `"equal"`): `"value"`: the answer must be a number, and not a calculation
            that is left undone.
    """
    expected, got = _expected(reference), extract_number(completion)
    if got is None:
        return Verdict(False, None, "the completion does not give one number")
    if form == "value" and not got.written:
        return Verdict(False, str(got), "the answer is a calculation that is not worked out")
    most = Fraction(tolerance) + abs(expected.value) * _FLOAT_NOISE
    equal = abs(got.value - expected.value) <= most
    return Verdict(equal, str(got), "equal" if equal else f"{got} is not {expected}")


def extract_number(text: str) -> Number | None:
    """The number that `text` gives as its answer, by the rules above."""
    if "<<" in text:
        text = _NOTE.sub(lambda note: note[1] if note["shown"] is None else "", text)
    answer = find_answer(text)
    if answer is not None:
        strict = answer.kind in ("box", "boxes", "tag")
        number = read_number(answer.text, strict=strict)
        # behind a label, a whole solution may begin: "Answer: 3*4 = 12. Then ..."
        is_solution = answer.kind == "label" and (number is None or "=" in answer.text)
        is_said = strict or answer.kind == "statement" or any(map(str.isdigit, answer.text))
        if not is_solution and (number is not None or is_said):
            return number
    for sentence in statements_from_end(answered_text(text)):
        if any(character.isdigit() for character in sentence):
            return read_sentence(sentence)
    return None


@lru_cache(maxsize=4096)
def _read_reference(text: str) -> Number | None:
    """The number of a reference, which comes with each completion of its prompt."""
    return extract_number(text)


def _expected(reference: Any) -> Number:
    expected = _read_reference(reference_text("numeric", reference, numbers=True))
    if expected is None:
        raise SVFError(f"numeric: the answer {shorten(reference)} does not give one number")
    return expected
