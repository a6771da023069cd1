"""The worker process of the `math` verifier: symbolic equality by math-verify, under a hard time-out.

This script is a supervisor: it imports math-verify once and forks a child that makes the checks one after the other.
Symbolic algebra may never end, and may run in C code that no signal handler interrupts, so the supervisor kills a child
that is late and forks the next. A child also ends after `CHECKS_A_CHILD` checks, so that sympy's caches stay small.

A request is a line `{"gold": text, "prediction": text, "timeout": seconds, "nonce": text}`, both texts in LaTeX. The
reply is `{"outcome": ..., "nonce": text}`:

- "equal", "different";
- "late": reading the prediction, or comparing it, took longer than `timeout`; "crashed": it made the child crash, as
  what is nested too deeply for a library in C can;
- "gold late", "gold crashed": reading the gold alone did;
- "died": two children, one after the other, were killed from outside, or neither ran nor waited for a processor for
  `WALL_FACTOR` times as long; this says nothing about the answers.

The time-out counts the child's CPU time, so that a busy machine does not make an answer wrong.
"""

import ctypes
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.parsing import sympy_parser

CHECKS_A_CHILD = 1000
WALL_FACTOR = 10
# The address space of a child: beyond it, an allocation fails, and with it the check of that one answer.
CHILD_BYTES = 2 << 30
# Two numbers that differ by more than this share are different, even where they round to the same decimals.
RELATIVE_TOLERANCE = 1e-3

PR_SET_PDEATHSIG = 1
# By an administrator, or by a machine out of memory
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GOLD_READ, LATE, CRASHED, DIED = b".", b"-", b"!", b""
_OUTCOMES = {b"1": "equal", b"0": "different", LATE: "late", CRASHED: "crashed", DIED: "died"}
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
    _only_arithmetic_is_evaluated()
    print("{}", flush=True)  # ready
    child = _Child()
    for line in sys.stdin.buffer:
        for _ in range(2):  # again with a new child where one died
            outcome = child.outcome(line)
            if outcome not in ("equal", "different") or child.checks >= CHECKS_A_CHILD:
                child.end()
                child = _Child()
            if outcome != "died":
                break
        print(json.dumps({"outcome": outcome, "nonce": json.loads(line)["nonce"]}), flush=True)
    child.end()


class _Child:
    """A forked process that makes checks; seen from the supervisor."""

    def __init__(self) -> None:
        self.checks = 0
        self._link, link = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._link.close()
            _serve(link)
        link.close()

    def outcome(self, line: bytes) -> str:
        """The outcome of a request, as the module describes them."""
        self.checks += 1
        timeout = json.loads(line)["timeout"]
        try:
            self._link.sendall(line)
            reply = self._receive(timeout)
            if reply == GOLD_READ:
                return _OUTCOMES[self._receive(timeout)]
        except ConnectionError:
            return "died"
        return f"gold {_OUTCOMES[reply]}" if reply in (LATE, CRASHED) else _OUTCOMES[reply]

    def end(self) -> None:
        """Kill and reap it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._link.close()

    def _receive(self, timeout: float) -> bytes:
        """One byte, `LATE`, `CRASHED`, or `DIED` where it was killed or does not get to run."""
        clock = ~self._pid << 3 | 2  # that of its CPU time, as the C library's `clock_getcpuclockid` forms it
        cpu_end, wall_end = time.clock_gettime(clock) + timeout, self._own_time() + WALL_FACTOR * timeout
        while (left := cpu_end - time.clock_gettime(clock)) > 0:
            if self._own_time() > wall_end:
                return DIED
            ready, _, _ = select.select([self._link], [], [], min(max(left, 0.01), timeout))
            if ready:
                with suppress(ConnectionError):  # the same as an end
                    if reply := self._link.recv(1):
                        return reply
                return self._why_ended()
        return LATE

    def _own_time(self) -> float:
        """Seconds on a clock that stands still while the child waits for a processor, where the kernel tells."""
        try:
            waited = int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            waited = 0.0
        return time.monotonic() - waited

    def _why_ended(self) -> bytes:
        """`DIED` where it was killed by what it cannot send itself; else what it was given is to blame."""
        ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        killed = ended is not None and ended.si_code != os.CLD_EXITED and ended.si_status in _FROM_OUTSIDE
        return DIED if killed else CRASHED


def _serve(link: socket.socket) -> NoReturn:
    """The life of a child."""
    # without this, a child in an endless computation would outlive its supervisor
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for limit, value in ((resource.RLIMIT_AS, CHILD_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        allowed = resource.getrlimit(limit)[1]
        lower = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(limit, (lower, lower))
    with link.makefile("rb") as lines:
        for line in lines:
            request = json.loads(line)
            try:
                gold = _read(request["gold"])
                link.sendall(GOLD_READ)
                equal = _equal(gold, _read(request["prediction"]))
            # A model's answer must not end the child: what cannot be computed is not equal to anything.
            except (Exception, RecursionError, MemoryError):  # noqa: BLE001
                equal = False
            link.sendall(b"1" if equal else b"0")
    os._exit(0)


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


def _only_arithmetic_is_evaluated() -> None:
    """
    Let sympy evaluate its own classes and constants and nothing else.

    math-verify passes plain text to `parse_expr`, which calls Python's `eval`. Its pattern accepts digits and operators
    and no letters, so that nothing can be called. This check also holds if a release widens the pattern, or if sympy
    turns a piece of text into an expression.
    """
    evaluate: Callable[..., Any] = sympy_parser.eval_expr

    def checked(code: str | CodeType, local_dict: dict[str, Any], global_dict: dict[str, Any]) -> Any:
        compiled = code if isinstance(code, CodeType) else compile(code, "<text>", "eval")
        if any(isinstance(constant, CodeType) for constant in compiled.co_consts):
            raise ValueError("the text holds a function")
        for name in compiled.co_names:  # of variables and of attributes
            if name.startswith("_") or not isinstance(getattr(sympy, name, None), type | sympy.Basic):
                raise ValueError(f"the text names {name}")
        return evaluate(code, local_dict, global_dict)

    sympy_parser.eval_expr = checked


if __name__ == "__main__":
    main()
