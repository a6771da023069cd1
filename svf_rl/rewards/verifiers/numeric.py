r"""`numeric`: the number that a completion gives as its answer equals that of the reference.

Which number that is, is decided by the first of these rules that finds one:

1. the last mark of a final answer that a number follows: `#### 42` (GSM8K's own) or `\boxed{42}`;
2. the last statement of the answer: "the answer is 42", "Answer: 42", GSM8K's example solutions' "A: 42";
3. a number in bold in the last line that holds a number: `so she earns **$42** on 7 days`;
4. the last number.

A stated answer outranks the last number, since explanations that follow it hold numbers too. In an equation the number
after the last `=` counts. A heading such as `#### Step 2: ...` is not a mark. When a model continues with an invented
question (a line `Q:`, `Question:`, `Problem:`), text after its first answer does not count.
"""

import re
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.references import is_number, reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier

# Longer numbers are not answers, and computing with them would take time.
MOST_DIGITS, MOST_EXPONENT = 400, 400
_DECIMAL_DIGITS = 4 * MOST_DIGITS  # more than any such number has
# How far a statement may be from its number, and how many statements are looked at: keeps hostile text linear.
STATEMENT_LENGTH, MOST_STATEMENTS = 300, 64

_MINUS = "-−–"
_CURRENCY = r"(?:\\?[$]|[€£¥₹]|USD\ ?|US\\?[$])"
_WHOLE = r"\d{1,3}(?:(?:,|\{,\}|,?\\[,!;:]|,\\!\ )\d{3})+(?!\d)|\d+"
# A minus counts as a sign only where it is not a subtraction: not after a digit, letter or bracket, nor before a space.
_NUMBER = re.compile(
    rf"""
    (?: (?<![\w)\]}}%]) (?P<sign>[-+−–]) (?=[\d.$€£¥₹\\U]) )?
    (?: {_CURRENCY}\ ? (?P<inner_sign>[-−])? (?=[\d.\\]) )?
    (?<![A-Za-z_]) (?<!\d\.) (?<!\d)                   # not within a word (m2) or a number
    (?:
      (?<!\d/) (?P<mixed> \d{{1,9}}\ )? (?P<above> \d+) \ ?/\ ? (?P<below> \d+) (?! [\d/] | \.\d )
    | (?P<whole_part> \d{{1,9}}\ ? )? \\[dtc]?frac \ ?
      (?: \{{ (?P<minus> -)? (?P<latex_above> \d+) \}} \{{ (?P<latex_below> \d+) \}} | (?P<short_above> \d)\ ?(?P<short_below> \d) )
    | (?P<digits> (?:{_WHOLE}) (?:\.\d+)? | \.\d+ )
      (?: [eE](?P<exponent> [-+]?\d+)(?!\w)
        | \ ? (?: \\times | \\cdot | [x×*] ) \ ? 10 \ ? (?: \^ | \*\* ) \ ? \{{? (?P<power> [-−]?\d+) \}}? )?
    )
    (?P<percent> \ ?\\?% | \ percent\b )?
    """,  # noqa: E501
    re.VERBOSE,
)
_MARK = re.compile(r"####|\\boxed\b|\\fbox\b")
# What may stand between a mark and its number: signs, LaTeX's brackets, a letter that is set to it, "the answer is"
_LEAD = re.compile(
    r"(?: [^\w.] | _ | \\(?:text|textbf|mathbf|mathrm|approx)\b | \b[A-Za-z]\s?= | \b(?i:the|final|answer|is)\b )*",
    re.VERBOSE,
)
_ANSWER = re.compile(r"\b(?i:answer)\b")
_IS = re.compile(
    r"""
    (?P<colon> [\s*_]* [:：] [\s*_]* )
    | (?: \s+ (?!is\b|was\b|are\b|not\b) [^\s.!?:]+ ){0,8}?
      \s+ (?:is|was|are|would\ be|will\ be|should\ be|equals|=) (?!\s+not\b) [\s:*_]*
    """,
    re.VERBOSE,
)
_LINE_A = re.compile(r"(?m)^[ \t*]*A[ \t*]*:[ \t*]*")
NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:\*\*|\#{1,6} )?(?:Q|Question|Problem)(?: ?\d{1,4})?(?:\*\*)?:")
_CLAUSE_END = re.compile(r"[.!?;](?=\s|\*|$)|\n")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_ENUMERATOR = re.compile(r"\s*\d{1,2}[.):]\s+[^\W\d]")
_OPERATOR = re.compile(r"\s*(?:[-+*/×÷=−x]|\\times|\\cdot|\\div)\s*[\d($\\.]")


@dataclass(frozen=True)
class Number:
    """A number in a text: its value, and whether a percent sign follows it (which `value` leaves out)."""

    value: Fraction
    percent: bool = False

    def __str__(self) -> str:
        with localcontext(Context(prec=_DECIMAL_DIGITS)) as context:
            decimal = Decimal(self.value.numerator) / self.value.denominator
            shown = str(self.value) if context.flags[Inexact] else format(decimal, "f")
        return f"{shown}%" if self.percent else shown

    def equals(self, other: "Number", tolerance: Fraction = Fraction(0)) -> bool:
        """By value. `50%` equals 50, as GSM8K writes its percentages, and 0.5, which it is."""
        one, two = ({n.value, n.value / 100} if n.percent else {n.value} for n in (self, other))
        if self.percent and other.percent:
            one, two = {self.value}, {other.value}
        return any(abs(a - b) <= tolerance for a in one for b in two)


