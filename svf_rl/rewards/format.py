r"""`format`: the completion has the required form; its content does not matter. A shaping reward, to add to another."""

import re

from svf_rl.errors import SVFError
from svf_rl.rewards.verifier import Verdict, verifier

# Named forms, for `pattern`; possessive (`*+`) or atomic (`(?>`), so that hostile text takes linear time. Python 3.11.2
# does not match a possessive group that looks ahead.
_NO_BOX, _SPACE = r"(?>(?:(?!\\boxed\b).)*)", r"\s*+"
PATTERNS = {
    # exactly one answer in a box
    "boxed": (
        _NO_BOX + r"\\boxed\s*+\{(?=\s*+(?:\\(?:text|mathrm|mathbf|textbf|mbox)\s*+\{)?+\s*+[^\s}])"
        r"(?=(?>(?:(?!\\boxed\b)[^}])*)\})" + _NO_BOX
    ),
    # reasoning in <think>, then the answer in <answer>, each once, nothing outside
    "think_answer": (
        _SPACE + r"<think>\s*+(?>(?:(?!</?(?:think|answer)>).)+)</think>"
        r"\s*+<answer>\s*+(?>(?:(?!</?(?:think|answer)>).)+)</answer>\s*+"
    ),
    # reasoning in <think>, then text
    "think": _SPACE + r"<think>\s*+(?>(?:(?!</?think>).)+)</think>\s*+(?=\S)(?>(?:(?!</?think>).)*)",
}


@verifier("format")
def format(completion: str, reference: None = None, *, pattern: str = "boxed", full: bool = True) -> Verdict:
    r"""
    Match the completion against a pattern.

    Args:
        pattern (`str`, *optional*, defaults to `"boxed"`): `"boxed"` (exactly one `\boxed{}`), `"think_answer"`
            (`<think>...</think><answer>...</answer>`), `"think"` (`<think>...</think>`, then text), or a regular
            expression of Python, in which a dot matches line breaks too. Nothing limits the time that your own
            expression takes on hostile text.
        full (`bool`, *optional*, defaults to `True`): the pattern must match the whole completion, not only a part.

    Raises:
        SVFError: the pattern is not a valid regular expression.
    """
    if not isinstance(pattern, str):
        raise SVFError(f"format: pattern must be text, got {pattern!r}")
    try:
        form = PATTERNS.get(pattern, pattern)
        if not full and pattern in PATTERNS:  # what may stand before would be read again at each place
            form = form.removeprefix(_NO_BOX).removeprefix(_SPACE)
        expression = re.compile(form, re.DOTALL)
    except re.error as error:
        known = ", ".join(PATTERNS)
        raise SVFError(
            f"format: pattern {pattern!r} is neither one of {known} nor a valid expression: {error}"
        ) from error
    match = expression.fullmatch(completion) if full else expression.search(completion)
    return Verdict(match is not None, None, "the form is right" if match else f"not of the form {pattern!r}")
