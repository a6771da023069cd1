"""`numeric`: the last number of the completion, or the one after `####`, equals that of the reference."""

import re
from decimal import Decimal
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.references import reference_text, shortened
from svf_rl.rewards.verdict import Verdict
from svf_rl.rewards.verifier import verifier

# A minus counts as a sign only where it is no subtraction: not after a digit, letter or bracket, nor before a space.
_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]]) (?P<sign>[-+−]) [$€£]? )?   # -5, -$5, $-5; but 6-4 holds 6 and 4
    (?<!\w) (?<!\d\.)                            # not within a word: m2
    (?P<digits> \d{1,3}(?:,\d{3})+(?!\d) (?:\.\d+)? | \d+(?:\.\d+)? | \.\d+ )
    """,
    re.VERBOSE,
)


def check_reference(reference: Any, **_: Any) -> None:
    """Raises `SVFError` for a reference without a number."""
    _expected(reference)


@verifier("numeric", check_reference=check_reference)
def numeric(completion: str, reference: Any) -> Verdict:
    """Compare by value; both sides are read by the same rules (`extract_number`), so that a reference may be a bare
    number or a worked solution, as GSM8K's are."""
    expected, got = _expected(reference), extract_number(completion)
    if got is None:
        return Verdict(False, None, "no number in the completion")
    equal = got == expected
    return Verdict(equal, str(got), "equal" if equal else f"{got} is not {expected}")


def extract_number(text: str) -> Decimal | None:
    """The number after the last `####` (GSM8K's mark of the final answer), or without that mark the last number.

    Thousands commas, a sign, decimals and a currency sign are read; what follows (`.`, `%`, a unit) is not.
    """
    _, mark, answer = text.rpartition("####")
    numbers = list(_NUMBER.finditer(answer if mark else text))
    if not numbers:
        return None
    number = numbers[0] if mark else numbers[-1]
    value = Decimal(number["digits"].replace(",", ""))
    return -value if number["sign"] in ("-", "−") else value


def _expected(reference: Any) -> Decimal:
    expected = extract_number(reference_text("numeric", reference, numbers=True))
    if expected is None:
        raise SVFError(f"numeric: the answer {shortened(reference)} holds no number")
    return expected
