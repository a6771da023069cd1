r"""Where a text gives its mathematical answer, and the normal form in which two answers are compared as text.

The answer of a completion is decided by the first of these rules that finds one:

1. the last `\boxed{...}` (or `\fbox`); several that stand together ("\boxed{1} and \boxed{2}") are one answer;
2. the last line `#### ...`, or the last statement of the answer: "the answer is ...", "Final Answer: ...", "A: ...",
   or what stands below a heading "# Answer";
3. what math-verify finds at the end of the text: the last formula or number.

As for `numeric`, text after the first answer does not count where the model asks itself another question.

The normal form follows the rules that came with the MATH benchmark (Hendrycks et al., arXiv 2103.03874: spacing,
`\left`, `\dfrac`, `\$`, `\%`, degrees, units, `\frac12`, `x=`) and adds thousands commas, decimal zeros and plain text.
"""

import re
from itertools import pairwise

from svf_rl.rewards.verifiers.numeric import NEXT_QUESTION

# Longer texts are not answers; a bound also keeps the search for closing braces linear.
MOST_CHARACTERS = 2000
# How many characters at the end of a text without a marked answer are searched for one.
TAIL = 4000

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}")
_MOST_BOXES = 32
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;]")
_NOT_A_WORD = re.compile(r"\\(?:text|quad|qquad|mathrm|and|or)\b|\b(?:and|or)\b|[^A-Za-z]")
_PERCENT_AFTER = re.compile(r"[\s$})\]\\]{0,4}(?:\\?%|percent\b|pct\b)")
_STATEMENT = re.compile(
    r"""
    ^ [ \t]{0,3} (?: \#{1,6} [ \t]{1,4} | \*\* )  # a heading
      (?i:final\ )? (?i:answer) :? (?: \*\* )? :? [ \t]* \n \s{0,8}
    | \#\#\#\#(?!\#)
    | \b (?i:answer) \b
      (?: (?: \s+ (?!is\b|are\b) [^\s.!?:=$\\]{1,20} ){0,8}? \s+ (?i:is|are) \b (?!\s+not\b) | \s? [:：] )
      (?: [\s*:]{0,4} (?i:the\ )? (?i:final\ )? (?i:answer\ is) )?
    | ^ [ \t*]{0,4} A [ \t*]{0,4} :
    """,
    re.VERBOSE | re.MULTILINE,
)
_FINAL = re.compile(
    r"(?i:final\ answer) (?: \s+ (?i:is) \b | \s? : ) (?: [\s*:]{0,4} (?i:the\ final\ answer\ is) )?", re.VERBOSE
)
_MOST_STATEMENTS, _STATEMENT_CHARACTERS, _STATEMENT_WORDS = 32, 600, 8
_MATHEMATICS = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$]*\$", re.DOTALL)
_PIECE = r"(?:\$[^$]+\$|\\\(.{1,200}?\\\)|[-−]?\\?[$€£¥]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)(?:\s?\\?%|\s?percent\b)?"
_FIRST = re.compile(rf"{_PIECE}(?:\s*(?:,\s*and|,|and|or)\s*{_PIECE})*")
_DELIMITERS = re.compile(r"\$|\\\(|\\\[")
_ARITHMETIC = re.compile(r"[-−+*/^().,\d\s%$€£¥]*\d[-−+*/^().,\d\s%$€£¥]*")
_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_LARGE = re.compile(rf"^[\s\\$]*(-?\d[\d,]*(?:\.\d+)?)[\s\\$]*(?:text\{{\s*)?(?i:({'|'.join(_POWERS)}))\b")
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
# A word after a number that is not mathematics: three letters or more, or a short unit
_WORD = (
    r"(?:(?!(?:pi|sqrt|sin|cos|tan|log|exp|and|mod|or|to)\b)"
    r"(?:[A-Za-z]{3,}|cm|mm|km|kg|mg|ml|ft|in|mi|hr|hrs|lb|lbs|oz|yd|sq|of|am|pm|a\.m|p\.m)\b\.?)"
)
_NUMBER_AND_WORDS = re.compile(
    rf"([-−]?\\?[$€£¥]?\s?\d[\d,]*(?:\.\d+)?(?:/\d+)?)\s?(%|percent\b)?(?:[-\s]{_WORD}(?:[-,\s]+[A-Za-z]+){{0,8}})?"
)


def find_answers(text: str) -> list[str]:
    """The readings of the answer that `text` marks as such, best first; empty when it does not mark one."""
    question = NEXT_QUESTION.search(text)
    return (question is not None and _marked(text[: question.start()])) or _marked(text) or _whole(text)


