"""`exact_match`: the completion's final answer equals the one in a dataset column.

The answer is extracted from both sides by the same pure function, one a kind, so a column may hold a bare answer or a
whole worked solution (as GSM8K's does).
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from svf_rl.errors import SVFError
from svf_rl.rewards.registry import reward
from svf_rl.rewards.reward import completion_text

# A minus counts as a sign only where it is no subtraction: not after a digit, letter or bracket, nor before a space.
_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]]) (?P<sign>[-+−]) [$€£]? )?   # -5, -$5, $-5; but 6-4 holds 6 and 4
    (?<!\w) (?<!\d\.)                            # not within a word: m2
    (?P<digits> \d{1,3}(?:,\d{3})+(?!\d) (?:\.\d+)? | \d+(?:\.\d+)? | \.\d+ )
    """,
    re.VERBOSE,
)
_LABEL = r"[A-Za-z]|\d{1,2}"
# Without brackets only a capital is a label: "the answer is a number" holds none.
_ANSWER_IS = re.compile(rf"(?i:answer\s+is)[\s:*]*(?:\(({_LABEL})\)|([A-Z]|\d{{1,2}})(?!\w|[.,]\d))")
_IN_BRACKETS = re.compile(rf"\(({_LABEL})\)")
_ALONE = re.compile(rf"\W*({_LABEL})\W*")


@reward("exact_match", column_arguments=["column"])
def exact_match(
    completions: Sequence[Any],
    *,
    kind: Literal["text", "number", "choice"] = "text",
    column: str = "answer",
    correct: float = 1.0,
    wrong: float = 0.0,
    **columns: Sequence[Any],
) -> list[float]:
    """Score `correct` where the completion's answer equals the gold answer, else `wrong`.

    Args:
        completions (`Sequence`): strings or lists of chat messages, one a sample.
        kind (`str`, *optional*, defaults to `"text"`): how answers are extracted and compared: `"text"` (the whole
            completion), `"number"` (by value) or `"choice"` (the label of an option).
        column (`str`, *optional*, defaults to `"answer"`): the dataset column with the gold answers.
        correct (`float`, *optional*, defaults to `1.0`): the reward of a right answer.
        wrong (`float`, *optional*, defaults to `0.0`): the reward of a wrong one, or of none.

    Raises:
        SVFError: a gold answer holds nothing of this kind, so no completion could ever be right.
    """
    rewards = []
    for completion, gold in zip(completions, columns[column], strict=True):
        expected = extract(_gold_text(gold), kind)
        if expected is None:
            raise SVFError(f"exact_match: column {column!r} holds {_shortened(gold)}, in which there is no {kind}")
        rewards.append(correct if extract(completion_text(completion), kind) == expected else wrong)
    return rewards


def extract(text: str, kind: Literal["text", "number", "choice"]) -> str | Decimal | None:
    """The answer of that kind in `text`, in a form that compares by `==`; `None` where there is none."""
    match kind:
        case "text":
            return extract_text(text)
        case "number":
            return extract_number(text)
        case "choice":
            return extract_choice(text)


def extract_text(text: str) -> str | None:
    """All of `text`, in Unicode's composed form (NFC) and with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split()) or None


def extract_number(text: str) -> Decimal | None:
    """The number after the last `####` (GSM8K's mark of the final answer), or without that mark the last number.

    Thousands commas, a sign, decimals and a currency sign are read; what follows (`.`, `%`, a unit) is not.
    """
    _, mark, answer = text.rpartition("####")
    numbers = list(_NUMBER.finditer(answer if mark else text))
    if not numbers:
        return None
    number = numbers[0] if mark else numbers[-1]
    value = Decimal(number["digits"].replace(",", ""))
    return -value if number["sign"] in ("-", "−") else value


def extract_choice(text: str) -> str | None:
    """The label (a letter, in capitals, or a number) of the chosen option.

    It is the last one in "the answer is (X)", else the last in brackets, else all that `text` holds.
    """
    if matches := _ANSWER_IS.findall(text):
        return (matches[-1][0] or matches[-1][1]).upper()
    if matches := _IN_BRACKETS.findall(text):
        return matches[-1].upper()
    alone = _ALONE.fullmatch(text)
    return alone[1].upper() if alone else None


def _gold_text(gold: Any) -> str:
    if gold is None:
        return ""
    # `str(1e22)` has an exponent, which is no part of a number in running text.
    return format(Decimal(str(gold)), "f") if isinstance(gold, float) else str(gold)


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
