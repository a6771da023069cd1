r"""`choice`: the completion names the right option of a multiple-choice question.

A label is one letter or a number of one or two digits. Which label a completion chooses is decided by the first of
these rules that finds one; naming several is choosing none, and so is naming one to deny it:

1. a mark (`reading/final_answer.py`) with a label and perhaps its option's text: `\boxed{C}`, `<answer>C</answer>`;
2. the last statement of the choice: "the answer is (C)", "the correct option is C", "I choose C", "(C) is correct";
3. the one label that is said to be true: "(A) false (B) true", "C. ✅";
4. a line that is a label, or that a label begins (`C`, `C) water`), when all such lines agree;
5. the last sentence with labels, when it holds one, or says "so" before its last: "A is too cold, so B".

Letters outrank numbers, which texts are full of. Labels are compared as they are: a letter never stands for a digit,
since the prompt shows the labels. An option's text without its label does not name an option, and is wrong.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.reading.final_answer import answered_text, find_mark
from svf_rl.rewards.reading.sentences import TAIL, is_question, sentences_from_end
from svf_rl.rewards.references import reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier

# Repetitions are bounded, so that hostile text takes linear time at most.
_PLAIN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:(?:text|math)(?:bf|rm|it|sf|tt)?|mbox|emph|underline)\s?\{([^{}\n]{0,200})\}", r"\1"),
        (r"~", " "),
        (r"\\[()\[\]]|[*_$`\"“”]|\\[,;:! ]", ""),
        (r"[\[{<]\s?([A-Za-z]|\d{1,2})\s?[\]}>]", r"(\1)"),
        (r"['‘](?<!\w.)([A-Z])['’]", r"\1"),
    )
]
_MARKUP = re.compile(r"[\\~\[{<*_$`\"“”'‘]")
# Without brackets only a capital is a label: "the answer is a number" holds none; "A" before a word is an article.
_VERB = r"(?:because|since|as|and|or|is|with|for|but|seems|looks|it|would|must|should|has|,)\b"
_LABEL = (
    r"(?:\((?P<bracketed{0}>[A-Za-z]|\d{{1,2}})\)"
    rf"|(?P<bare{{0}}>[B-HJ-Z](?![\w'’])|[AI](?![\w'’]|[ ][a-z])|[AI](?=[ ]{_VERB})"
    r"|\d{{1,2}}(?!\w|[.,:/]\d|\s?%)))(?!\s?=)"
)
_SMALL = r"(?P<small>[a-z])(?=[).,:;!\s]*(?:$|\n)|[).,:;!]\s|\s(?:is|because)\b)"
_NOUNS = r"answer|option|choice|letter|label|statement|selection|diagnosis"
_NOUN = rf"(?:{_NOUNS})"
_FILLER = rf"(?:therefore|thus|clearly|probably|likely|most|the|correct|best|right|{_NOUN}|number)"
_IS = (
    r"(?:\s{1,3}(?:choice\s|here\s)?(?:is|was|are|(?:should|would|must|will|has\sto|could|might|may)\s+be)\b(?!\s+not\b)"
    r"|\s{0,4}[:：=—–➜→])"
)
_CHOOSES = r"choose|chose|select|pick|go\swith|going\swith|say|it['’]?s|it\sis|must\sbe|should\sbe|has\sto\sbe"
_CHOOSE = rf"(?:{_CHOOSES})"
_IS_RIGHT = (
    r"(?:is|seems|looks)\s(?:the\s)?(?:more\s|most\s(?:likely\s)?)?(?:only\s)?"
    r"(?:correct|right|best|appropriate|accurate|answer|true)"
)
# Statements of a choice begin at one of these words, in small letters (and only there are they looked for, which saves
# most of the time), or before one of the words that end them. Without groups, so that `re` looks for first letters.
_BEGIN = re.compile(rf"{_NOUNS}|{_CHOOSES}|=>|→|⇒")
_NOUN_IS, _CHOOSING, _OPTION, _ARROW = (
    re.compile(pattern.replace("LABEL", _LABEL.format("")))
    for pattern in (
        rf"(?i:\b{_NOUN}s?\b{_IS}(?:[\s:]{{1,8}}{_FILLER}\b){{0,6}})[\s:]{{0,8}}(?:LABEL|{_SMALL})",
        rf"(?i:\b{_CHOOSE}\b(?:\s{_FILLER}\b){{0,4}})\s{{0,4}}(?:LABEL|{_SMALL})",
        rf"(?i:\b(?:option|choice)\s){_SMALL}",
        r"(?:=>|→|⇒)\s?LABEL",
    )
)
_STATED = {
    **dict.fromkeys(_NOUNS.split("|"), (_NOUN_IS,)),
    **dict.fromkeys(("option", "choice"), (_NOUN_IS, _OPTION)),
    **dict.fromkeys(("=>", "→", "⇒"), (_ARROW,)),
}
_STATED_BEFORE = [
    (re.compile(end), re.compile(pattern.replace("LABEL", _LABEL.format("")), re.MULTILINE))
    for end, pattern in (
        (
            r"(?:option|choice|answer)\s",
            rf"(?:^|[.!?]\s)\s{{0,4}}(?i:(?:the\s)?(?:option|choice|answer)\s)(?:LABEL|{_SMALL})(?=[).:!]*\s*$)",
        ),
        (_IS_RIGHT, rf"(?<![\w\\(])LABEL[)\s.:]{{1,8}}(?i:{_IS_RIGHT}\b)"),
    )
]
_MOST_BEFORE = 16
_LIST = re.compile(
    r"[)\s]{0,3}(?:,\s?(?:or|and)?|/|&|\bor\b|\band\b)(?:\s?(?:maybe|perhaps|possibly|even))?\s?"
    + _LABEL.format("")
    + r"(?!\s(?:is|are|was)\b)"
)
_LIST_BEFORE = re.compile(r"(?:\(?\b[A-Z]\)?|\b\d{1,2}),?\s?(?:,|/|&|or|and)\s$")
_DENIED = re.compile(
    r"(?:(?<=\w\w)n['’]t|\b(?:not|cannot|never|neither|nor|none|nobody|except|(?:all|(?:any|every)\w*(?:\s\w+)?)\sbut|other\sthan|rather\sthan|instead\sof|unlike"
    r"|impossible\sfor|doubt\w*|hardly|(?:wrong|incorrect|worst|least\slikely)(?=\s(?:answer|option|choice)|:)"
    r"|thought\sto|false\sthat|avoid\w*|reject\w*|rul(?:e|es|ed|ing)\sout|eliminat\w+|exclud\w+))"
    rf"\b(?:\s(?:be|been|is|was|should|would|that|choose|chosen|pick|select|say|think|it|of|options?|answers?|choices?|these|{_FILLER})\b){{0,5}}"
    r"[\s:]{1,3}(?:\(?[a-z]\)?(?:,\s(?:and\s|or\s)?|\sand\s|\sor\s)){0,6}$"
)
_OTHERS = r"(?:options?|answers?|choices?|ones)\b"
_DENIAL = re.compile(
    # not what the next words say of other options
    r"[)\s.:]{1,4}(?!no\sother\b|out\sof\b|too\s(?:many|few)\b"
    r"|not\s(?:(?:option|answer|choice)\s)?\(?[a-z]\)?(?=[.,;:!]|\s(?:because|since|as|and|or|but)\b|\s*$)"
    rf"|(?:wrong|incorrect|false|eliminated|excluded|rejected|discarded|dismissed)\s{_OTHERS})"
    r"(?:(?:(?:is|are|was|seems|looks|can|could|would|does|do|has)\s?)?(?:be(?:en)?\s)?(?:(?:the|a|an)\s)?"
    r"(?:not\b|\w{0,5}n['’]t\b|cannot\b|wrong|incorrect|false|contradict|fail|violat|unlikely|invalid|untrue|distractor"
    r"|im(?:possible|plausible)|irrelevant|(?:ruled|crossed|left)\sout|eliminated|excluded|rejected|discarded|dismissed"
    r"|trap|mistake|makes?\sno\b|out\b|too\b|❌|✗|no\b))"
    r"|\)?\s\((?:wrong|incorrect|false)"
)
_AFFIRMING = re.compile(r"correct|true|right|yes|[✅✓✔]")
_AFFIRMATION = re.compile(rf"[)\s.:,-]{{1,5}}(?:is\s)?(?:{_AFFIRMING.pattern})(?:(?<=\W)|\b)")
# Behind these words a choice is not made: under a condition, by others, or before a change of mind
_CONDITION = re.compile(
    r"\b(?:if|unless|suppose|assuming|whether|was\sgoing\sto|about\sto|tempted\sto|might|many|some|students?)\b(?!.*\bbut\b)"
)
# What may stand before a label that a last sentence states
_STATING = re.compile(
    r"(?:^|[:;,(→>*]|\b(?:so|thus|hence|therefore|then|is|are|be|it['’]?s|say|with|leaves|leaving|only|yes|but|answer|option"
    r"|choice|choose|pick|select|likely|probably|definitely|clearly|obviously|going|go|and|or)\b)[\s(]{0,8}$"
)
_LONGEST_STATING = 20
_ANY = re.compile(r"(?<![\w'’])(?<!\d[.,])" + _LABEL.format(""))
_LINE = re.compile(
    r"^[^\w\n(]{0,8}(?:\((?P<bracketed>[A-Za-z]|\d{1,2})\)|(?P<bare>[A-Za-z]|\d{1,2})(?=[.):]|\s*$|\s-\s|,\s(?:because|since|as)\b))[^\n(]*$",
    re.MULTILINE,
)
_SO = re.compile(r"(?i:\b(?:so|thus|hence|therefore|leaving|leaves|only|must\sbe|to\sbe)\b|=>|→)")
_END = re.compile(r"[.?!](?=\s|$)|\n")
# In a longer mark the option's text may name letters
_SHORT = 60


def read_reference(reference: Any) -> str:
    """The label of a reference. Raises `SVFError` without one."""
    expected = _read_reference(reference_text("choice", reference))
    if expected is None:
        raise SVFError(f"choice: the answer {shorten(reference)} does not name an option")
    return expected


@lru_cache(maxsize=4096)
def _read_reference(text: str) -> str | None:
    return extract_choice(text)


@verifier("choice", check_reference=read_reference, finds_answer=True)
def choice(completion: str, reference: Any) -> Verdict:
    """Compare the labels of the options; both sides are read by the same rules (those above)."""
    expected, got = read_reference(reference), extract_choice(completion)
    if got is None:
        return Verdict(False, None, "the completion does not name one option")
    return Verdict(got == expected, got, "equal" if got == expected else f"{got} is not {expected}")


def extract_choice(completion: str) -> str | None:
    """The label (a letter, in capitals, or a number) that a completion chooses, by the rules above."""
    answered = answered_text(completion)
    mark = find_mark(answered)
    marked = None if mark is None else _read_mark(_plain(mark.text))
    if marked is not None and marked.isalpha():
        return marked
    text = _plain(answered[-TAIL:])
    stated = _stated(text)
    if stated is not None:
        return stated or None
    if mark is not None:
        return marked
    affirmed = _affirmed(text)
    return (affirmed or None) if affirmed is not None else _line(text) or _last_sentence(text)


def _plain(text: str) -> str:
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    if _MARKUP.search(text) is None:
        return text
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return text


def _label(match: re.Match[str]) -> str:
    groups = match.groupdict()
    return str(groups.get("bracketed") or groups.get("bare") or groups.get("small")).upper()


def _read_mark(content: str) -> str | None:
    """The label that a mark holds, with words such as "option" before it and the option's text behind it."""
    if len(content) == 1 and content.isascii() and content.isalnum():
        return content.upper()
    lead = re.match(rf"[\s:(.]*(?i:(?:{_FILLER}|is)\b[\s:]*){{0,6}}", content)
    content = content[lead.end() :] if lead and not content.lstrip().startswith("(") else content.lstrip()
    if re.fullmatch(r"[a-z]\W*", content):
        content = content.upper()
    match = _ANY.match(content) or re.match(r"(?P<bare>[A-Za-z])(?=[).:,])", content)
    if match is None:
        return None
    rest = content[match.end() :]
    others = {_label(other) for other in _ANY.finditer(rest)} if len(content) <= _SHORT else set()
    others = {other for other in others if other.isalpha()}
    return (
        None
        if _LIST.match(content, match.end()) or re.match(r"\s?[-+^\\&|=/~]\s?\w", rest) or others
        else _label(match)
    )


