r"""Reads a mathematical answer as one expression, all of it: part of an expression is not the expression.

A reading is LaTeX in one spelling, without the name that the answer is set to (`x =`), the label of an option
(`\text{(B)}`) and a unit. What is not understood as mathematics is text and compared as text: `at least 4`, `3 \to 8`,
`2 3`.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import gcd

from svf_rl.rewards.reading.latex_spelling import spell
from svf_rl.rewards.reading.latex_tokens import CLOCK, NotMathematics, Token, respell, tokenize, undress
from svf_rl.rewards.reading.latex_words import UNIT_OF, resolve_words


@dataclass(frozen=True)
class Reading:
    r"""
    An answer.

    Args:
        latex (`str`): what is compared, in one spelling; of text, its words in lower case.
        name (`str`): what it is set to, such as `x`; empty without one.
        label (`str`): the letter of the option that it is, or that stands before it; empty without one.
        base (`str`): the base of the number; empty without one.
        unit (`str`): its unit, where it is a common one; empty without.
        is_text (`bool`): it is not understood as mathematics.
        is_equation (`bool`): it is an equation that does not set a name to a value.
    """

    latex: str
    name: str = ""
    label: str = ""
    base: str = ""
    unit: str = ""
    is_text: bool = False
    is_equation: bool = False

    @cached_property
    def value(self) -> Fraction | None:
        r"""Of a rational number that is written out (`-3`, `0.5`, `\frac{3}{4}`, `3\cdot10^{5}`): its value."""
        match = _WRITTEN.fullmatch(self.latex)
        if match is None or self.is_text or self.base or len(self.latex) > _MOST_DIGITS:
            return None
        if int(match["below"] or 1) == 0 or abs(int(match["exponent"] or 0)) > _MOST_DIGITS:
            return None
        value = Fraction(match["number"] or (0 if match["below"] else 1))
        if match["below"]:
            value += Fraction(int(match["above"]), int(match["below"]))
        value *= Fraction(10) ** int(match["exponent"] or 0)
        return -value if match["minus"] else value

    @cached_property
    def is_worked_out(self) -> bool:
        """Whether it is such a number, in lowest terms."""
        if self.value is None:
            return False
        above, below = re.search(r"\\frac\{(\d+)\}\{(\d+)\}|$", self.latex).groups()  # type: ignore[union-attr]
        return above is None or gcd(int(above), int(below)) == 1


_LABEL = re.compile(r"\(?([A-Za-z])\)?[.:]?")


@lru_cache(maxsize=4096)
def read_answer(text: str) -> Reading | None:
    """The reading of an answer; `None` when it is empty."""
    text = undress(text)
    if clock := CLOCK.fullmatch(text.replace(r"\!", "")):
        return Reading(f"{clock[1].lstrip('0')}{(clock[2] or '').lower()}", is_text=True)
    label, words = "", read_words(text)
    try:
        label, tokens = _split_label(list(tokenize(respell(text))))
        if not tokens:
            return Reading("", label=label) if label else None
        resolved = list(resolve_words(tokens))
        units = [UNIT_OF.get(token.text, "") for token in resolved if token.kind == "unit"]
        return replace(_read(resolved, label), unit=units[-1] if units else "")
    except NotMathematics:
        return Reading(words, label=label, is_text=True) if words else None


def _split_label(tokens: list[Token]) -> tuple[str, list[Token]]:
    r"""The label of an option that the tokens are or begin with: `\text{(B)}`, `\text{(B) }12`, `(B)`, `\text{C}`."""
    found = [_LABEL.fullmatch(token.text) if token.kind == "text" else None for token in tokens]
    if found and found[0] and (len(tokens) == 1 or len(tokens[0].text) > 1):
        if any(found[1:]):  # (B) or (C)
            raise NotMathematics
        return found[0][1].lower(), tokens[1:]
    letters = [token.text for token in tokens[:3]]
    if len(tokens) == 3 and letters[0] == "(" and letters[2] == ")" and re.fullmatch("[A-Za-z]", letters[1]):
        return letters[1].lower(), []
    return "", tokens


def _read(tokens: list[Token], label: str) -> Reading:
    elements = [_read_element(element) for element in _split(tokens, "separator")]
    if not elements:
        raise NotMathematics
    names = {name for name, _, _ in elements if name}
    if len(names) > 1 or (len(elements) > 1 and any(is_equation for _, _, is_equation in elements)):
        spelled = ", ".join(f"{name}={latex}" if name else latex for name, latex, _ in elements)
        return Reading(spelled, label=label, is_equation=True)
    latex = ", ".join(latex for _, latex, _ in elements)
    if match := re.fullmatch(r"(-?\d+)_\{(\d{1,2})\}", latex):
        return Reading(match[1], label=label, base=match[2])
    return Reading(latex, names.pop() if names else "", label, is_equation=elements[0][2])


def _split(tokens: list[Token], kind: str, text: str = "") -> list[list[Token]]:
    """The tokens between those of `kind` (and `text`) outside of brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.kind == "open") - (token.kind == "close")
        depth += (token.text == r"\begin{pmatrix}") - (token.text == r"\end{pmatrix}")
        if depth <= 0 and token.kind == kind and text in ("", token.text):
            parts.append([])
        else:
            parts[-1].append(token)
    if len(parts) > 1:
        parts = [part for part in parts if part]  # "1, 2, and 3"
    return parts


