"""Works out the arithmetic that tokens begin with."""

from dataclasses import replace
from fractions import Fraction

from svf_rl.rewards.reading.number_tokens import MOST_DIGITS, MOST_EXPONENT, Number, Token, kind_at

_MOST_DEPTH = 20
# Kinds of tokens that an expression has, and that one begins with
EXPRESSION = frozenset(["number", *"+-*/^()"])
STARTS = frozenset(["number", *"+-("])


class NoNumber(Exception):
    """The tokens at hand do not give one number."""


def read_expression(tokens: list[Token]) -> tuple[Number, list[Token]]:
    """A sum that the tokens begin with, and what follows it."""
    value, position = _sum(tokens, 0, 0)
    used = tokens[:position]
    signs = [token for token in used if token.kind in "+-*/^(" and token.kind != "number"]
    last = used[-1]
    if len(signs) == 1 and len(used) == 2:  # a sign before a number
        return replace(last.number, value=value), tokens[position:]
    written = not signs or _is_written(used)
    kinds = [token.kind for token in used]
    follows = tokens[position].kind if position < len(tokens) else ""
    if kinds == ["number", "-", "number"] and used[1].glued and used[2].glued and follows != "=":
        raise NoNumber  # 5-10 is a range
    percent = len(used) == 1 and last.number.percent
    if not percent and any(token.number.percent for token in used):
        raise NoNumber
    return Number(value, percent, written), tokens[position:]


def _is_written(used: list[Token]) -> bool:
    """Whether the tokens write a number and not a calculation: `3 × 10^5`, and fractions in lowest terms."""
    kinds = "".join("n" if token.kind == "number" else token.kind for token in used).lstrip("-")
    values = [token.number.value for token in used if token.kind == "number"]
    if kinds in ("n/n", "(n/n)", "(-n/n)"):
        return Fraction(values[0], values[1]).denominator == values[1] > 1
    return kinds in ("(n)", "(-n)", "n(n)") or (kinds in ("n^n", "n^-n", "n*n^n", "n*n^-n") and values[-2] == 10)


def _sum(tokens: list[Token], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position, depth)
    while kind_at(tokens, position) in ("+", "-") and kind_at(tokens, position + 1) in STARTS:
        if tokens[position].kind == "-" and not tokens[position].glued and tokens[position + 1].kind == "word":
            break
        other, after = _product(tokens, position + 1, depth)
        value = value + other if tokens[position].kind == "+" else value - other
        position = after
    return value, position


def _product(tokens: list[Token], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _signed(tokens, position, depth)
    divided = False
    while kind_at(tokens, position) in ("*", "/") and kind_at(tokens, position + 1) in STARTS:
        other, after = _signed(tokens, position + 1, depth)
        divides = tokens[position].kind == "/"
        if divides and (divided or other == 0):
            raise NoNumber  # 24/7/365
        divided = divides
        value = value * other if tokens[position].kind == "*" else value / other
        position = after
    return _bounded(value), position


def _signed(tokens: list[Token], position: int, depth: int) -> tuple[Fraction, int]:
    kind = kind_at(tokens, position)
    if depth > _MOST_DEPTH:
        raise NoNumber
    if kind in ("-", "+"):
        value, after = _signed(tokens, position + 1, depth + 1)
        return (-value if kind == "-" else value), after
    value, after = _base(tokens, position, depth)
    if kind_at(tokens, after) == "^":
        exponent, after = _signed(tokens, after + 1, depth + 1)
        if exponent.denominator != 1 or abs(exponent) > MOST_EXPONENT or (value == 0 and exponent < 0):
            raise NoNumber
        value = _bounded(value) ** int(exponent)
    if kind_at(tokens, after) in ("number", "("):
        raise NoNumber  # 2 3, 2 (3)
    return _bounded(value), after


def _base(tokens: list[Token], position: int, depth: int) -> tuple[Fraction, int]:
    kind = kind_at(tokens, position)
    if kind == "number":
        token, after = tokens[position], position + 1
        if "".join(t.kind for t in tokens[after : after + 3]) == "(number)" and not any(map(str.isdigit, token.text)):
            after += 3 * (tokens[after + 1].number.value == token.number.value)  # five (5)
        return token.number.value, after
    if kind == "(":
        value, after = _sum(tokens, position + 1, depth + 1)
        if kind_at(tokens, after) == ")":
            return value, after + 1
    raise NoNumber


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * MOST_DIGITS:
        raise NoNumber
    return value
