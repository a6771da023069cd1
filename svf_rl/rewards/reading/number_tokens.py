"""The tokens of a text with numbers in it: LaTeX, Unicode, emphasis, scale words and numbers in words are resolved."""

import re
from dataclasses import dataclass, replace
from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction

# Longer numbers are not answers, and computing with them would take time.
MOST_DIGITS, MOST_EXPONENT = 400, 400
_DECIMAL_DIGITS = 4 * MOST_DIGITS  # more than any such number has


@dataclass(frozen=True)
class Number:
    """A number in a text: its value, whether a percent sign follows it (which `value` leaves out), and whether the text
    writes it as such, rather than as arithmetic that is left undone."""

    value: Fraction
    percent: bool = False
    written: bool = True

    def __str__(self) -> str:
        with localcontext(Context(prec=_DECIMAL_DIGITS)) as context:
            decimal = Decimal(self.value.numerator) / self.value.denominator
            shown = str(self.value) if context.flags[Inexact] else format(decimal, "f")
        return f"{shown}%" if self.percent else shown


@dataclass(frozen=True)
class Token:
    """Of `kind` "number", "word", "bound" (< and the like), "other", or a sign, which is its own kind. `text` is in
    lower case but for single letters. `glued`: no space stands before it."""

    kind: str
    text: str
    glued: bool
    number: Number = Number(Fraction(0))


def kind_at(tokens: list[Token], position: int) -> str:
    return tokens[position].kind if position < len(tokens) else ""


def text_at(tokens: list[Token], index: int) -> str:
    return tokens[index].text if index < len(tokens) else ""


_ONES = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * number
    for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
# Unicode's fractions, as "1/2", and raised signs
VULGAR = dict(
    zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8".split(), strict=True)
)
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n", strict=True))

# LaTeX, Unicode and emphasis as plain text
_PLAIN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"−|(?<![\w)])–(?=\s?\d)", "-"),
        (r"\#{2,}", " "),
        (r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![a-z])", ""),
        (r"\\(?:text|textbf|mathbf|mathrm|mbox|textrm|textit|emph|textnormal)\s*\{([^{}]*)\}", r" \1 "),
        (r"(?<=\d)(?:\{,\}|,?\\[,!;:]\s?|,\\!\ )(?=\d{3}(?!\d))", ","),
        (r"\\[,!;:\ ]|\\q?quad(?![a-z])|~(?=\\|\s?[A-Za-z])", " "),
        (r"\\(?:times|cdot|ast)(?![a-z])|×|·", " * "),
        (r"\\div(?![a-z])|÷", " / "),
        (r"\\approx(?![a-z])|≈", " = "),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"(?<=\d)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2"),
        (r"\\frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}", r"(\1/\2)"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-z])|°", " degrees "),
        (r"\\%", "%"),
        (r"\b0[xX][0-9A-Fa-f]+\b", "hexadecimal"),
        (r"\\[()\[\]]|\\?\$|[€£¥₹¢]|\bUS(?=\s?\d)|\bUSD\b", " "),
        (r"(?<=[\d)])\s?\*\*\s?(?=[-\d(])", "^"),
        (r"\*\*|__|`|(?<![\w)])\*(?=\S)|(?<=\S)\*(?![\w( ])", " "),
        (rf"(?<=[\d)])[{''.join(RAISED)}]+", lambda match: "^" + "".join(RAISED[sign] for sign in match[0])),
        (rf"(?<=\d)\s?([{''.join(VULGAR)}])", lambda match: " " + VULGAR[match[1]]),
        (rf"[{''.join(VULGAR)}]", lambda match: VULGAR[match[0]]),
        (r"\^\s*\{\s*(-?\d+)\s*\}", r"^\1"),
        (r"\{(-?[\d.]+)\}", r"\1"),
        (r"(?<=[\d)])\s*[xX]\s*(?=[\d.(])", " * "),
        (r"\b(?i:minus|negative)\s+(?=[\d.A-Za-z])", "-"),
        (r"\b(?i:percent|per\ cent)\b", "%"),
        (r"(?<![\d.])(\d{1,3})[ \u00a0\u202f](\d{3})[ \u00a0\u202f](\d{3})(?![\d.])", r"\1\2\3"),
        (r"['’]", "'"),
    )
]
_TOKEN = re.compile(
    r"""
    (?P<ordinal> \#\s?\d+ | \d+(?:st|nd|rd|th)\b )
    | (?P<mixed> \d{1,9}\ +\d{1,9}/\d{1,9} ) (?! [\d/] )
    | (?P<grouped> (?: \d{1,3}(?:,\d{3})+ | \d{1,2}(?:,\d{2})+,\d{3} ) (?:\.\d+)? ) (?! ,?\d )
    | (?P<european> \d{1,3}(?:\.\d{3})+,\d+ ) (?! [\d.,]\d )
    | (?P<plain> (?: \d+(?:\.\d+)? | \.\d+ ) (?: [eE][-+]?\d{1,9}(?!\w) )? )
    | (?P<word> [^\W\d_]+(?:'[a-z]+)? (?:\.[A-Za-z]\.)? \w* )
    | (?P<bound> [<>]=? | [≤≥≠] | \\(?:n?leq?|n?geq?|lt|gt|neq?|leqslant|geqslant)(?![a-z]) )
    | (?P<sign> [-+*/^()=,;:.—–|&~"'\[\]] )
    | (?P<other> \\[A-Za-z]+ | [^\s] )
    """,
    re.VERBOSE,
)