def _marked(text: str) -> list[str]:
    boxes = list(_BOX.finditer(text))[-_MOST_BOXES:]
    # "Final answer: ..." below a boxed intermediate result is what counts
    after = _stated(text, boxes[-1].end(), _FINAL) if boxes else []
    return after or _boxed(text, boxes) or _stated(text)


def parse_readings(answer: str) -> list[str]:
    """`answer` as texts in which math-verify finds mathematics. A question may ask for millions, so that "4 million" is
    read as 4 too."""
    large = _LARGE.search(answer)
    counted = [rf"${large[1].replace(',', '')} \cdot 10^{{{_POWERS[large[2].lower()]}}}$"] if large else []
    return counted + _plain_readings(answer)


def _plain_readings(answer: str) -> list[str]:
    for pattern, replacement in _FOR_MATH_VERIFY:
        answer = pattern.sub(replacement, answer)
    if _DELIMITERS.search(answer):
        return [answer]
    if match := _NUMBER_AND_WORDS.fullmatch(answer.strip(" .*")):
        answer = match[1] + (r"\%" if match[2] else "")
    if _ARITHMETIC.fullmatch(answer):
        # as LaTeX, where 1,2 is a list, and as running text, where 1,2 is a number and 1 000 too
        is_one = "," not in answer or _DECIMAL_COMMA.fullmatch(answer)
        return [f"${answer}$", answer] if is_one else [f"${answer}$"]
    # a sentence with the answer in it
    if len(_words(answer)) > 1 and re.search(r"\d", answer):
        return [answer]
    return [f"${answer}$"]


def find_bases(answer: str) -> set[str]:
    """The number bases that an answer names: 5 in `204_5` and `204_{5}`."""
    return set(re.findall(r"\d_\{?(\d{1,2})\}?", answer))


def _boxed(text: str, found: list[re.Match[str]]) -> list[str]:
    boxes: list[tuple[int, int, str]] = []
    for match in reversed(found):
        content, end = _content(text, match.end())
        overlaps = boxes and end > boxes[-1][0]
        if content and not overlaps:
            boxes.append((match.start(), end, content))
    if not boxes:
        return []
    group, pure = [boxes[0][2]], True
    for (start, _, content), (_, before_end, before) in pairwise(boxes):
        between = text[before_end:start]
        is_list = not _NOT_A_WORD.sub("", between)
        if not (len(between) < 10 or (content != before and len(between) < 70 and _SEPARATOR.search(between))):
            break
        if before != group[-1]:
            group.append(before)
            pure = pure and is_list
    last = group[0]
    joined = ",".join(reversed(group))
    # "\boxed{1} and \boxed{2}" answers with both; with words between them, the last alone may be the answer
    return [joined] if pure else [last, joined]


def _content(text: str, start: int) -> tuple[str, int]:
    """What a box that opens at `start` holds, and where it ends."""
    if text[start : start + 1] != "{":
        line = re.match(r"[^\n$]{0,200}", text[start : start + 200])
        return (line[0].strip(" .") if line else ""), start + (line.end() if line else 0)
    depth, position, limit = 0, start, min(len(text), start + MOST_CHARACTERS)
    while position < limit:
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                content = text[start + 1 : position].strip()
                percent = _PERCENT_AFTER.match(text, position + 1)
                return (content + r"\%" if content and percent else content), position + 1
        position += 1
    # cut off, or a brace was forgotten: the rest of the line
    line_end = text.find("\n", start, limit)
    end = limit if line_end < 0 else line_end
    return text[start + 1 : end].strip(" .$"), end


def _stated(text: str, start: int = 0, pattern: re.Pattern[str] = _STATEMENT) -> list[str]:
    for statement in reversed(list(pattern.finditer(text, start))[-_MOST_STATEMENTS:]):
        clause = _clause(text[statement.end() : statement.end() + _STATEMENT_CHARACTERS])
        if (
            clause
            and len(_words(clause)) <= _STATEMENT_WORDS
            and (pattern is _STATEMENT or re.search(r"\d|[$]", clause))
        ):
            return [_without_remarks(clause)]
    return []


def _without_remarks(clause: str) -> str:
    """`clause` up to the words after its first formula or number, when these hold others: "$9$ eggs, 3 more than 6"."""
    first = _FIRST.match(clause)
    if first and re.match(r",?\s+[A-Za-z]{2,}", clause[first.end() :]) and re.search(r"[\d$]", clause[first.end() :]):
        return first[0]
    return clause


def _whole(text: str) -> list[str]:
    """A text that consists of an answer only."""
    text = text.strip()
    return [text] if len(text) <= _STATEMENT_CHARACTERS and "\n" not in text and len(_words(text)) <= 3 else []


