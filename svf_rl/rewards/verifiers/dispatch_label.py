r"""`dispatch_label`: the completion assigns a prompt to the right kind of task.

The label is the content of the first `\boxed{...}`, as in the reference implementation of the prompt dispatch of
Transformer² (arXiv 2501.06252): what a model writes after its verdict does not change it.
"""

import re
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


def read_reference(reference: Any) -> str:
    """The label of a reference. Raises `SVFError` without one."""
    expected = _label(reference_text("dispatch_label", reference))
    if expected not in LABELS:
        raise SVFError(f"dispatch_label: the answer {shorten(reference)} is not one of {', '.join(LABELS)}")
    return expected


@verifier("dispatch_label", check_reference=read_reference)
def dispatch_label(completion: str, reference: Any) -> Verdict:
    r"""Compare the label in the first `\boxed{}` with the reference: code, math, reasoning or other. Case, white space
    and `\text{}` do not count, and `ALIASES` are read as the label that they mean."""
    expected, got = read_reference(reference), _boxed(completion)
    if got is None:
        return Verdict(False, None, r"no \boxed{} in the completion")
    if got not in LABELS:
        return Verdict(False, got, f"{shorten(got)} is not one of {', '.join(LABELS)}")
    return Verdict(got == expected, got, "equal" if got == expected else f"{got} is not {expected}")


def read_label(completion: str) -> str | None:
    """The one of `LABELS` that the completion names, by the rules of `dispatch_label`; `None` without one."""
    label = _boxed(completion)
    return label if label in LABELS else None


def _boxed(completion: str) -> str | None:
    box = _BOX.search(completion)
    return None if box is None else _label(box[1])


def _label(text: str) -> str:
    text = re.sub(r"\\[a-zA-Z]+|[{}$*\"'`.]", " ", text)
    words = " ".join(text.split()).casefold()
    return ALIASES.get(words, words)
