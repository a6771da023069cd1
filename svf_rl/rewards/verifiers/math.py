r"""`math`: the completion's answer is mathematically equal to the reference.

`reading/final_answer.py` says where the answer stands, and `reading/math_text.py` reads it. Two answers are equal when
their readings are the same, or by math-verify's symbolic comparison of the two, with the reference as its gold side.
That runs in worker processes (`math_worker.py`), so that any thread may ask and a comparison that hangs is killed.

Where the benchmarks' graders differ from each other, the value decides: `2/4` is `1/2`, `3^2` is 9, `50\%` is 50. A
decimal is equal to a fraction when they agree to six places: 0.33 is not 1/3. Lists and sets have no order; pairs and
intervals do.
"""

import re
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from svf_rl.errors import InfrastructureError, SVFError
from svf_rl.rewards.reading.final_answer import MOST_CHARACTERS, FinalAnswer, answered_text, find_answer, is_changed
from svf_rl.rewards.reading.math_text import Reading, read_answer, read_words
from svf_rl.rewards.reading.number_text import read_number, read_sentence
from svf_rl.rewards.reading.sentences import sets_task, statements_from_end
from svf_rl.rewards.references import is_number, reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier
from svf_rl.sandbox.workers import WorkerPool, parallel_checks, script_command

# How much longer than a check's own limits a worker may take: two attempts of two parts each, on a busy machine.
PATIENCE_FACTOR, PATIENCE_SECONDS = 50, 60.0

_WORKER = script_command(Path(__file__).with_name("math_worker.py"))
_workers = WorkerPool("math", _WORKER, parallel_checks())

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$((?:\\.|[^$\n\\])+)\$", re.DOTALL)
_STATES = re.compile(
    r"(?:\b(?:is|are|equals|be)\b|[:=])(?!.*(?:\b(?:is|are|equals|be)\b|[:=]))\s*(?:thus|therefore|then)?\s*"
)
_DENIES = re.compile(r"\b(?:not|no|never|neither|nor|cannot|or|\w+n['’]t)\b")
_BEGINS_WITH_NUMBER = re.compile(r"\W*(?:[A-Za-z]\s?=\s?)?[-−]?\W?\d")
_OFFERS_ANOTHER = re.compile(r"[\s,]*\b(?:or|and|to|maybe|perhaps|possibly)\b(?!\s+not\b)[^.]*[\d$]")
_PLACES, _RATIO = Fraction(1, 2 * 10**6), Fraction(1, 1000)
_SET, _PAIR = "set", "pair"
_CLOCK = re.compile(r"(?<=\d:\d\d)[ap]$")
_BROKEN_GROUP = re.compile(r"\{[^{}\n]*\n[^{}\n]*\}")
# A completion that is an answer and nothing else
_MOST_WHOLE = 600
# Words that a sentence as a reference has: "it rises at 2 PM (8 hours after 6 AM)"
_MOST_REFERENCE_WORDS = 3


def check_reference(reference: Any, *, timeout: float = 5.0, **_: Any) -> None:
    """Raises `SVFError` for a reference that is not text or has no answer, or an invalid time-out."""
    if not is_number(timeout) or not 0 < timeout <= 3600:
        raise SVFError(f"math: timeout must be a number of seconds above 0, got {timeout!r}")
    _gold(reference)


