r"""Where a completion gives its answer: one place for all verifiers that look for one.

What counts of a completion is what stands outside of `<think>...</think>` (and behind a lone `</think>`), up to the end
of the turn and to the first question that the model asks itself. In it, the answer is

1. the last mark: `<answer>...</answer>`, `\boxed{...}`, a line `#### ...`, or what stands below a heading "Answer";
2. without a mark the last statement: "the answer is ...", "Answer: ...", "A: ...";
3. without either the last sentence that may state one, which each verifier reads in its own way.

A correction behind a mark or a statement outranks it: "so the correct answer is 21", "Wait, ... So it is 84".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from svf_rl.rewards.reading.sentences import DOUBT, SENTENCE_END, first_clause

Kind = Literal["box", "boxes", "tag", "line", "heading", "statement", "label", "correction"]

# Longer texts are not answers; a bound also keeps hostile text linear.
MOST_CHARACTERS = 2000
# How many marks and statements are looked at.
_MOST_MARKS = 64
# Boxes with more words between them are one answer each.
_MOST_WORDS_BETWEEN = 6

_THINK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_TURN_END = re.compile(r"(?<=\S)\s*(?:<\|(?:im_end|eot_id|end_of_text|endoftext|end)\|>|</s>|<eos>|<end_of_turn>)")
_NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:\*\*|\#{1,6} )?(?:Q|Question|Problem)(?: ?\d{1,4})?(?:\*\*)?:")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}(?![A-Za-z])")
_LINE = re.compile(r"\#\#\#\#(?!\#)[ \t]*([^\n]{0,2000})")
# `#### 2. Find the rest`, `#### Step 2` are headings where more text stands below
_HEADED = re.compile(r"\s*(?:\d{1,2}[.):]\s+[^\W\d]|(?i:step|part|case|solution|method)\b)")
_HEADING = re.compile(
    r"""
    ^ [ \t]{0,3} (?: \#{1,6} [ \t]{1,4} \** | \*\* ) [ \t]*+ (?i: (?:the\ )? (?:final\ |correct\ )? answer )
    [ \t]*+ :?+ \**+ [ \t]*+ :?+ [ \t]*+ \n \s{0,8}
    """,
    re.VERBOSE | re.MULTILINE,
)
_ANSWER = re.compile(r"\b(?:[Aa]nswer|ANSWER)s?\b")
_BEFORE_ANSWER = re.compile(r"\b(?i:final|correct|right|actual|true|real|corrected)\s+$")
# What stands before an answer that is none: "not \boxed{5}"; before a formula also "less than $3$", "twice $11$"
_NEGATES = (
    r"(?<=\w)n['’]t|\b(?:not|never|cannot|neither|nor|hardly|unlike|except|different\s+from|anything\s+but|all\s+but)"
)
_CHANGES = r"\b(?:beyond|than|at\s+(?:most|least)|twice|double|triple|half|third|quarter)"
_TO_ANSWER = r"\s*(?:be|of|equal|to|the|a|an|is|true|that|\s)*[$(\\\[*\s]*$"
_DENIED = re.compile(rf"(?:{_NEGATES})\b{_TO_ANSWER}")
_CHANGED = re.compile(rf"(?:{_NEGATES}|{_CHANGES})\b{_TO_ANSWER}")
# ... and behind it
_RETRACTED = re.compile(
    r"[$).*\]\s]{0,4}\b(?:is|was|are|looks)\s+(?:\w+ly\s+)?(?:wrong|incorrect|not\s+(?:right|correct|the)|false)\b"
)
_STATES = re.compile(
    r"""
    (?: [\s*_"']{0,4} [:：]
      | (?: \s+ (?!is\b|are\b|was\b|not\b) [^\s.!?:;=$\\]{1,20} ){0,8}? \s+
        (?P<verb> (?i: is | are | was | equals | (?:would|will|should|must|could|might|may|can) \s+ be ) \b ) )
    (?: [\s*:_]{0,6} (?i:the\ )? (?i:final\ |correct\ )? (?i:answer\ is)\b )?
    """,
    re.VERBOSE,
)
_LABEL_A = re.compile(r"^[ \t*]{0,4}A[ \t*]{0,4}:", re.MULTILINE)
# Words after which a new answer replaces the one before
_TURN = re.compile(
    r"\b(?i:wait|actually|but|however|correction|correct\s+that|sorry|mistake|oops|hmm|instead|rather|recheck|scratch"
    r"|no(?=[,.!])|wrong|incorrect|second\s+thought)\b(?=[\s,;:.!-])"
)
_VALUE = r"(?=[-−$€£(\\]?\s?\d|[-−$\\(]|[A-J]\b)"
_AT_VALUE = re.compile(_VALUE)
# "the answer", and not "answer the question that is asked"; how many words a correction may have that is no value
_NOUN = re.compile(r"(?:\b(?i:the|my|our|its|final|correct|right|actual|true|real|corrected)\s+|^|[.!?*#:]\s*|\n)$")
_MOST_WORDS = 4
_RESULT = re.compile(
    r"\b(?:(?i:it|that)['’]s|(?i:it|this|that|the\ \w+)\s+(?:is|equals|should\ be|must\ be)"
    rf"|(?i:sorry|no|rather|i\ mean|make\ (?:it|that))\b[,:]?)\s*{_VALUE}"
)


@dataclass(frozen=True)
class FinalAnswer:
    """Text that a completion gives as its answer, and how: in a mark (several boxes of one sentence are joined by
    commas: "boxes"), in a statement ("the answer is"), behind a label ("Answer:"), or in a correction of these."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class _Found:
    start: int
    end: int
    answer: FinalAnswer
    strong: bool = False


def visible_text(completion: str) -> str:
    """What counts of a completion: without its thinking, and up to the end of its turn."""
    if "<" not in completion:
        return completion
    parts: list[str] = []
    depth = start = 0
    for tag in _THINK.finditer(completion):
        if tag[1]:
            if depth == 0:
                parts.clear()  # the chat template had opened it
            depth, start = max(0, depth - 1), tag.end()
        else:
            if depth == 0:
                parts.append(completion[start : tag.start()])
            depth += 1
    if depth == 0:
        parts.append(completion[start:])
    text = "".join(parts)
    end = _TURN_END.search(text)
    return text[: end.start()] if end else text


def answered_text(completion: str) -> str:
    """The visible text up to the question that the model asks itself after its answer."""
    text = visible_text(completion)
    question = _NEXT_QUESTION.search(text)
    if question is not None and _find(text[: question.start()]) is not None:
        return text[: question.start()]
    return text


def count_marked_answers(completion: str) -> int:
    """How many different answers the marks of a completion give; several boxes of one sentence count as two."""
    answers = {mark.answer for mark in _marks(answered_text(completion))}
    return len({answer.text for answer in answers}) + any(answer.kind == "boxes" for answer in answers)


def find_answer(completion: str) -> FinalAnswer | None:
    """The marked or stated answer of a completion; `None` where it has neither, and its sentences decide."""
    return _find(answered_text(completion))


def find_mark(text: str) -> FinalAnswer | None:
    """The last marked answer in an [`answered_text`], where no correction follows."""
    last = max(_marks(text), key=lambda mark: mark.end, default=None)
    return None if last is None or _correction(text, last) is not None else last.answer


def _find(text: str) -> FinalAnswer | None:
    last = max(_marks(text) or _statements(text, 0), key=lambda found: found.end, default=None)
    return None if last is None else (_correction(text, last) or last).answer


def _marks(text: str) -> list[_Found]:
    marks: list[_Found] = []
    if "<" in text:
        marks += _tags(text)
    if "box" in text:
        marks += _boxes(text)
    if "####" in text:
        marks += _lines(text)
    if "nswer" in text or "NSWER" in text:
        marks += _headings(text)
    return marks


def _correction(text: str, last: _Found) -> _Found | None:
    """The last of the statements behind `last`, or of results behind "wait" and the like, that takes it back."""
    if not text[last.end :].strip(" .$*\n"):
        return None
    turn = _TURN.search(text, last.end)
    found = [
        s
        for s in _statements(text, last.end)
        if (s.strong or (turn is not None and s.start >= turn.start()))
        and (len(s.answer.text.split()) <= _MOST_WORDS or _AT_VALUE.match(s.answer.text))
        and _NOUN.search(text, max(0, s.start - 12), s.start)
    ]
    for result in _RESULT.finditer(text, turn.start()) if turn is not None else ():
        clause = first_clause(text[result.end() : result.end() + MOST_CHARACTERS])
        if clause:
            found.append(_Found(result.start(), result.end(), FinalAnswer(clause, "correction")))
    return max(found, key=lambda s: s.end, default=None)


def _tags(text: str) -> Iterator[_Found]:
    tags = list(_TAG.finditer(text))
    for tag, following in pairwise(tags):
        if not tag[1] and following[1]:
            content = text[tag.end() : following.start()].strip()
            if content and len(content) <= MOST_CHARACTERS:
                # a box within the tag is what it marks
                inner = list(_boxes(content))
                yield _Found(tag.start(), following.end(), inner[-1].answer if inner else FinalAnswer(content, "tag"))


def _boxes(text: str) -> Iterator[_Found]:
    """Each group of boxes that stand in one sentence, with few words between them."""
    boxes: list[tuple[int, int, str]] = []
    for match in list(_BOX.finditer(text))[-_MOST_MARKS:]:
        if boxes and match.start() < boxes[-1][1]:
            # \boxed{\boxed{7}}: the inner one
            boxes.pop()
        content, end = _box_content(text, match.end())
        if content.strip(" $"):
            boxes.append((match.start(), end, content))
    group: list[tuple[int, int, str]] = []
    for box in boxes:
        between = text[group[-1][1] : box[0]] if group else ""
        if len(between.split()) > _MOST_WORDS_BETWEEN or SENTENCE_END.search(between) or _TURN.search(between):
            yield _joined(text, group)
            group = []
        group.append(box)
    if group:
        yield _joined(text, group)


def _joined(text: str, group: list[tuple[int, int, str]]) -> _Found:
    start, end = group[0][0], group[-1][1]
    if _DENIED.search(text[max(0, start - 60) : start].lower()) or _RETRACTED.match(text, end):
        return _Found(start, end, FinalAnswer("", "box"))
    contents = list(dict.fromkeys(content for _, _, content in group))
    kind: Kind = "box" if len(contents) == 1 else "boxes"
    return _Found(start, end, FinalAnswer(",".join(contents), kind))


def _box_content(text: str, start: int) -> tuple[str, int]:
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
                percent = re.match(r"[\s$})\]\\]{0,4}(?:\\?%|percent\b|pct\b)", text[position + 1 : position + 20])
                return (content + r"\%" if content and percent else content), position + 1
        position += 1
    # cut off, or a brace was forgotten: the rest of the line
    line_end = text.find("\n", start, limit)
    end = limit if line_end < 0 else line_end
    return text[start + 1 : end].strip(" .$"), end


def _lines(text: str) -> Iterator[_Found]:
    for match in list(_LINE.finditer(text))[-_MOST_MARKS:]:
        content = match[1].strip()
        below = text[match.end() : match.end() + 200].strip()
        inner = list(_boxes(content))
        if inner or not content or (below and _HEADED.match(content)):
            continue
        if re.fullmatch(r"(?i:(?:final )?answer)\W*", content):
            continue  # a heading of its own, see below
        yield _Found(match.start(), match.end(), FinalAnswer(content, "line"))


def _headings(text: str) -> Iterator[_Found]:
    for match in list(_HEADING.finditer(text))[-_MOST_MARKS:]:
        below = text[match.end() : match.end() + MOST_CHARACTERS]
        content = first_clause(below)
        if _BOX.search(below, 0, 40):
            continue  # the box is the mark
        if content and _ANSWER.search(content) is None:
            yield _Found(match.start(), match.end() + len(content), FinalAnswer(content, "heading"))


def _statements(text: str, start: int) -> Iterator[_Found]:
    """The statements behind `start`, in their order."""
    nouns = [
        (noun, _STATES.match(text, noun.end()))
        for noun in _ANSWER.finditer(text, start)
        if not DOUBT.search(text, max(0, noun.start() - 80), noun.start())
    ]
    found = [(noun.start(), states.end(), states["verb"] is not None) for noun, states in nouns if states is not None]
    found += [(label.start(), label.end(), False) for label in _LABEL_A.finditer(text, start)]
    for begin, end, has_verb in sorted(found)[-_MOST_MARKS:]:
        if _BOX.search(text, end, end + 40):
            continue  # the box is the mark
        if clause := first_clause(text[end : end + MOST_CHARACTERS]):
            strong = _BEFORE_ANSWER.search(text, max(0, begin - 12), begin) is not None and not _in_question(text, end)
            yield _Found(begin, end, FinalAnswer(clause, "statement" if has_verb else "label"), strong)


def _in_question(text: str, position: int) -> bool:
    end = SENTENCE_END.search(text, position)
    return end is not None and end[0] == "?"


def is_changed(before: str) -> bool:
    """Whether the words before an answer deny it, or make another of it."""
    return _CHANGED.search(before.lower()) is not None