def tokenize(text: str, *, words: bool) -> list[Token]:
    """The tokens of a text; with `words`, numbers in words are numbers."""
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        token = _token(match, glued=match.start() > 0 and not text[match.start() - 1].isspace())
        before = tokens[-1] if tokens else None
        if before is not None and before.kind == "number":
            if token.text in _SCALES and not before.number.percent:
                tokens[-1] = replace(before, number=Number(before.number.value * _SCALES[token.text]))
                continue
            if token.text == "%":
                tokens[-1] = replace(before, number=replace(before.number, percent=True))
                continue
        tokens.append(token)
    return _read_words(tokens) if words else tokens


def _token(match: re.Match[str], glued: bool) -> Token:
    kind, text = match.lastgroup or "", match[0]
    if kind in ("mixed", "grouped", "european", "plain"):
        value = _value(kind, text)
        return Token("other", text, glued) if value is None else Token("number", text, glued, Number(value))
    if kind in ("word", "ordinal"):
        return Token("word", text if len(text) == 1 else text.lower(), glued)
    if kind == "sign":
        return Token(text, text, glued)
    return Token(kind, text, glued)


def _value(kind: str, text: str) -> Fraction | None:
    """The value of a token; `None` when it is too long, or divided by zero."""
    if kind == "mixed":
        whole, above, below = map(int, re.split(r"[ /]+", text))
        return None if below == 0 else whole + Fraction(above, below)
    if kind == "european":
        text = text.replace(".", "").replace(",", ".")
    exponent = re.split("[eE]", text)[1:] or ["0"]
    if len(text) > MOST_DIGITS or abs(int(exponent[0])) > MOST_EXPONENT:
        return None
    return Fraction(text.replace(",", ""))


def _read_words(tokens: list[Token]) -> list[Token]:
    """The tokens with numbers in words as numbers: fifty-two, a hundred, two dozen."""
    read: list[Token] = []
    index = 0
    while index < len(tokens):
        total, end = _words_at(tokens, index)
        if end > index:
            read.append(Token("number", tokens[index].text, tokens[index].glued, Number(Fraction(total))))
            index = end
        else:
            read.append(tokens[index])
            index += 1
    return read


def _words_at(tokens: list[Token], start: int) -> tuple[int, int]:
    """The number in words that begins at `start`, and where it ends: `start` where there is none."""
    total, current, index, end = 0, 0, start, start
    while index < len(tokens):
        word = tokens[index].text
        if word in _ONES or word in _TENS:
            current += _ONES.get(word, 0) + _TENS.get(word, 0)
        elif word in _SCALES and (end > start or (index > start and tokens[start].text in ("a", "A"))):
            current = max(current, 1) * _SCALES[word]
            if word not in ("hundred", "dozen"):
                total, current = total + current, 0
        elif not (word in ("-", "and") and end == index and end > start) and not (
            index == start and word in ("a", "A") and text_at(tokens, index + 1) in _SCALES
        ):
            break
        else:
            index += 1
            continue
        index += 1
        end = index
    return total + current, end