@verifier("math", waits=True, check_reference=check_reference, finds_answer=True, in_training={"form": "value"})
def math(
    completion: str, reference: Any, *, timeout: float = 5.0, form: Literal["value", "equal"] = "equal"
) -> Verdict:
    r"""
    Compare mathematically.

    The reference is a bare answer (`\frac{3}{4}`, `x \in [1,2)`, `\text{Evelyn}`, `5`), a text with the answer in
    dollars, or a worked solution whose answer is in its last `\boxed{}` or after `####`.

    A completion whose comparison takes longer than `timeout` is wrong; where reading the reference alone takes longer,
    the completion is not scorable (unless its answer is the same text).

    Args:
        timeout (`float`, *optional*, defaults to `5.0`): seconds of CPU time to read the reference, and again to
            read the completion's answer and to compare.
        form (`str`, *optional*, defaults to `"equal"`): `"value"`: where the reference is a number, the answer must be
            one too, and not a calculation that is left undone.

    Raises:
        InfrastructureError: the workers died or could not be started.
    """
    gold = _gold(reference)
    shown, answer, is_stated = _find(completion, gold)
    if answer is None:
        return Verdict(False, None, "the completion does not give one answer")
    if len(shown) > MOST_CHARACTERS:
        return Verdict(False, shorten(shown), f"the answer is longer than {MOST_CHARACTERS} characters")
    if gold.value is not None and answer.is_text and (number := read_number(shown, strict=True)) is not None:
        answer = read_answer(str(number)) or answer  # fifty-two
    if gold.is_worked_out and not answer.is_worked_out and (form == "value" or not is_stated):
        return Verdict(False, shown, "the answer is a calculation that is not worked out")
    differs = Verdict(False, shown, f"not equal to {shorten(gold.latex or gold.label)}")
    same = _same_reading(gold, answer, shown)
    if same is not None:
        return Verdict(True, shown, "equal") if same else differs
    request = {"gold": _as_equation(gold, answer), "prediction": _as_equation(answer, gold), "timeout": timeout}
    match _workers.call(request, PATIENCE_FACTOR * timeout + PATIENCE_SECONDS)["outcome"]:
        case "equal":
            return Verdict(True, shown, "equal")
        case "different":
            return differs
        case "late":
            return Verdict(False, shown, f"timed out: the comparison took longer than {timeout:g} s")
        case "crashed":
            return Verdict(False, shown, "the answer cannot be read: what compares it crashed")
        case "gold late":
            return Verdict(None, shown, f"the reference {shorten(gold.latex)} takes longer than {timeout:g} s to read")
        case "gold crashed":
            return Verdict(None, shown, f"the reference {shorten(gold.latex)} cannot be read: what reads it crashed")
        case _:
            raise InfrastructureError("two processes that compare answers were killed, or did not get to run")


def _same_reading(gold: Reading, answer: Reading, shown: str) -> bool | None:
    """Whether two readings are equal, where that can be told without mathematics; `None` where it cannot."""
    if gold.label and not gold.latex:
        return gold.label == (answer.label or answer.latex.lower())
    if answer.label and not answer.latex:
        return answer.label in (gold.label, gold.latex.lower())
    if gold.label and answer.label and gold.label != answer.label:
        return False
    if {_SET, _PAIR} == {_brackets(gold.latex), _brackets(answer.latex)}:
        return False
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False  # 5 km, 5 miles
    if answer.base and answer.base != gold.base:
        return False
    if len(gold.name) == len(answer.name) == 1 and gold.name != answer.name:
        return (gold.name, gold.latex) == (answer.latex, answer.name)  # x = y, y = x; not x = 3, y = 3
    if gold.value is not None and answer.value is not None:
        return _same_value(gold.value, answer.value)
    if gold.is_text:
        return gold.latex == read_words(shown) or (
            answer.is_text and answer.latex in (gold.latex, _CLOCK.sub("", gold.latex))
        )
    if answer.is_text:
        return False
    if gold.is_equation == answer.is_equation:
        return True if gold.latex == answer.latex else None
    return None if "=" in _as_equation(gold, answer) and "=" in _as_equation(answer, gold) else False


def _brackets(latex: str) -> str:
    r"""Of a set of plain elements, as \pm 2 is one, or of a pair, an interval or the like; empty for anything else."""
    if latex.startswith(r"\pm") or (latex.startswith(r"\{") and latex.endswith(r"\}") and "(" not in latex):
        return _SET
    return _PAIR if latex[:1] in ("(", "[") and latex[-1:] in (")", "]") and "," in latex else ""


def _as_equation(reading: Reading, other: Reading) -> str:
    """What is compared of a reading: with its name where the other side is an equation."""
    is_set = reading.name and other.is_equation and not reading.is_equation
    return f"{reading.name}={reading.latex}" if is_set else reading.latex


def _same_value(one: Fraction, other: Fraction) -> bool:
    """To six places, so that a decimal may stand for a fraction; smaller numbers by their ratio."""
    return one == other or (abs(one - other) <= _PLACES and abs(one - other) <= _RATIO * abs(one))


