"""Programs and answers checked a second.

    python benchmarks/verifiers.py [--repeats 5] [--out results.json]

Programs: the same small functions with three assertions each, by `unit_tests`; by one bubblewrap and one interpreter a
program; and by one interpreter a program without any box. Answers: the `math` verifier against math-verify called in
this process, without a time-out. All on as many threads or workers as there are cores.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import arguments, hardware, interleaved, ratio, report
from math_verify import parse
from math_verify import verify as equal

from svf_rl.rewards import verify_all
from svf_rl.sandbox import bubblewrap as sandbox
from svf_rl.sandbox.workers import parallel_checks

PROGRAMS, ANSWERS = 200, 400


def main() -> None:
    known = arguments(__doc__, __file__)
    codes = [f"def add(x):\n    return x + {number}\n" for number in range(PROGRAMS)]
    tests = [[f"assert add({x}) == {x + number}" for x in range(3)] for number in range(PROGRAMS)]
    scripts = ["\n".join([code, *lines]) for code, lines in zip(codes, tests, strict=True)]
    gold = [_answer(number) for number in range(ANSWERS)]
    stated = [f"so the answer is $\\boxed{{{_answer(number + number % 2)}}}$." for number in range(ANSWERS)]
    contenders: dict[str, Callable[[], Any]] = {
        "unit_tests": lambda: _all_right(verify_all("unit_tests", codes, [{"test_list": lines} for lines in tests])),
        "bubblewrap a program": lambda: _run_each(_bubblewrap(), scripts),
        "interpreter a program": lambda: _run_each([sys.executable, "-I", "-S"], scripts),
        "math": lambda: verify_all("math", stated, gold),
        "math-verify in process": lambda: [equal(parse(f"${g}$"), parse(s)) for g, s in zip(gold, stated, strict=True)],
    }
    times = interleaved(contenders, known.repeats or 5)
    counts = {name: ANSWERS if "math" in name else PROGRAMS for name in contenders}
    rates = {name: [counts[name] / seconds for seconds in values] for name, values in times.items()}
    ratios = {
        "unit_tests / bubblewrap a program": ratio(times, "bubblewrap a program", "unit_tests"),
        "unit_tests / interpreter a program": ratio(times, "interpreter a program", "unit_tests"),
        "math / math-verify in process": ratio(times, "math-verify in process", "math"),
    }
    rows = [{"contender": name, "checks a second": f"{sorted(r)[len(r) // 2]:.1f}"} for name, r in rates.items()]
    rows += [{"contender": name, "checks a second": f"{value:.2f} ×"} for name, value in ratios.items()]
    result = {"hardware": hardware("cpu"), "workers": parallel_checks(), "checks_a_second": rates, "ratios": ratios}
    report(result, rows, known.out)


def _answer(number: int) -> str:
    forms = (rf"\frac{{{number + 1}}}{{7}}", rf"{number}\sqrt{{3}}", f"x^2+{number}x+1", f"({number},{number + 2})")
    return forms[number // 2 % len(forms)]


def _bubblewrap() -> list[str]:
    interpreter, prefix = sandbox._interpreter()
    mounts = [*sandbox._system(), *prefix, "--tmpfs", "/tmp", "--chdir", "/tmp"]
    namespaces = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    return ["bwrap", *namespaces, *mounts, interpreter, "-I", "-S"]


def _run_each(command: Sequence[str], scripts: Sequence[str]) -> None:
    def run(script: str) -> None:
        subprocess.run([*command, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=True)

    with ThreadPoolExecutor(parallel_checks()) as pool:
        list(pool.map(run, scripts))


def _all_right(verdicts: Sequence[Any]) -> None:
    assert all(verdict.correct for verdict in verdicts), next(v.reason for v in verdicts if not v.correct)


if __name__ == "__main__":
    main()