def _words(text: str) -> list[str]:
    """The words outside of mathematics."""
    return re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{2,}", _MATHEMATICS.sub(" ", text))


def _clause(text: str) -> str:
    """The beginning of `text` up to the end of its sentence or line, which mathematics does not end."""
    text = text.lstrip(" \t\n*:_\"'")
    position = 0
    while position < len(text):
        if match := _MATHEMATICS.match(text, position):
            position = match.end()
        elif text[position] == "\n" or re.match(r"[.!?;](?=\s|[*\"']|$)|<\|", text[position : position + 2]):
            break
        else:
            position += 1
    return text[:position].strip(" *_\"'")


def normalize_answer(answer: str) -> str:
    """`answer` as text that is the same for answers that differ only in how they are written; empty without one."""
    text = answer.strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if match := re.fullmatch(r"(-?)(\d*)\.(\d+)", text):
        decimals = match[3].rstrip("0")
        text = f"{match[1]}{match[2] or '0'}" + (f".{decimals}" if decimals else "")
    if re.fullmatch(r"-?0+\d+", text):
        text = re.sub(r"^(-?)0+(?=\d)", r"\1", text)
    # a text answer, or an option's label, in any case: `\text{(C)}`, `East`
    if re.fullmatch(r"\(?[A-Za-z]\)?|[A-Za-z]{3,}[-A-Za-z,]*", text) and (len(text) > 3 or r"\text" in answer):
        text = text.strip("()").casefold()
    return text


# What math-verify reads wrongly or not at all
_FOR_MATH_VERIFY = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"−", "-"),
        (r"\\mathrm\{([ei])\}", r"\1"),
        (r"\\\$", ""),
        (r"(?<=[\d)}])i(?![A-Za-z])", " i"),  # 2i holds the imaginary unit, as 2 i does
        (r"(?<=\d)(?:,\s?\\!|\{,\}|\\!,)\s*(?=\d{3})", ""),  # thousands commas within a fraction
        # a variable at the end is not a unit: a + b + c, \sin^2 t
        (r"(?<=[-+*/=(,])\s*([A-Za-z])$", r"{\1}"),
        (r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp)(?![a-z]).*)\s([A-Za-z])$", r"\1{\2}"),
        (r"(?<=.)[.,;\s]+$", ""),
        (r"^\s*(-?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
    )
]

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"−|–", "-"),
        (r"(?<=\d),\s\\!\s*(?=\d{3})", ","),
        (
            r"\\?\$|\\[!;:]|\\,|\\left(?![a-z])|\\right(?![a-z])|\\(?:displaystyle|limits|bigl?|bigr|Bigl?|Bigr)(?![a-z])",
            "",
        ),
        (r"\\(?:quad|qquad| )|~|\s+", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\{,\}", ","),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", ""),
        (r"\\?%|\bper\s?cent\b|\\text\{\s*percent\s*\}", ""),
        (r"\\(?:le|leqslant)(?![a-z])", r"\\leq"),
        (r"\\(?:ge|geqslant)(?![a-z])", r"\\geq"),
        (r"\\ne(?![a-z])", r"\\neq"),
        (r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|textnormal|textit|operatorname)\s*\{", r"\\text{"),
        # units after a value; text that is all of the answer stays
        (r"(?<=[\w})\]])\s*\\text\{[^{}]*\}(?:\^\{?[23]\}?)?\.?\s*$", ""),
        (rf"(?<=\d)\s+{_WORD}(?:\s{_WORD}){{0,2}}(?:\^\{{?[23]\}}?)?\s*$", ""),
        (r"\\text\{([^{}]*)\}", r"\1"),
        (r"^\s*(?:[A-Za-z]|\\[a-z]+|[a-z]_\{?\w\}?|[a-zA-Z]\([a-z]\))\s*(?:=|\\in(?![a-z]))\s*", ""),
        (r"[.\s]+$|^\s+", ""),
        (r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)(?![^()\[\]]*[)\]])", lambda match: match[0].replace(",", "")),
        (r"(?<=\d) (?=\d)", "\\\\ "),
        (r"(?<!\\) ", ""),
        (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac(\w)\{", r"\\frac{\1}{"),
        (r"\\frac(\{[^{}]*\})(\w)", r"\\frac\1{\2}"),
        (r"\\sqrt(\w)", r"\\sqrt{\1}"),
        (r"([_^])\{(\w)\}", r"\1\2"),
        (r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
        (r"^\\frac\{-([^{}]*)\}(\{[^{}]*\})$", r"-\\frac{\1}\2"),
        (r"(?<![\d.\w])\.(?=\d)", "0."),
    )
]
