r"""`dispatch_label`: the completion assigns a prompt to the right kind of task.

The label is the content of the first `\boxed{...}`, as in the reference implementation of the prompt dispatch of
Transformer² (arXiv 2501.06252): what a model writes after its verdict does not change it.
"""

import re
from collections.abc import Sequence
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.references import reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier

LABELS = ("code", "math", "reasoning", "other")
# Other words for the same, as models write them
ALIASES = {
    "coding": "code",
    "programming": "code",
    "maths": "math",
    "mathematics": "math",
    "mathematical": "math",
    "reason": "reasoning",
    "logic": "reasoning",
    "logical reasoning": "reasoning",
    "others": "other",
    "none": "other",
}

_BOX = re.compile(r"\\boxed\s{0,8}\{([^{}]{0,100}|[^{}]{0,20}\{[^{}]{0,100}\}[^{}]{0,20})\}")


def read_reference(reference: Any, *, labels: Sequence[str] | None = None, **_: Any) -> str:
    """The label of a reference. Raises `SVFError` without one, and for labels that no completion can name."""
    known = LABELS if labels is None else check_labels(labels)
    expected = _label(reference_text("dispatch_label", reference), known)
    if expected not in known:
        raise SVFError(f"dispatch_label: the answer {shorten(reference)} is not one of {', '.join(known)}")
    return expected


def check_labels(labels: Any) -> tuple[str, ...]:
    """Labels in place of `LABELS`. Raises `SVFError` for fewer than two, or one that would not be read as it stands."""
    if not isinstance(labels, list | tuple) or len(labels) < 2 or len(set(map(str, labels))) < len(labels):
        raise SVFError(f"the classes of dispatch must be at least two different names, not {shorten(labels)}")
    for label in labels:
        if not isinstance(label, str) or not label or _label(label, labels) != label or len(label) > 64:
            raise SVFError(f"class {shorten(label)}: name it by lower-case words, as in word_sorting")
    return tuple(labels)


@verifier("dispatch_label", check_reference=read_reference)
def dispatch_label(completion: str, reference: Any, *, labels: list[str] | None = None) -> Verdict:
    r"""Compare the label in the first `\boxed{}` with the reference. Case, white space and `\text{}` do not count, and
    `ALIASES` are read as the label that they mean.

    Args:
        labels (`list[str]`, *optional*): the classes, in lower case; default: code, math, reasoning and other.
    """
    known = LABELS if labels is None else labels
    expected, got = read_reference(reference, labels=labels), _boxed(completion, known)
    if got is None:
        return Verdict(False, None, r"no \boxed{} in the completion")
    if got not in known:
        return Verdict(False, got, f"{shorten(got)} is not one of {', '.join(known)}")
    return Verdict(got == expected, got, "equal" if got == expected else f"{got} is not {expected}")


def read_label(completion: str, labels: Sequence[str] = LABELS) -> str | None:
    """The one of `labels` that the completion names, by the rules of `dispatch_label`; `None` without one."""
    label = _boxed(completion, labels)
    return label if label in labels else None


def _boxed(completion: str, labels: Sequence[str]) -> str | None:
    box = _BOX.search(completion)
    return None if box is None else _label(box[1], labels)


def _label(text: str, labels: Sequence[str]) -> str:
    text = re.sub(r"\\[a-zA-Z]+|[{}$*\"'`.]", " ", text)
    words = " ".join(text.split()).casefold()
    return words if words in labels else ALIASES.get(words, words)