def _read_element(tokens: list[Token]) -> tuple[str, str, bool]:
    """The name that an element is set to, its LaTeX, and whether it is an equation."""
    for sign in (r"\in", r"\approx"):
        sides = _split(tokens, "relation", sign)
        if len(sides) == 2 and _is_name(sides[0]):
            return _name(sides[0]), spell(sides[1]), False
        if len(sides) > 1 or (sign == r"\approx" and any(token.text == sign for token in tokens)):
            raise NotMathematics
    sides = _split(tokens, "relation", "=")
    if not sides or any(_has_inner_equals(side) for side in sides):
        raise NotMathematics  # \{x|x=3k\}
    if len(sides) == 1:
        if not tokens or tokens[0].kind == "relation" or tokens[-1].kind == "relation":
            raise NotMathematics  # ≥ 4
        return "", spell(tokens), False
    if any(token.kind == "relation" and token.text != "=" for side in sides for token in side):
        raise NotMathematics
    first, last = sides[0], sides[-1]
    if _is_name(first):
        return _name(first), spell(last), False
    if _is_name(last) and len(sides) == 2:
        return _name(last), spell(first), False
    if not any(token.kind in ("word", "text") for token in first):
        if len(first) == 1 and spell(first) != spell(last):
            raise NotMathematics  # 7 = 4
        return "", spell(last), False
    if len(sides) > 2:
        raise NotMathematics
    return "", f"{spell(first)}={spell(last)}", True


def _has_inner_equals(tokens: list[Token]) -> bool:
    r"""Whether an `=` stands within brackets, other than the lower bound of a sum, `_{k=1}`."""
    opened: list[bool] = []
    for before, token in zip([Token("", ""), *tokens], tokens, strict=False):
        if token.kind == "open":
            opened.append(before.text == "_")
        elif token.kind == "close" and opened:
            opened.pop()
        elif token.text == "=" and not all(opened):
            return True
    return False


_NAME = re.compile(
    r"[A-Za-z]'*(?:_\{[^{}]*\})?(?:\((?:[A-Za-z]|-?\d+)(?:, [A-Za-z])*\))?|\\[A-Za-z]+(?:_\{[^{}]*\})?"
    r"|\|?[A-Z]{2,4}\|?|\|[A-Za-z]\|"
    r"|(?:m?\\angle|\\triangle) ?[A-Z]{1,3}|\\overline\{[A-Z]+\}|\([A-Za-z](?:, [A-Za-z])+\)"
)


def _name(tokens: list[Token]) -> str:
    return spell(tokens, names=True)


def _is_name(tokens: list[Token]) -> bool:
    if tokens and tokens[0].kind == "text" and all(token.kind in ("text", "unit", "word") for token in tokens):
        return True
    try:
        name = _name(tokens)
    except NotMathematics:
        return False
    return _NAME.fullmatch(name) is not None and name not in (r"\pi", r"\infty", "e", "i", r"\emptyset")


_MOST_DIGITS = 400
_WRITTEN = re.compile(
    r"(?P<minus>-)?(?=\d|\\frac)(?P<number>\d+(?:\.\d+)?(?!\^|\d))?(?:\\frac\{(?P<above>\d+)\}\{(?P<below>\d+)\}"
    r"|(?:(?<=\d)\\cdot|(?<![\d.]))10\^\{(?P<exponent>-?\d+)\})?"
)


def read_words(text: str) -> str:
    """Text in the form in which it is compared: without markup, words in lower case, with one space between them."""
    text = re.sub(r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[,;:! ]|\\(?:left|right|quad)(?![a-z])|\$", " ", text)
    text = re.sub(r"\s*\{(\w+)\}", r" \1", text)
    text = re.sub(r"\s*,\s*", ", ", " ".join(text.split())).strip(" .,;:")
    return text.casefold() if re.fullmatch(r"[^\d\\{}^_=]*", text) else text
