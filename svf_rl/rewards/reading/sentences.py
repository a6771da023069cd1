"""The clauses and sentences of a completion, and which of them state something. Mathematics does not end one."""

import re
from collections.abc import Iterator
from itertools import pairwise

# How much of the end of a text is searched for sentences
TAIL = 4000

SENTENCE_END = re.compile(r"[.!?;](?=[\s*\"')\]]|$)|\n")
_TASK = re.compile(
    r"\W{0,4}(?:(?:What|How|Which|Who|Whose|When|Where)\b[^.!]*\?"
    r"|(?:Suppose|Assume|Let\s+(?!me\b|us\b)|If\s+the\s+answer|Find|Compute|Evaluate|Simplify|Expand|Factor|Rationalize"
    r"|Express|Determine|Solve|Write|Enter|Give|Calculate|Round)\b)"
)
_MATHEMATICS = r"\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$\n]{0,400}\$"
_MATHEMATICS_OR_END = re.compile(rf"{_MATHEMATICS}|(?P<end>{SENTENCE_END.pattern})", re.DOTALL)
# "I don't think the answer is 33" and "if the answer is 33" state nothing
DOUBT = re.compile(
    r"\b(?:(?:(?:\w+n['’]t|not|never)\s+(?:think|believe|say|mean|agree|claim|true)|wrong\s+to|false\s+that|doubt|den(?:y|ies)|unlikely"
    r"|[Nn]obody|[Ss]ome\s+(?:people|students|say))\b[^.!?\n]*|(?i:if|suppose|assume|imagine)\s+(?:that\s+)?(?:the\s+|my\s+)?)$"
)


def first_clause(text: str) -> str:
    """The beginning of `text` up to the end of its sentence or line, which mathematics does not end."""
    text = text.lstrip(" \t\n*:_\"'")
    ends = (match.start() for match in _MATHEMATICS_OR_END.finditer(text) if match["end"] is not None)
    return text[: next(ends, len(text))].strip(" *_\"'")


def sets_task(sentence: str) -> bool:
    """Whether a sentence asks for an answer, or supposes one, instead of stating it."""
    return _TASK.match(sentence) is not None


def is_question(sentence: str) -> bool:
    return sentence.rstrip("*_\"')] ").endswith("?")


def sentences_from_end(text: str) -> Iterator[str]:
    """The sentences and lines of the end of `text`, the last first; mathematics does not end one."""
    text = text[-TAIL:].strip()
    ends = [0, *(match.end() for match in _MATHEMATICS_OR_END.finditer(text) if match["end"] is not None)]
    ends.append(len(text))
    for start, end in reversed(list(pairwise(ends))):
        if sentence := text[start:end].strip():
            yield sentence


def statements_from_end(text: str) -> Iterator[str]:
    """The sentences and lines that may state an answer, the last first: none where the text ends by setting a task
    ("What is ...?", "Simplify ..."), as an echo of the question does. Other questions are left out."""
    for sentence in sentences_from_end(text):
        if sets_task(sentence) or DOUBT.search(sentence.rstrip(".!*_ ")):
            return
        if not is_question(sentence):
            yield sentence