def _stated(text: str) -> str | None:
    """The label of the last statement; empty where that names several."""
    found: list[tuple[int, str]] = []
    lowered = _lower(text)
    for match in _statements(text, lowered):
        start = min(match.start(name) for name, value in match.groupdict().items() if value)
        ends = _END.search(text, match.end())
        if _denied(lowered, match, start) or _conditional(lowered, match.start()) or (ends and ends[0] == "?"):
            continue
        several = _LIST.match(text, match.end()) or _LIST_BEFORE.search(text[max(0, start - 8) : start])
        found.append((match.end(), "" if several else _label(match)))
    letters = [(end, label) for end, label in found if not label.isdigit()]
    return max(letters or found)[1] if found else None


def _statements(text: str, lowered: str) -> Iterator[re.Match[str]]:
    for begin in _BEGIN.finditer(lowered):
        for pattern in _STATED.get(begin[0], (_CHOOSING,)):
            if match := pattern.match(text, begin.start()):
                yield match
    for end, pattern in _STATED_BEFORE:
        if first := end.search(lowered):
            yield from pattern.finditer(text, max(0, first.start() - _MOST_BEFORE))


def _lower(text: str) -> str:
    """In small letters, each in its place."""
    lowered = text.lower()
    # in some alphabets a letter becomes two
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _denied(lowered: str, match: re.Match[str], start: int) -> bool:
    end = start - lowered[:start].endswith("(")
    begin = _sentence_start(lowered, max(0, start - 80), end, ".!?")
    return _DENIED.search(lowered, begin, end) is not None or _DENIAL.match(lowered, match.end()) is not None


