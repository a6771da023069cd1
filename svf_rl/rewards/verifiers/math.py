r"""`math`: the completion's answer is mathematically equal to the reference.

The rules of `math_text.py` find the answer. Two answers are equal when their normal forms are the same text, or by
math-verify's symbolic comparison, with the reference as its gold side. That comparison runs in worker processes
(`math_worker.py`), so that it works from any thread and a comparison that hangs is killed.

Where the benchmarks' graders differ from each other, the value decides: `2/4` is `1/2`, `3^2` is 9, `50\%` is 50 and
0.5. A decimal is equal to a fraction when they agree to six places: 0.33 is not 1/3. Lists and sets have no order;
pairs and intervals do.
"""

import sys
from pathlib import Path
from typing import Any

from svf_rl.errors import InfrastructureError, SVFError
from svf_rl.rewards.references import is_number, reference_text, shorten
from svf_rl.rewards.verifier import Verdict, verifier
from svf_rl.rewards.verifiers.math_text import (
    MOST_CHARACTERS,
    TAIL,
    find_answers,
    find_bases,
    normalize_answer,
    parse_readings,
)
from svf_rl.sandbox.workers import WorkerPool, parallel_checks

# How much longer than a check's own limits a worker may take: two attempts of two parts each, on a busy machine.
PATIENCE_FACTOR, PATIENCE_SECONDS = 50, 60.0

# Sympy's results must not depend on the order of its hash tables. -P: neither the working directory nor this folder,
# which has a math.py, may hide modules of the standard library.
_WORKER = ("env", "PYTHONHASHSEED=0", sys.executable, "-P", str(Path(__file__).with_name("math_worker.py")))
_workers = WorkerPool("math", _WORKER, parallel_checks())


def check_reference(reference: Any, *, timeout: float = 5.0) -> None:
    """Raises `SVFError` for a reference that is not text or has no answer, or an invalid time-out."""
    if not is_number(timeout) or not 0 < timeout <= 3600:
        raise SVFError(f"math: timeout must be a number of seconds above 0, got {timeout!r}")
    _gold(reference)


@verifier("math", waits=True, check_reference=check_reference)
def math(completion: str, reference: Any, *, timeout: float = 5.0) -> Verdict:
    r"""
    Compare mathematically.

    The reference is a bare answer (`\frac{3}{4}`, `x \in [1,2)`, `\text{Evelyn}`, `5`), a text with the answer in
    dollars, or a worked solution whose answer is in its last `\boxed{}` or after `####`.

    A completion whose comparison takes longer than `timeout` is wrong; where reading the reference alone takes longer,
    the completion is not scorable (unless its answer is the same text).

    Args:
        timeout (`float`, *optional*, defaults to `5.0`): seconds of CPU time to read the reference, and again to
            read the completion's answer and to compare.

    Raises:
        InfrastructureError: the workers died or could not be started.
    """
    gold, got = _gold(reference), find_answers(completion)
    shown = got[0] if got else None
    if got and {normalize_answer(text) for text in got} & {normalize_answer(text) for text in gold} - {""}:
        return Verdict(True, shown, "equal as text")
    if any(len(text) > MOST_CHARACTERS for text in got):
        return Verdict(False, shorten(shown), f"the answer is longer than {MOST_CHARACTERS} characters")
    if got and (expected := find_bases(gold[0])) and (named := find_bases(got[0])) and named != expected:
        return Verdict(False, shown, f"not in base {', '.join(expected)}")
    prediction = [reading for text in got for reading in parse_readings(text)] or [completion[-TAIL:]]
    request = {"gold": [r for text in gold for r in parse_readings(text)], "prediction": prediction, "timeout": timeout}
    outcome = _workers.call(request, PATIENCE_FACTOR * timeout + PATIENCE_SECONDS)["outcome"]
    match outcome:
        case "equal":
            return Verdict(True, shown, "equal")
        case "different":
            return Verdict(False, shown, f"not equal to {shorten(gold[0])}")
        case "late":
            return Verdict(False, shown, f"timed out: the comparison took longer than {timeout:g} s")
        case "gold late":
            return Verdict(None, shown, f"the reference {shorten(gold[0])} takes longer than {timeout:g} s to read")
        case _:
            raise InfrastructureError("two processes that compare answers died, or did not get to run")


def _gold(reference: Any) -> list[str]:
    """The readings of the reference's answer."""
    text = reference_text("math", reference, numbers=True).strip()
    marked = find_answers(text) if "boxed" in text or "fbox" in text or "####" in text else [text]
    if not marked or not any(reading.strip(" $.") for reading in marked):
        raise SVFError(f"math: the answer {shorten(reference)} is empty; leave such rows out of the data")
    if any(len(reading) > MOST_CHARACTERS for reading in marked):
        raise SVFError(f"math: the answer {shorten(reference)} is longer than {MOST_CHARACTERS} characters")
    return marked
