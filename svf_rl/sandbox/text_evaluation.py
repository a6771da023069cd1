"""What libraries evaluate of a text: sympy's `parse_expr` calls Python's `eval`."""

from collections.abc import Callable
from types import CodeType
from typing import Any

import sympy
from sympy.parsing import sympy_parser

_FUNCTIONS = frozenset({"sqrt", "cbrt", "root"})  # of sympy, which are no classes


def only_arithmetic_is_evaluated() -> None:
    """
    Let sympy evaluate its own classes and constants and nothing else.

    math-verify passes plain text to `parse_expr`. Its pattern accepts digits and operators and no letters, so that
    nothing can be called. This check also holds if a release widens the pattern, or if sympy turns a piece of text into
    an expression; scorers of reasoning-gym pass a model's answer as it is.
    """
    evaluate: Callable[..., Any] = sympy_parser.eval_expr

    def checked(code: str | CodeType, local_dict: dict[str, Any], global_dict: dict[str, Any]) -> Any:
        compiled = code if isinstance(code, CodeType) else compile(code, "<text>", "eval")
        if any(isinstance(constant, CodeType) for constant in compiled.co_consts):
            raise ValueError("the text holds a function")
        for name in compiled.co_names:  # of variables and of attributes
            known = name in _FUNCTIONS or isinstance(getattr(sympy, name, None), type | sympy.Basic)
            if name.startswith("_") or not (known or isinstance(local_dict.get(name), sympy.Basic)):
                raise ValueError(f"the text names {name}")
        return evaluate(code, local_dict, global_dict)

    sympy_parser.eval_expr = checked
