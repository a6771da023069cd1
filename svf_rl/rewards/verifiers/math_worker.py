"""The worker process of the `math` verifier: symbolic equality by math-verify, under a hard time-out.

It imports math-verify once and forks a child that makes the checks (`svf_rl/sandbox/supervised_child.py`).

A request is a line `{"gold": text, "prediction": text, "timeout": seconds, "nonce": text}`, both texts in LaTeX. The
reply is `{"outcome": ..., "nonce": text}`:

- "equal", "different";
- "late": reading the prediction, or comparing it, took longer than `timeout`; "crashed": it made the child crash, as
  what is nested too deeply for a library in C can;
- "gold late", "gold crashed": reading the gold alone did;
- "died": two children, one after the other, were killed from outside or did not get to run, which says nothing about
  the answers.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex

from svf_rl.sandbox.supervised_child import CRASHED, LATE, serve_requests
from svf_rl.sandbox.text_evaluation import only_arithmetic_is_evaluated

# Two numbers that differ by more than this share are different, even where they round to the same decimals.
RELATIVE_TOLERANCE = 1e-3

_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_CONVERSION = ConversionConfig(lowercase_symbols=False)


def main() -> None:
    """Answer requests until the standard input ends."""
    logging.disable(logging.WARNING)
    # Let sympy import and build, once for all children, what it otherwise does at first use.
    for gold, prediction in (
        ("2x + 4y = 3", "y = 3/4 - x/2"),
        (r"\tan^2 y + 1", r"\sec^2 y"),
        ("0<x<1", "(0,1)"),
    ):
        _equal(_read(gold), _read(prediction))
    only_arithmetic_is_evaluated()
    serve_requests(_answer, _reply)


def _answer(request: dict[str, Any]) -> Iterator[bool]:
    """Says something when the reference is read, and then whether the two are equal."""
    equal = False
    # A model's answer must not end the child: what cannot be computed is not equal to anything.
    with suppress(Exception, RecursionError, MemoryError):
        gold = _read(request["gold"])
        yield True
        equal = _equal(gold, _read(request["prediction"]))
    yield equal


def _reply(said: list[bool], why: str) -> dict[str, Any]:
    if why in (LATE, CRASHED) and not said:
        return {"outcome": f"gold {why}"}
    return {"outcome": why or ("equal" if said[-1] else "different")}


@lru_cache(maxsize=512)
def _read(text: str) -> Any:
    """
    What latex2sympy, math-verify's reader, makes of `text`, all of it: its grammar has no rule for a part.

    Kept, since it takes most of a check: a gold answer comes again with each completion of its prompt, and completions
    of a prompt often have the same answer.
    """
    plain = normalize_latex(text, _NORMALIZATION)
    is_real = not should_treat_as_complex(plain)
    return latex2sympy(plain, is_real=is_real, normalization_config=None, conversion_config=_CONVERSION)


def _equal(gold: Any, prediction: Any) -> bool:
    if _is_infinite_beside_a_list(gold, prediction) or _is_infinite_beside_a_list(prediction, gold):
        return False
    if verify(gold, prediction, timeout_seconds=None) and not _far_apart(gold, prediction):
        return True
    return _difference_vanishes(gold, prediction)


def _is_infinite_beside_a_list(one: Any, other: Any) -> bool:
    """math-verify considers a calculation with infinity equal to every set."""
    infinite = isinstance(one, sympy.Expr) and one.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
    return infinite and isinstance(other, sympy.Set) and len(other.args) != 1


def _difference_vanishes(one: Any, other: Any) -> bool:
    """Symbolic equality where math-verify has none: it compares a lone variable by its name, and calculates with the
    imaginary unit as with a variable."""
    if not isinstance(one, sympy.Expr) or not isinstance(other, sympy.Expr):
        return False
    unit = {symbol: sympy.I for symbol in one.free_symbols | other.free_symbols if str(symbol) == "i"}
    if not unit and not isinstance(one, sympy.Symbol) and not isinstance(other, sympy.Symbol):
        return False
    return bool(sympy.simplify(sympy.expand((one - other).subs(unit))) == 0)


def _far_apart(one: Any, other: Any) -> bool:
    """Whether two numbers differ that math-verify considers equal because both are 0 at its absolute precision."""
    for value in (one, other):
        # a percentage is equal to its number, by convention
        if not isinstance(value, sympy.Expr) or value.free_symbols or value.has(sympy.UnevaluatedExpr):
            return False
    if one == 0 or other == 0 or one == other:
        return False
    ratio = sympy.N(one / other, 15)
    return bool(ratio.is_number and ratio.is_finite and abs(ratio - 1) > RELATIVE_TOLERANCE)


if __name__ == "__main__":
    main()