def _conditional(lowered: str, end: int) -> bool:
    return _CONDITION.search(lowered, _sentence_start(lowered, max(0, end - 200), end, ".!?\n"), end) is not None


def _sentence_start(text: str, begin: int, end: int, ends: str) -> int:
    return max(begin, *(text.rfind(mark, begin, end) + 1 for mark in ends))


def _affirmed(text: str) -> str | None:
    """The one label that is called true, where the others are called false; empty where several are."""
    lowered = _lower(text)
    if _AFFIRMING.search(lowered) is None:
        return None
    labels = {
        _label(match)
        for match in _ANY.finditer(text)
        if _AFFIRMATION.match(lowered, match.end()) and not _denied(lowered, match, match.start())
    }
    return labels.pop() if len(labels) == 1 else "" if labels else None


def _line(text: str) -> str | None:
    labels = {
        _label(match)
        for match in _LINE.finditer(text)
        if not _DENIAL.match(_lower(text), match.end(match.lastgroup or 0))
    }
    return labels.pop() if len(labels) == 1 else None


def _last_sentence(text: str) -> str | None:
    for sentence in sentences_from_end(text):
        found = list(_ANY.finditer(sentence))
        if not found or is_question(sentence):
            continue
        if _LINE.match(sentence) and len(found) == 1 and len({_label(match) for match in _LINE.finditer(text)}) > 1:
            return None  # a list of options
        lowered = _lower(sentence)
        found = [
            match
            for match in found
            if not _denied(lowered, match, match.start()) and not _conditional(lowered, match.start())
        ]
        letters = [match for match in found if _label(match).isalpha()] or found
        labels = {_label(match) for match in letters}
        if len(labels) == 1:
            states = any(
                _STATING.search(lowered, max(0, match.start() - _LONGEST_STATING), match.start()) for match in letters
            )
            return labels.pop() if states else None
        if len(labels) > 1 and _SO.search(sentence[letters[-2].end() : letters[-1].start()]):
            return _label(letters[-1])
        return None
    return None