def _find(completion: str, gold: Reading) -> tuple[str, Reading | None, bool]:
    """What a completion gives as its answer, its reading, and whether it is marked or stated as such."""
    answer = find_answer(completion)
    if answer is not None:
        text = _without_remark(answer)
        return text, read_answer(text), True
    answered = answered_text(completion)
    whole = _BROKEN_GROUP.sub(lambda match: match[0].replace("\n", " "), answered).strip()
    is_short = "\n" not in whole and len(whole) <= _MOST_WHOLE and not sets_task(whole)
    reading = read_answer(whole) if is_short else None
    if reading is not None and (not reading.is_text or len(whole.split()) <= _MOST_REFERENCE_WORDS):
        return whole, reading, False
    for sentence in statements_from_end(answered):
        if gold.is_text and not any(map(str.isdigit, gold.latex)):
            return sentence, _ends_with(sentence, gold), False
        if _FORMULA.search(sentence) or any(map(str.isdigit, sentence)) or "\\" in sentence:
            return _sentence_answer(sentence)
    return "", None, False


def _ends_with(sentence: str, gold: Reading) -> Reading | None:
    """`gold`, where the sentence ends with its words and neither denies them nor offers others."""
    words = read_answer(sentence)
    said = re.sub(r"[^\w\s]", "", sentence).casefold().strip()
    same = said == gold.latex or said.endswith(" " + gold.latex)
    return gold if same and not _DENIES.search(sentence) else words


def _without_remark(answer: FinalAnswer) -> str:
    """A statement up to the words after its first formula or number: "$9$ eggs, 3 more than 6"."""
    text = answer.text
    if answer.kind in ("box", "boxes", "tag"):
        return text
    formulas = list(_FORMULA.finditer(text))
    before = text[: formulas[0].start()] if formulas else ""
    if is_changed(before) or re.search(r"\b(?:than|not|never|most|least|times|plus|minus)\b", before):
        return text
    if formulas and not re.search(r"[\d\\]", text[: formulas[0].start()]):
        start, end = formulas[0].start(), formulas[-1].end()
        if not re.fullmatch(r"(?:\s|,|\band\b|\bor\b)*", _FORMULA.sub(" ", text[start:end])):
            end = formulas[0].end()
        if re.search(r"\b(?:times|plus|minus|over|divided)\b", text[end : formulas[-1].end()]):
            return text
        unit = re.match(r"\s*\\?%|\s+percent\b", text[end:])
        return text if _OFFERS_ANOTHER.match(text, end) else text[start:end] + (unit[0] if unit else "")
    if not formulas and _BEGINS_WITH_NUMBER.match(text) and read_number(text, strict=True) is None:
        number = read_number(text, strict=False)
        return text if number is None else str(number)
    return text


def _sentence_answer(sentence: str) -> tuple[str, Reading | None, bool]:
    formulas = list(_FORMULA.finditer(sentence))
    if formulas and is_changed(sentence[: formulas[-1].start()]):
        return sentence, None, False
    if formulas:
        text = next(group for group in formulas[-1].groups() if group is not None)
        return text, read_answer(text), False
    whole = read_answer(sentence)
    if whole is not None and not whole.is_text:
        return sentence, whole, False
    if (number := read_sentence(sentence)) is not None:
        return str(number), read_answer(str(number)), False
    states = _STATES.search(sentence)
    text = sentence[states.end() :] if states else sentence
    return text, read_answer(text), False


def _gold(reference: Any) -> Reading:
    return _read_reference(reference_text("math", reference, numbers=True).strip())


@lru_cache(maxsize=4096)
def _read_reference(text: str) -> Reading:
    """The reading of a reference's answer. Raises `SVFError` where it has none."""
    reference = text
    if re.search(r"####|\\boxed|\\fbox", text) and (answer := find_answer(text)) is not None:
        text = answer.text
    if len(text) > MOST_CHARACTERS:
        raise SVFError(f"math: the answer {shorten(reference)} is longer than {MOST_CHARACTERS} characters")
    gold = read_answer(text)
    if gold is None:
        raise SVFError(f"math: the answer {shorten(reference)} is empty; leave such rows out of the data")
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    if gold.is_text and len(words) > _MOST_REFERENCE_WORDS and re.search(r"\d", text):
        raise SVFError(f"math: the answer {shorten(reference)} is a sentence; give the value alone")
    return gold
