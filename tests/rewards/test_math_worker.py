r"""`math` survives what completions hold: its workers are killed and replaced, and stay small."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fakes import BUSY_WAIT

from svf_rl.rewards import verify, verify_all
from svf_rl.rewards.verifiers.math import _WORKER, _workers

ENDLESS = {
    "power tower": "9**9**9**9",
    "power tower in LaTeX": "9^{9^{9^{9}}}",
    "factorial tower": "((((9!)!)!)!)",
    "huge power": "10^{10^{10}}",
    "huge sum": r"\sum_{k=1}^{10^{10}} \frac{1}{k^k}",
    "hard integral": r"\int_0^1 x^{x^{x^x}} dx",
    "huge binomial": r"\binom{10^9}{5\cdot 10^8}",
    "huge expansion": "(x+y+z+w)^{200}",
    "many brackets": "(" * 1900,
}
HOSTILE = {
    "division by zero": r"\boxed{\frac{1}{0}}",
    "1 MB of brackets": "(" * 10**6,
    "1 MB of braces": "{" * 10**6,
    "1 MB of boxes": r"\boxed{" * 150_000,
    "1 MB of dollars": "$" * 10**6,
    "1 MB of formulas": "$1$ " * 250_000,
    "1 MB of digits": "1" * 10**6,
    "a box of digits": r"\boxed{" + "9" * 1900 + "}",
    "1 MB of statements": "answer is " * 100_000,
    "1 MB of backslashes": "\\" * 10**6,
    "1 MB of white space": " \n" * 500_000,
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 200 + "1" + "}" * 200 + "}",
    "nested braces": r"\boxed{" + "{" * 990 + "5" + "}" * 990 + "}",
    "nested brackets": r"\boxed{" + "(" * 990 + "x" + ")" * 990 + "}",
    "a chain of powers": r"\boxed{" + "x^" * 900 + "2}",
    "a chain of roots": r"\boxed{" + r"\sqrt " * 300 + "2}",
    "a chain of equations": r"\boxed{" + "x=" * 900 + "1}",
    "zero bytes": "\0" * 1000,
    "a lone surrogate": "\\boxed{\udc80}",
}


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_endless_comparison_is_cut_off_and_wrong(answer: str) -> None:
    verdict = verify("math", rf"\boxed{{{answer}}}", "x^2 + 5", timeout=0.5)
    assert verdict.correct is False
    assert verdict.reason.startswith("timed out")


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_wrong(completion: str) -> None:
    start = time.process_time()
    assert verify("math", completion, "x^2 + 5", timeout=0.5).correct is False
    assert time.process_time() - start < 2


def test_a_memory_bomb_fails_in_its_worker_alone() -> None:
    completions = [r"\boxed{\prod_{k=1}^{3000000} k^{k}}", r"\boxed{7}"]
    assert [verdict.correct for verdict in verify_all("math", completions, ["5", "7"], timeout=3)] == [False, True]


@pytest.mark.parametrize("code", ["__import__('os').system('touch {}')", "().__class__", "open('{}', 'w')"])
def test_text_is_never_run_as_code(code: str, tmp_path: Path) -> None:
    code = code.format(tmp_path / "made")
    for completion in (code, rf"\boxed{{{code}}}", f"The answer is {code}", rf"The answer is \text{{{code}}} 3"):
        assert verify("math", completion, "5").correct is False
    assert not list(tmp_path.iterdir())


def test_a_reference_that_is_itself_endless_is_not_scorable() -> None:
    gold = "10^{10^{10^{10}}} + 9^{9^{9^{9}}}"
    verdict = verify("math", r"\boxed{5}", rf"\int_0^1 {gold} \binom{{10^{{9}}}}{{10^8}} dx", timeout=0.5)
    assert verdict.correct is not True
    assert verify("math", rf"\boxed{{{gold}}}", gold, timeout=0.5).correct


def test_what_hangs_does_not_stop_its_neighbours() -> None:
    completions = [r"\boxed{x + 5 - 5}", r"\boxed{9**9**9**9}"] * 3
    correct = [verdict.correct for verdict in verify_all("math", completions, ["x"] * 6, timeout=0.3)]
    assert correct == [True, False] * 3


def test_it_works_from_any_thread() -> None:
    correct = []

    def check(number: int) -> None:
        correct.append(verify("math", rf"\boxed{{{number} + 1 - 1}}", str(number)).correct)

    threads = [threading.Thread(target=check, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert correct == [True] * 8


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _supervisors() -> list[int]:
    return [worker._process.pid for worker in _workers._idle]


def test_killed_workers_are_replaced() -> None:
    assert verify("math", r"\boxed{x+1-1}", "x").correct
    for supervisor in _supervisors():
        os.kill(supervisor, signal.SIGKILL)
    assert verify("math", r"\boxed{y+1-1}", "y").correct
    for supervisor in _supervisors():
        for child in _children(supervisor):
            os.kill(child, signal.SIGKILL)
    assert verify("math", r"\boxed{z+1-1}", "z").correct


@contextmanager
def signals_to_children(number: int) -> Iterator[None]:
    """Send a signal to all children that compare, again and again."""
    assert verify("math", r"\boxed{x+1-1}", "x").correct
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            for supervisor in _busy_supervisors():
                for child in _children(supervisor):
                    with suppress(ProcessLookupError):
                        os.kill(child, number)
            time.sleep(0.01)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()
    for child in (child for supervisor in _supervisors() for child in _children(supervisor)):
        os.kill(child, signal.SIGKILL)  # one may be stopped
    assert verify("math", r"\boxed{x+1-1}", "x").correct


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_child_that_is_killed_or_stopped_says_nothing_about_the_answer(number: int) -> None:
    """Whoever does it from outside, as a machine out of memory does, makes no answer wrong."""
    with signals_to_children(number):
        verdict = verify("math", r"\boxed{9**9**9**9}", "5", timeout=20 if number == signal.SIGKILL else 0.2)
    assert verdict.correct is None
    assert verdict.infrastructure


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_an_answer_that_crashes_its_child_is_wrong(number: int) -> None:
    """As one can that is nested too deeply for a library in C, or too large for its memory."""
    with signals_to_children(number):
        verdict = verify("math", r"\boxed{9**9**9**9}", "5", timeout=20)
    assert not verdict.infrastructure
    assert verdict.correct is False or "the reference" in verdict.reason  # where the signal came before it was read


def test_waiting_for_a_processor_is_no_failure() -> None:
    """On a machine so busy that a check takes many times as long, right is right and what never ends is wrong."""
    cores = len(os.sched_getaffinity(0))
    hog = [sys.executable, "-c", BUSY_WAIT]
    busy = [subprocess.Popen(hog, start_new_session=True) for _ in range(12 * cores)]
    try:
        completions, golds = [r"\boxed{9**9**9**9}", r"\boxed{x+1-1}"] * cores, ["x^2 + 5", "x"] * cores
        verdicts = verify_all("math", completions, golds, timeout=0.3)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert [verdict.correct for verdict in verdicts] == [False, True] * cores


def _busy_supervisors() -> list[int]:
    found = []
    for child in _children(os.getpid()):
        try:
            if b"math_worker.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_no_child_outlives_a_supervisor_that_is_killed() -> None:
    worker = subprocess.Popen(_WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.stdin.write(b'{"gold": "5", "prediction": "9^{9^{9^{9}}}", "timeout": 60, "nonce": ""}\n')
    worker.stdin.flush()
    time.sleep(0.5)
    (child,) = _children(worker.pid)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    worker.stdin.close()
    worker.stdout.close()


def test_a_worker_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, svf_rl.rewards.verifiers.math_worker; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def _resident(pid: int) -> int:
    """MiB of a process and its children."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20 + sum(_resident(child) for child in _children(pid))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_memory_stays_flat_over_100_000_checks() -> None:
    def run(start: int, checks: int) -> None:
        gold = [f"x^{k % 97} + {k}" for k in range(start, start + checks)]
        boxed = [rf"\boxed{{{k} + x^{{{k % 97}}} + 1 - 1}}" for k in range(start, start + checks)]
        assert all(verdict.correct for verdict in verify_all("math", boxed, gold, progress=False))

    run(0, 5_000)
    before, here = [_resident(pid) for pid in _supervisors()], _resident(os.getpid())
    for start in range(5_000, 100_000, 5_000):
        run(start, 5_000)
    after = [_resident(pid) for pid in _supervisors()]
    assert len(after) == len(before)
    assert sum(after) < 1.5 * sum(before)
    assert _resident(os.getpid()) < here + sum(after) + 100
