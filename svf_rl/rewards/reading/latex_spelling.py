r"""One spelling for tokens of LaTeX: without units, with the arguments of commands in braces."""

import re

from svf_rl.rewards.reading.latex_tokens import NotMathematics, Token

# No answer is nested deeper, and reading it takes a call for each level.
_MOST_DEPTH = 50


def spell(tokens: list[Token], names: bool = False) -> str:
    """The tokens as LaTeX in one spelling. Raises `NotMathematics` where they do not make one expression."""
    tokens = _drop_units(tokens)
    if not tokens:
        raise NotMathematics
    if not names and any(token.kind == "text" for token in tokens):
        raise NotMathematics
    if any(token.text in ("&", "\\\\") for token in tokens) and tokens[0].text != r"\begin{pmatrix}":
        raise NotMathematics
    latex, end = _emit_until(tokens, 0, "")
    for pattern, replacement in _SHAPES:
        latex = pattern.sub(replacement, latex)
    if end != len(tokens) or (not names and _UNREADABLE.search(latex)):
        raise NotMathematics
    return latex


def _drop_units(tokens: list[Token]) -> list[Token]:
    """The tokens without a percent sign, degrees and a unit at their end; degrees within trigonometry are numbers."""
    in_degrees = any(token.text in (r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc") for token in tokens)
    kept: list[Token] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        shape = [t.text for t in tokens[index : index + 4]]
        degrees = 4 if shape == ["^", "{", r"\circ", "}"] else 2 if shape[:2] == ["^", r"\circ"] else 0
        if degrees and in_degrees:
            kept += [Token("command", r"\cdot"), *_DEGREE]
        if degrees or token.kind == "unit" or token.text == "%":
            index += degrees or 1
            if token.kind == "unit" and index < len(tokens) and tokens[index].text == "^":
                index += 4 if tokens[index + 1 : index + 2] == [Token("open", "{")] else 2
            follows = tokens[index] if index < len(tokens) else None
            if (
                follows is not None
                and not in_degrees
                and follows.kind not in ("close", "relation", "unit", "separator")
            ):
                raise NotMathematics
            continue
        kept.append(token)
        index += 1
    return kept


_DEGREE = [
    Token("command", r"\frac"), Token("open", "{"), Token("command", r"\pi"), Token("close", "}"),
    Token("open", "{"), Token("number", "180"), Token("close", "}"),
]  # fmt: skip
_ARGUMENTS = {r"\frac": 2, r"\binom": 2} | dict.fromkeys(
    ["^", "_", r"\sqrt", r"\overline", r"\vec", r"\hat", r"\bar"], 1
)
# A derivative, which would be worked out to 0, and two numbers beside one another: 2 3, (2)3, 2(3)
_UNREADABLE = re.compile(r"'|\^\{T\}|\\frac\{d[a-z]?\}\{d[a-z]|\d \d|\)\d|(?<![\d_.])\d+(?:\.\d+)?\(-?\d+(?:\.\d+)?\)")
_SHAPES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
        (r"^(-?)(\d+) (\d+)/(\d+)$", r"\1\2\\frac{\3}{\4}"),
        (r"^\\frac\{-([^{}]*)\}(\{[^{}]*\})$", r"-\\frac{\1}\2"),
        (r"^\\frac(\{[^{}]*\})\{-([^{}]*)\}$", r"-\\frac\1{\2}"),
    )
]


def _emit_until(tokens: list[Token], position: int, closing: str, depth: int = 0) -> tuple[str, int]:
    """LaTeX from `position` to the token `closing`, or to the end."""
    if depth > _MOST_DEPTH:
        raise NotMathematics
    pieces: list[str] = []
    while position < len(tokens) and (not closing or tokens[position].text != closing):
        token = tokens[position]
        position += 1
        if token.text in _ARGUMENTS:
            piece = token.text
            if token.text == r"\sqrt" and _text_at(tokens, position) == "[":
                root, position = _emit_until(tokens, position + 1, "]", depth + 1)
                piece += f"[{root}]"
                position += 1
            for _ in range(_ARGUMENTS[token.text]):
                argument, tokens, position = _argument(tokens, position, token.text, depth + 1)
                piece += "{" + argument + "}"
        elif token.text == "{":
            inner, position = _emit_until(tokens, position, "}", depth + 1)
            position += 1
            piece = inner if re.fullmatch(r"[A-Za-z]|\d+", inner) else "{" + inner + "}"
        else:
            piece = token.text
        if pieces and (
            (re.search(r"\\[A-Za-z]+$", pieces[-1]) and piece[:1].isalpha())
            or (pieces[-1][-1:].isdigit() and piece[:1].isdigit())
        ):
            piece = " " + piece
        pieces.append(", " if token.kind == "separator" else piece)
    if closing and position >= len(tokens):
        raise NotMathematics
    return "".join(pieces), position


def _argument(tokens: list[Token], position: int, command: str, depth: int) -> tuple[str, list[Token], int]:
    r"""The argument of a command at `position`, and the tokens and the position behind it: a group, a token, or (of
    `\frac12`) a digit."""
    if position >= len(tokens) or depth > _MOST_DEPTH:
        raise NotMathematics
    token = tokens[position]
    if token.text == "{":
        inner, end = _emit_until(tokens, position + 1, "}", depth)
        return inner, tokens, end + 1
    if token.kind == "number" and command not in ("^", "_") and len(token.text) > 1 and token.text.isdigit():
        rest = [*tokens[:position], Token("number", token.text[1:]), *tokens[position + 1 :]]
        return token.text[0], rest, position
    if token.text == "-" and position + 1 < len(tokens):
        return "-" + tokens[position + 1].text, tokens, position + 2
    if token.kind not in ("number", "word", "command"):
        raise NotMathematics
    if command == "^" and _text_at(tokens, position + 1) == "^":  # 9^9^9, as Python's ** is meant
        power, tokens, end = _argument(tokens, position + 2, command, depth + 1)
        return f"{token.text}^{{{power}}}", tokens, end
    return token.text, tokens, position + 1


def _text_at(tokens: list[Token], position: int) -> str:
    return tokens[position].text if position < len(tokens) else ""
