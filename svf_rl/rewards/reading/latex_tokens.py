r"""The tokens of a mathematical answer in LaTeX, after Unicode and the many spellings of the same are made one.

The spellings follow the rules that came with the MATH benchmark (Hendrycks et al., arXiv 2103.03874: spacing, `\left`,
`\dfrac`, `\$`, `\%`, degrees, units, `\frac12`, `x=`), with Unicode, thousands commas, decimal zeros and plain text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from svf_rl.rewards.reading.number_tokens import RAISED, VULGAR


class NotMathematics(Exception):
    """The text is not understood as mathematics."""


@dataclass(frozen=True)
class Token:
    """`kind`: "number", "word" (letters), "text" (what a `\\text` holds), "command", "relation", "separator", "open",
    "close", "unit", or "sign" (any other)."""

    kind: str
    text: str


def undress(text: str) -> str:
    """`text` without the delimiters and the emphasis around it, and without the stop behind it."""
    text = _SUCH_THAT.sub(r"\1|", _LEAD.sub("", text))
    before = None
    while text != before:
        before = text
        text = text.strip().strip("`")
        text = re.sub(r"^(?:\\ )+|\\$", "", text if text.endswith("...") else text.rstrip(".,;: \n"))
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")):
            inner = text[len(left) : -len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inner:
                text = inner
    return text


_LEAD = re.compile(r"\s*(?i:so|thus|hence|therefore|then)\b,?\s+(?=[^\s])")
_SUCH_THAT = re.compile(r"(\\\{[^{}:|=]*?)\s*(?::|\\mid(?![a-z])|\|)\s*")  # in a set
_UNICODE = {
    "−": "-", "–": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\neq ", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "°": r"^{\circ}", "∅": r"\emptyset ", "≈": r"\approx ", "→": r"\to ",
    "ℝ": r"\mathbb{R}", "′": "'", "’": "'",
}  # fmt: skip


def _write_repeating(whole: str, fixed: str, repeated: str) -> str:
    r"""A decimal whose digits repeat as a fraction: `0.1\overline{6}` is 1/6."""
    scale = 10 ** len(fixed)
    value = Fraction(int((whole or "0") + fixed), scale) + Fraction(int(repeated), scale * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


_DEGREES = {"√": "", "∛": "[3]"}
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
# The same mathematics in one spelling
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?\$", ""),
        (r"\\[()\[\]]", ""),
        (rf"[{''.join(RAISED)}]+", lambda match: "^{" + "".join(RAISED[sign] for sign in match[0]) + "}"),
        (rf"[{''.join(_LOWERED)}]+", lambda match: "_{" + "".join(_LOWERED[sign] for sign in match[0]) + "}"),
        (rf"[{''.join(VULGAR)}]", lambda match: r"\frac{{{}}}{{{}}}".format(*VULGAR[match[0]].split("/"))),
        (r"([√∛])\s*(\d+(?:\.\d+)?|\([^()]*\))", lambda match: rf"\sqrt{_DEGREES[match[1]]}{{{match[2].strip('()')}}}"),
        (r"[√∛]", lambda match: rf"\sqrt{_DEGREES[match[0]]} "),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\(?:rm|bf|it|sf|tt|large|Large|huge|small|normalsize)(?![a-z])|\\underline(?=\s*\{)", ""),
        (r"\\(?:left|right)\.", ""),
        (r"\\(?:left|right|displaystyle|limits|bigl?|bigr|Bigl?|Bigr)(?![a-z])", ""),
        (r"\\(?:mbox|textbf|textrm|textnormal|textit|mathbf|mathrm|mathit|operatorname|emph|mathsf)\s*\{", r"\\text{"),
        (r"\\text\{\s*([eid]|[\d.,]+)\s*\}", r" \1 "),
        (r"\\phantom\s*(?:\{[^{}]*\}|.)", ""),
        (r"^\s*\\approx(?![a-z])", ""),
        (r"(?<=\d)(?:\{,\}|,?\s?(?<!\\)\\[!,;:]\s?,?)\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\(?:[!,;:> ]|q?quad(?![a-z]))|~", " "),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\[dt]binom(?![a-z])", r"\\binom"),
        (r"\\(?:leq|leqslant)(?![a-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![a-z])", r"\\ge"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\ne(?![a-z])", r"\\neq"),
        (r"\\(?:times|ast)(?![a-z])", r"\\cdot"),
        (r"\\bmod(?![a-z])", r"\\mod"),
        (r"\\(?:text)?color\s*\{[^{}]*\}\s*(?:\{([^{}]*)\})?", r"\1"),
        (r"\\div(?![a-z])", "/"),
        (r"\\degree(?![a-z])|\\text\{\s*degrees?\s*\}", r"^{\\circ}"),
        (r"\\varnothing(?![a-z])", r"\\emptyset"),
        (r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}", lambda match: _write_repeating(*match.groups())),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\lbrack(?![a-z])", "["),
        (r"\\rbrack(?![a-z])", "]"),
        (r"\\[lr]?vert(?![a-z])", "|"),
        (r"\\begin\{(?:[bBvV]?matrix|array)\}(?:\{[lcr| ]*\})?", r"\\begin{pmatrix}"),
        (r"\\end\{(?:[bBvV]?matrix|array)\}", r"\\end{pmatrix}"),
        (r"\*\*(?=[-\d({a-zA-Z])", "^"),
        (r"\*", r"\\cdot "),
    )
]


def respell(text: str) -> str:
    for sign, spelling in _UNICODE.items():
        text = text.replace(sign, spelling)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


CLOCK = re.compile(r"(\d{1,2}:\d{2})\s*(?:\\text\s*\{\s*)?(?:([AaPp])\.?\s?[Mm]\.?)?\s*\}?")
_TOKEN = re.compile(
    r"""
    (?P<scientific> (?<![\w.]) \d+(?:\.\d+)? [eE] [-+]?\d{1,3} (?!\w) )
    | (?P<grouped> (?<![\d.,]) \d{1,3}(?:,\d{3})+ (?:\.\d+)? (?![,.]?\d) )
    | (?P<number> \d+(?:\.\d+)? | \.\d+ )
    | \\text\s*\{ (?P<text> [^{}]* ) \}
    | (?P<command> \\(?:begin|end)\{pmatrix\} | \\mathbb\s*\{?[A-Z]\}? | \\[A-Za-z]+ )
    | (?P<word> [A-Za-z]+ )
    | (?P<relation> [=<>] )
    | (?P<separator> [,;] )
    | (?P<open> [(\[{] | \\\{ )
    | (?P<close> [)\]}] | \\\} )
    | (?P<sign> [-+/^_|!':&] | \\\\ | \\?% )
    | (?P<space> \s+ )
    | (?P<unknown> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_RELATIONS = frozenset([r"\le", r"\ge", r"\neq", r"\in", r"\approx", r"\lt", r"\gt"])


def tokenize(text: str) -> Iterator[Token]:
    depth = 0
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup or "", match[0]
        if kind == "unknown":
            raise NotMathematics
        if kind == "grouped" and depth > 0:  # (1,234) is a pair
            for index, part in enumerate(found.split(",")):
                if index > 0:
                    yield Token("separator", ",")
                yield Token("number", _shorten_number(part))
        elif kind in ("grouped", "number"):
            yield Token("number", _shorten_number(found.replace(",", "")))
        elif kind == "scientific":
            value, exponent = re.split("[eE]", found)
            yield from (Token("number", _shorten_number(value)), Token("command", r"\cdot"), Token("number", "10"))
            yield from (Token("sign", "^"), Token("open", "{"))
            yield from [Token("sign", "-")] * exponent.startswith("-")
            yield from (Token("number", exponent.lstrip("+-")), Token("close", "}"))
        elif kind == "text":
            yield Token("text", match["text"].strip())
        elif kind == "command" and found in _RELATIONS:
            yield Token("relation", {r"\lt": "<", r"\gt": ">"}.get(found, found))
        elif kind != "space":
            depth += (found in ("(", "[", r"\{")) - (found in (")", "]", r"\}"))
            found = re.sub(r"(\\mathbb)\s*\{?([A-Z])\}?", r"\1{\2}", found)
            yield Token(kind, "%" if found == r"\%" else found)


def _shorten_number(text: str) -> str:
    """A decimal number without zeros before and behind it."""
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