def check_reference(reference: Any, *, tolerance: float = 0.0) -> None:
    """Raises `SVFError` for a reference without a number, or an invalid tolerance."""
    if not is_number(tolerance) or not 0 <= tolerance < float("inf"):
        raise SVFError(f"numeric: tolerance must be a number from 0 up, got {tolerance!r}")
    _expected(reference)


@verifier("numeric", check_reference=check_reference)
def numeric(completion: str, reference: Any, *, tolerance: float = 0.0) -> Verdict:
    """
    Compare by value; both sides are read by the same rules (those above), so that a reference may be a bare number or a
    worked solution, as GSM8K's are.

    Thousands commas, signs, decimals, fractions (`3/4`, `1 1/2`, `\\frac{3}{4}`), powers of ten, currency signs and
    units are read. `50%` equals 50 and 0.5.

    Args:
        tolerance (`float`, *optional*, defaults to `0.0`): how far the value may be from the reference.
    """
    expected, got = _expected(reference), extract_number(completion)
    if got is None:
        return Verdict(False, None, "no number in the completion")
    equal = got.equals(expected, Fraction(tolerance))
    return Verdict(equal, str(got), "equal" if equal else f"{got} is not {expected}")


def extract_number(text: str) -> Number | None:
    """The number that `text` gives as its answer, by the rules above."""
    if question := NEXT_QUESTION.search(text):
        before = text[: question.start()]
        if (_marked(before) or _stated(before)) is not None:
            text = before
    for rule in (_marked, _stated, _bold, _last):
        if (number := rule(text)) is not None:
            return number
    return None


def _marked(text: str) -> Number | None:
    for mark in reversed(list(_MARK.finditer(text))[-MOST_STATEMENTS:]):
        line, _, rest = text[mark.end() : mark.end() + STATEMENT_LENGTH].lstrip(" \t").partition("\n")
        # `#### 2. Find the rest` is a heading where more text follows below it
        if mark[0] == "####" and _ENUMERATOR.match(line) and rest.strip():
            continue
        if (number := _direct(line)) is not None:
            return number
    return None


def _stated(text: str) -> Number | None:
    statements = [*_ANSWER.finditer(text), *_LINE_A.finditer(text)]
    statements.sort(key=lambda match: match.end())
    for statement in reversed(statements[-MOST_STATEMENTS:]):
        after = text[statement.end() : statement.end() + STATEMENT_LENGTH]
        has_colon = statement.re is _LINE_A
        if not has_colon:
            verb = _IS.match(after)
            if verb is None:
                continue
            after, has_colon = after[verb.end() :], verb["colon"] is not None
        number = _direct(after)
        # After a colon a whole solution may begin: "Answer: 3*4 = 12. Then ..."
        if has_colon:
            if number is not None and not _is_calculation(after):
                return number
            continue
        if number is None:
            found = _numbers(_clause(after))
            number = found[0] if found else None
        if number is not None:
            return number
    return None


def _bold(text: str) -> Number | None:
    for line in reversed(text[-4 * STATEMENT_LENGTH :].splitlines()):
        if not _numbers(line):
            continue
        for content in reversed(_BOLD.findall(line)):
            if (number := _direct(content)) is not None and len(_numbers(content)) == 1:
                return number
        return None
    return None


def _last(text: str) -> Number | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return None if last is None else _value(last)


def _direct(text: str) -> Number | None:
    """The number that `text` begins with; in an equation, the one after its last `=`."""
    clause = _clause(text)
    _, equals, right = clause.rpartition("=")
    if equals and (numbers := _numbers(right)):
        return numbers[0]
    match = _NUMBER.search(clause)
    return _value(match) if match is not None and _LEAD.fullmatch(clause, 0, match.start()) else None


def _is_calculation(text: str) -> bool:
    """Whether the number that `text` begins with is the first of a calculation."""
    match = _NUMBER.search(text)
    return match is not None and _OPERATOR.match(text, match.end()) is not None


def _clause(text: str) -> str:
    text = text[:STATEMENT_LENGTH]
    stripped = text.lstrip(" \t\n*_")
    end = _CLAUSE_END.search(stripped)
    return stripped[: end.start()] if end else stripped


def _numbers(text: str) -> list[Number]:
    return [number for match in _NUMBER.finditer(text) if (number := _value(match)) is not None]


def _value(match: re.Match[str]) -> Number | None:
    """The number of a match; `None` when it is too long, or divided by zero."""
    parts = match.groupdict()
    if len(match[0]) > MOST_DIGITS:
        return None
    negative = parts["sign"] in (*_MINUS,) or parts["inner_sign"] is not None or parts["minus"] is not None
    above = parts["above"] or parts["latex_above"] or parts["short_above"]
    below = parts["below"] or parts["latex_below"] or parts["short_below"]
    if above is not None:
        if int(below) == 0:
            return None
        value = int((parts["mixed"] or parts["whole_part"] or "0").strip()) + Fraction(int(above), int(below))
    else:
        value = Fraction(re.sub(r"[^\d.]", "", parts["digits"]))
        exponent = int((parts["exponent"] or parts["power"] or "0").replace("−", "-"))
        if abs(exponent) > MOST_EXPONENT:
            return None
        value *= Fraction(10) ** exponent
    return Number(-value if negative else value, parts["percent"] is not None)


def _expected(reference: Any) -> Number:
    expected = extract_number(reference_text("numeric", reference, numbers=True))
    if expected is None:
        raise SVFError(f"numeric: the answer {shorten(reference)} holds no number")
    return expected
