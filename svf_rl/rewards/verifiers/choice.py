r"""`choice`: the completion names the right option of a multiple-choice question.

A label is one letter or a number of one or two digits. Which label a completion chooses is decided by the first of
these rules that finds one:

1. the last `\boxed{...}` with a label: `\boxed{C}`, `\boxed{\text{(C)}}`;
2. the last statement of the choice: "the answer is (C)", "Answer: C", "the correct option is C", "I choose C",
   "(C) is correct", "C is the right answer";
3. a line that is a label, or that a label begins (`C`, `**C**`, `C.`, `C) water`), when all such lines agree;
4. the last label in brackets: "(A) is too cold, so (B)";
5. a capital letter that ends the text, when it is the only one in its last sentence: "So it must be C."

Labels are compared as they are: a letter never stands for a digit, since the prompt shows the labels. A completion that
gives an option's text without its label does not name an option, and is wrong.
"""

import re
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.references import reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier

# Repetitions are bounded, so that hostile text takes linear time at most.
_DECORATION = r"[\s*_:\"'`$“‘]{0,8}"
_OPEN = rf"{_DECORATION}(?:\\?[(\[{{]|\\(?:text|textbf|mathbf|mathrm)\{{)?{_DECORATION}"
# Without brackets only a capital is a label: "the answer is a number" holds none; "A" before a word is an article.
_BARE = (
    r"(?:[B-HJ-Z](?![\w'’])|[AI](?![\w'’]|[ ][a-z])|[AI](?=[ ](?:because|since|as|and|is|with|for)\b)"
    r"|\d{1,2}(?!\w|[.,:/]\d|\s?%))"
)
_LABEL = rf"(?:\((?P<bracketed>[A-Za-z]|\d{{1,2}})\)|(?P<bare>{_BARE}))(?!\s?=)"
_NOUN = r"(?:answer|option|choice|letter|label|statement)"
_IS = r"(?:\s{1,3}(?:choice\s)?(?:is|was|(?:should|would|must|will)\s+be)\b(?!\s+not\b)|[\s*_]{0,4}[:：=])"
_STATED = [
    re.compile(pattern)
    for pattern in (
        rf"(?i:\b{_NOUN}\b{_IS}(?:[\s*_:]{{1,8}}(?:therefore|thus|clearly|probably|the|correct|{_NOUN}|number)\b){{0,6}})"
        rf"{_OPEN}{_LABEL}",
        rf"(?i:\b(?:choose|chose|select|pick)\b(?:\s(?:the|correct|{_NOUN}|number)\b){{0,4}}){_OPEN}{_LABEL}",
        rf"(?<![\w\\(]){_LABEL}[)\s*_}}$.:]{{1,8}}"
        r"(?i:is\s(?:the\s)?(?:most\s(?:likely\s)?)?(?:correct|right|best|appropriate|answer)\b)",
    )
]
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_IN_BOX = re.compile(
    r"[\s{(\[*$]{0,8}(?:\\(?:text|textbf|mathbf|mathrm)\s?\{[\s(]{0,4})?([A-Za-z]|\d{1,2})(?!\w|[.,]\d)"
)
_LINE = re.compile(
    r"""
    ^ [^\w\n(]{0,8}
    (?: \( (?P<bracketed> [A-Za-z] | \d{1,2} ) \) | (?P<bare> [A-Za-z] | \d{1,2} ) (?= [*_`]{0,3} (?: [.):] | \s*$ ) ) )
    [*_`]{0,3} [.):]? [*_`]{0,3} (?= [ \t] | $ ) [^\n(]* $
    """,
    re.MULTILINE | re.VERBOSE,
)
_IN_BRACKETS = re.compile(r"(?<![\w\\])\(([A-Za-z]|\d{1,2})\)")
_CAPITAL = re.compile(r"(?<![\w'’])[A-Z](?![\w'’])")


def read_reference(reference: Any) -> str:
    """The label of a reference. Raises `SVFError` without one."""
    expected = extract_choice(reference_text("choice", reference))
    if expected is None:
        raise SVFError(f"choice: the answer {shorten(reference)} does not name an option")
    return expected


@verifier("choice", check_reference=read_reference)
def choice(completion: str, reference: Any) -> Verdict:
    """Compare the labels of the options; both sides are read by the same rules (those above)."""
    expected, got = read_reference(reference), extract_choice(completion)
    if got is None:
        return Verdict(False, None, "the completion does not name an option")
    return Verdict(got == expected, got, "equal" if got == expected else f"{got} is not {expected}")


def extract_choice(text: str) -> str | None:
    """The label (a letter, in capitals, or a number) that `text` chooses, by the rules above."""
    for rule in (_boxed, _stated, _line, _bracketed, _ending):
        if (label := rule(text)) is not None:
            return label.upper()
    return None


def _boxed(text: str) -> str | None:
    for box in reversed(list(_BOX.finditer(text))):
        if (label := _IN_BOX.match(text, box.end())) is not None:
            return label[1]
    return None


def _stated(text: str) -> str | None:
    found = [match for pattern in _STATED for match in pattern.finditer(text)]
    if not found:
        return None
    last = max(found, key=lambda match: match.end())
    return last["bracketed"] or last["bare"]


def _line(text: str) -> str | None:
    labels = {(match["bracketed"] or match["bare"]).upper() for match in _LINE.finditer(text)}
    return labels.pop() if len(labels) == 1 else None


def _bracketed(text: str) -> str | None:
    labels = _IN_BRACKETS.findall(text)
    return labels[-1] if labels else None


def _ending(text: str) -> str | None:
    sentence = re.split(r"[.!?](?=\s+\S)|\n", text.strip()[-300:])[-1]
    capitals = {letter for letter in _CAPITAL.findall(sentence) if letter != "I"}
    last = re.search(r"(?<![\w'’])([A-Z])[\s.!*_`\"'$})\]]*$", sentence)
    return last[1] if last is not None and len(capitals) == 1 else None
