r"""Reads the one number that a piece of text gives: part of an expression is not the expression.

`3x`, `2\sqrt{3}`, `at least 4`, `not 5`, `5 to 10` and `3 or 12` give no one number. Arithmetic is worked out: `5 + 3`
is 8, and is noted as not written as a number.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

from svf_rl.rewards.reading.arithmetic import EXPRESSION, STARTS, NoNumber, read_expression
from svf_rl.rewards.reading.number_tokens import Number, Token, kind_at, text_at, tokenize

# Longer texts are not answers.
MOST_TEXT = 600


def read_number(text: str, *, strict: bool) -> Number | None:
    """
    The one number that `text` gives; `None` where it gives none, or several.

    Args:
        text (`str`): what stands in a mark, or behind "the answer is".
        strict (`bool`): nothing but a unit may follow the number; otherwise a remark may ("$18 for 3 days").
    """
    if _PLAIN_NUMBER.fullmatch(text):
        return Number(Fraction(text.strip(" .")))
    if strict and text.endswith(".."):
        return None  # 0.3...
    tokens = tokenize(text[:MOST_TEXT], words=True)
    opening = [token.text for token in tokens[:8]]
    if opening[:1] == ["not"] and "but" in opening:  # not 5 but 6
        tokens = tokens[opening.index("but") + 1 :]
    while tokens and tokens[0].kind != "number" and (tokens[0].text in _LEAD or _is_name(tokens, 0)):
        tokens = tokens[1:]
    readings: list[Callable[[list[Token], bool], Number]] = []
    if tokens and tokens[0].kind in STARTS:
        readings.append(_chain)
    if any(token.kind == "=" for token in tokens):
        readings.append(_right_side)
    for read in readings or ([] if strict else [_first]):
        with suppress(NoNumber):
            return read(tokens, strict)
    return None


def read_sentence(sentence: str) -> Number | None:
    """The number that a sentence states: in bold, at the right side of its equation, or its last, where the sentence
    neither negates it nor offers a choice of several."""
    for content in reversed(re.findall(r"\*\*([^*\n]{1,80})\*\*", sentence)):
        if (number := read_number(content, strict=True)) is not None:
            return number
    sentence = re.sub(r"\([^()]*[A-Za-z]{3}[^()]*\)", " ", sentence[-MOST_TEXT:])
    tokens, is_denied = tokenize(sentence, words=False), False
    numbers = [index for index, token in enumerate(tokens) if token.kind == "number"]
    try:
        if any(token.kind == "=" for token in tokens):
            return _right_side(tokens, strict=False)
        if not numbers:
            return None
        for token in tokens[: numbers[-1]]:
            is_denied = (is_denied or token.text in _NEGATIONS) and token.text != "but"  # not 46 but 64
        if is_denied:
            return None
        start = numbers[-1]
        while start > 0 and tokens[start - 1].kind in EXPRESSION:
            start -= 1
        before = tokens[start - 1] if start > 0 else None
        if before and (before.kind == "other" or _is_letter(before) or before.text in _OPERATIONS | {"than"}):
            return None  # x + 4, less than 4
        earlier = [index for index in numbers if index < start]
        stated = _chain(tokens[start:], strict=False)
        if (
            earlier
            and tokens[start - 1].text in _CHOICE
            and (tokens[start - 1].text != "," or start - 2 == earlier[-1])
        ):
            return stated if tokens[earlier[-1]].number.value == stated.value else None
        return stated
    except NoNumber:
        return None


_PLAIN_NUMBER = re.compile(r" ?-?\d{1,30}(?:\.\d{1,30})? ?\.? ?")
_LEAD = frozenset(
    "the a an final correct answer answers is are was equals it that so thus hence therefore total of about "
    "approximately approx roughly exactly only just simply equal to be would , : ' \" [ . =".split()
)
_NEGATIONS = frozenset(
    "not no never neither nor cannot without ≠ isn't wasn't aren't don't doesn't can't won't hardly nobody doubt "
    "false wrong incorrect differs different exceeds except beyond suppose assume".split()
)
_BOUNDS = frozenset("least most than up between under over above below but except besides".split()) | _NEGATIONS
# Words before a number that make another number of it
_REFERRED = frozenset("step line question problem section page figure equation part row item see".split())
_OPERATIONS = (
    frozenset("half twice double triple thrice third quarter square cube root sum product difference".split())
    | _REFERRED
)
# Between two numbers these make a choice, a range or a list of them
_CHOICE = frozenset("or to and / | & , - – ~ maybe perhaps possibly through".split())
_COMPARISONS = frozenset("more less fewer times higher lower".split())
# Words behind a number that make another number of it
_MATHEMATICS = frozenset("pi sqrt root sin cos tan log ln exp mod squared cubed factorial plus minus e i".split())
_FRACTIONS = frozenset("half halves third thirds quarter quarters fourths fifth fifths tenths".split())
_PARTS = frozenset("hundredth hundredths thousandth thousandths millionth millionths".split())
_ARITHMETIC = frozenset("divided multiplied times over".split())
_RETRACTIONS = frozenset("wrong incorrect false".split())
# Words that may not be all that stands behind a number in a box
_NOT_UNITS = _CHOICE | _COMPARISONS - {"times"} | _BOUNDS | frozenset("some but score".split())
_UNIT_LETTERS = frozenset("m g h s l L N J W V A K C F".split())


def _is_letter(token: Token) -> bool:
    return token.kind == "word" and len(token.text) == 1 and token.text not in ("a", "A", "I")


def _is_variable(token: Token) -> bool:
    """Whether a letter behind a number multiplies it."""
    return _is_letter(token) or (token.glued and token.kind == "word" and len(token.text) == 1)


def _is_name(tokens: list[Token], index: int) -> bool:
    """Whether a variable that is set to something stands there: the x of `x = 3`."""
    return _is_letter(tokens[index]) and index + 1 < len(tokens) and tokens[index + 1].kind == "="


def _right_side(tokens: list[Token], strict: bool) -> Number:
    """What the last `=` sets a name, words or a calculation to; `3x = 12` gives no number."""
    last = max(index for index, token in enumerate(tokens) if token.kind == "=")
    for index in range(last - 1, -1, -1):
        token = tokens[index]
        is_multiple = index > 0 and tokens[index - 1].kind in EXPRESSION
        if _is_letter(token) and (is_multiple if _is_name(tokens, index) else token.text not in _UNIT_LETTERS):
            raise NoNumber  # 3x = 12, 2x + 1 = 4
        if token.kind not in EXPRESSION and not _is_letter(token):
            if token.kind in ("bound", "other") or token.text in _NEGATIONS:
                raise NoNumber
            break
    right = _chain(tokens[last + 1 :], strict)
    if last == 1 and tokens[0].kind == "number" and tokens[0].number.value != right.value:
        raise NoNumber  # 7 = 4
    return right


def _first(tokens: list[Token], strict: bool) -> Number:
    """The first number of a clause that begins with words: "that she has 5 apples"."""
    start = next((index for index, token in enumerate(tokens) if token.kind in ("number", "bound", "other")), None)
    before = {token.text for token in tokens[:start]}
    if start is None or before & (_BOUNDS | _OPERATIONS | {"(", ";", ":", "unknown", "unclear"}):
        raise NoNumber
    if start > 0 and tokens[start - 1].kind == "-":
        start -= 1
    return _chain(tokens[start:], strict)


def _chain(tokens: list[Token], strict: bool) -> Number:
    """The number that the tokens begin with; of equations in a row (`3 + 4 = 7`) the last."""
    number, rest = read_expression(tokens)
    _check_whole(number, tokens[0], rest)
    words = _count_words(rest, _NOT_UNITS if strict else _CHOICE)
    if words and [kind_at(rest, words), kind_at(rest, words + 1)] == ["^", "number"]:
        rest = rest[2:]  # cm^2
    rest = rest[words:]
    if rest and rest[0].kind == "=":
        if len(rest) == 2 and _is_letter(rest[1]):
            return number  # 7 = x
        right = _chain(rest[1:], strict)
        if number.written and number.value != right.value:
            raise NoNumber  # 7 = 4
        return right
    while rest and rest[-1].text in (".", ")", "]", ",", "'", '"', "}"):
        rest = rest[:-1]
    if rest and (strict or not _is_remark(number, rest, has_words=words > 0)):
        raise NoNumber
    return number


def _check_whole(number: Number, first: Token, rest: list[Token]) -> None:
    """Raises `NoNumber` where what follows a number makes another one of it."""
    following, after = text_at(rest, 0), kind_at(rest, 1)
    is_word = kind_at(rest, 0) == "word"
    if following in _MATHEMATICS or (is_word and _is_variable(rest[0]) and not _is_unit(rest)):
        raise NoNumber  # 4 pi, 3x
    if is_word and rest[0].glued and any(map(str.isdigit, following)):
        raise NoNumber  # 5P2, 0x10
    if first.text.isalpha() and following in _FRACTIONS:
        raise NoNumber  # three quarters
    if following in _PARTS or (following == "and" and text_at(rest, 2) in _FRACTIONS):
        raise NoNumber  # 18 hundredths, 3 and a half
    if following in _ARITHMETIC and _is_last_number(rest[1:]):
        raise NoNumber  # 18 divided by 2
    if "power" in [token.text for token in rest[:4]]:
        raise NoNumber  # 2 to the power of 5
    if number.percent and following == "of" and after == "number":
        raise NoNumber  # 50% of 30


def _is_last_number(tokens: list[Token]) -> bool:
    """Whether a number stands there ("by 2"), and no words of which it may be the count."""
    number = 1 if text_at(tokens, 0) == "by" else 0
    return kind_at(tokens, number) == "number" and kind_at(tokens, number + 1) != "word"


def _count_words(tokens: list[Token], stops: frozenset[str]) -> int:
    """How many of the tokens are words (a unit, and what explains it) before one of `stops`."""
    for index, token in enumerate(tokens):
        following = text_at(tokens, index + 1)
        if token.kind != "word" and not _joins_words(tokens, index):
            return index
        if token.kind == "word" and token.text in stops:
            return index
        if token.text == "choose" or (token.text == "than" and kind_at(tokens, index + 1) == "number"):
            raise NoNumber  # 5 choose 2, 5 more than 20
        if token.text in ("is", "was", "are") and following in _RETRACTIONS:
            raise NoNumber
    return len(tokens)


def _is_remark(number: Number, rest: list[Token], has_words: bool) -> bool:
    """Whether what stands behind a number and its words only explains it."""
    follows = rest[0]
    if follows.kind == ":" and kind_at(rest, 1) == "number" and rest[1].glued:
        return False  # 3:15
    if follows.text in _CHOICE and _offers_another(number, rest):
        return False
    if follows.kind in (",", ";", ":", ".", "(", "—", "word"):
        return True
    return (has_words and follows.kind not in "+*/^=") or (follows.kind == "-" and not follows.glued)


def _joins_words(tokens: list[Token], index: int) -> bool:
    """Whether a sign within a unit stands there: km/h, 5-pound."""
    sign = tokens[index].kind in ("/", "-") and index + 1 < len(tokens)
    return sign and tokens[index + 1].kind == "word" and tokens[index + 1].glued


def _is_unit(tokens: list[Token]) -> bool:
    """Whether the letter that the tokens begin with is a unit: `5 m`, `5 m/s`, `5 g of it`."""
    follows = tokens[1] if len(tokens) > 1 else None
    return tokens[0].text in _UNIT_LETTERS and (
        follows is None or follows.kind not in EXPRESSION or follows.kind == "/"
    )


def _offers_another(number: Number, rest: list[Token]) -> bool:
    """Whether a second answer follows: `5 to 10`, `3, 5 or 4`, `5 or more`; not `12, not 13`, `5 to read 10 pages`."""
    is_near = rest[0].text == "to" or (rest[0].text == "," and text_at(rest, 1) not in _CHOICE)
    ahead = rest[1 : 2 if is_near else 6]
    other = next((index for index, token in enumerate(ahead) if token.kind == "number"), None)
    if other is None:
        return bool(ahead) and ahead[0].text in _COMPARISONS
    if ahead[0].text in _NEGATIONS or text_at(rest, other + 2) in _COMPARISONS:
        return False
    return ahead[other].number.value != number.value
