"""The sandbox is there or says so, and its own failures say nothing about a program."""

import itertools
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fakes import BUSY_WAIT

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify, verify_all
from svf_rl.sandbox import bubblewrap as sandbox
from svf_rl.sandbox.workers import WorkerPool, parallel_checks

ASSERTS = {"test_list": ["assert f(1) == 2", "assert f(5) == 6"]}
GOOD = "def f(x):\n    return x + 1\n"
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture
def fresh_pool() -> Iterator[None]:
    """Forget the sandbox that other tests use, so that this one is set up anew."""
    sandbox._pool.cache_clear()
    yield
    sandbox._pool.cache_clear()


def script(code: str) -> list[str]:
    """A process of its own that verifies: `GOOD` and `ASSERTS` are defined in it."""
    head = f"from svf_rl.rewards import verify, verify_all\nGOOD = {GOOD!r}\nASSERTS = {ASSERTS!r}\n"
    return [sys.executable, "-c", head + textwrap.dedent(code)]


# Without bubblewrap


@pytest.fixture
def no_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_pool: None) -> Path:
    """A machine without it, and an empty working directory."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def test_without_bubblewrap_nothing_runs_and_the_error_names_the_package(no_bubblewrap: Path) -> None:
    marker = no_bubblewrap / "ran"
    with pytest.raises(SVFError, match="install the package bubblewrap") as raised:
        verify("unit_tests", f"open({str(marker)!r}, 'w')\n{GOOD}", ASSERTS)
    assert "allow_unsandboxed: true" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not marker.exists()


def test_without_bubblewrap_a_batch_and_a_reward_say_the_same(no_bubblewrap: Path) -> None:
    with pytest.raises(SVFError, match="install the package bubblewrap"):
        verify_all("unit_tests", [GOOD] * 3, [ASSERTS] * 3)
    with pytest.raises(SVFError, match="install the package bubblewrap"):
        load_reward("unit_tests")(completions=[GOOD], answer=[ASSERTS])


def test_allow_unsandboxed_says_so_loudly_and_keeps_the_limits(
    no_bubblewrap: Path, caplog: pytest.LogCaptureFixture
) -> None:
    programs = {
        GOOD: True,
        "def f(x):\n    return x\n": False,
        "while True:\n    pass\n": False,
        "x = bytes(3 << 30)\n" + GOOD: False,
        "files = [open('/dev/null') for _ in range(1000)]\n" + GOOD: False,
        "import os\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)\n" + GOOD: False,
        "import os\nassert 'PATH' in os.environ\n" + GOOD: False,
        "import os\nos._exit(0)\n": False,
    }
    with caplog.at_level(logging.WARNING):
        verdicts = verify_all(
            "unit_tests", list(programs), [ASSERTS] * len(programs), timeout=2, allow_unsandboxed=True
        )
    assert [verdict.correct for verdict in verdicts] == list(programs.values())
    assert [record.levelname for record in caplog.records if "NO SANDBOX" in record.message] == ["WARNING"]
    lines = {"inputs": ["1"], "outputs": ["2"]}
    assert verify("unit_tests", "print(2)", lines, allow_unsandboxed=True).correct is True


def test_unsandboxed_programs_leave_nothing_behind(tmp_path: Path, eventually: Eventually) -> None:
    program = (
        "import os, time\n"
        "open('a_file_of_the_program', 'w').close()\n"
        "if not os.fork():\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n"
        "    os.execv('/bin/sleep', ['sleep', '98765.4321'])\n"
    )
    for name in ("bin", "cwd", "tmp"):
        (tmp_path / name).mkdir()
    code = f"""
        verdict = verify("unit_tests", {program + GOOD!r}, ASSERTS, timeout=5, allow_unsandboxed=True)
        print(verdict.correct, verdict.reason)
    """
    environment = {**os.environ, "PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        script(code), env=environment, cwd=tmp_path / "cwd", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True all tests passed\n", done.stderr
    assert list((tmp_path / "cwd").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert eventually(lambda: not running("98765.4321"))


def running(word: str) -> bool:
    """Whether a process has this word in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def test_bubblewrap_that_may_not_make_namespaces_is_an_error(no_bubblewrap: Path) -> None:
    fake = no_bubblewrap / "bin" / "bwrap"
    fake.write_text("#!/bin/sh\necho 'No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(SVFError, match=r"cannot make a sandbox here.*No permissions"):
        verify("unit_tests", GOOD, ASSERTS)
    assert verify("unit_tests", GOOD, ASSERTS, allow_unsandboxed=True).correct is True


@pytest.mark.parametrize(
    ("script_", "said"),
    [
        ("exec sleep 1000", "did not answer within"),
        ("while :; do echo nonsense; done", "nonsense|more than it was asked"),
        ("yes | tr -d '\\n'", "does not stop to talk|did not answer"),
        ("echo hello; exec sleep 1000", "said 'hello' at its start"),
        ("exit 0", "died"),
        ("printf 'a\\033[31m\\nred\\a\\n' >&2; exit 1", r"died: a ?\[31m red"),
    ],
)
def test_bubblewrap_that_is_none_is_one_clear_line_within_ten_seconds(
    no_bubblewrap: Path, monkeypatch: pytest.MonkeyPatch, script_: str, said: str
) -> None:
    fake = no_bubblewrap / "bin" / "bwrap"
    fake.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script_}\n")
    fake.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(SVFError, match=f"cannot make a sandbox here.*({said})") as raised:
        verify("unit_tests", GOOD, ASSERTS)
    assert time.monotonic() - start < 10
    assert str(raised.value).isprintable()


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(
    "before",
    [
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))",
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 30))",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ],
)
def test_what_the_run_itself_is_given_may_be_little(before: str) -> None:
    code = f"""
        import resource, signal
        {before}
        verdicts = verify_all("unit_tests", [GOOD, "f = abs", GOOD], [ASSERTS] * 3)
        verdicts += [verify("unit_tests", "print(2)", {{"inputs": ["1"], "outputs": ["2"]}})]
        print([verdict.correct for verdict in verdicts], verify("math", "\\\\boxed{{x+1-1}}", "x").correct)
    """
    done = subprocess.run(script(code), capture_output=True, text=True, timeout=60)
    assert done.stdout == "[True, False, True, True] True\n", done.stderr


@pytest.mark.usefixtures("bubblewrap")
def test_a_reason_is_one_printable_line() -> None:
    program = "def f(x):\n    raise ValueError('a\\x1b[31m\\nred\\u202e\\ud800' + 'a' * 10 ** 6)\n"
    reason = verify("unit_tests", program, ASSERTS).reason
    assert reason.isprintable()
    assert reason.startswith("ValueError: ")
    assert len(reason) < 1000


# Its own failures


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox whose supervisors can never start."""
    pool = WorkerPool("the sandbox", ["sh", "-c", "echo no memory >&2; exit 1"], 2)
    monkeypatch.setattr(sandbox, "_pool", lambda allow_unsandboxed: pool)


@pytest.mark.usefixtures("broken")
def test_a_sandbox_that_does_not_start_gives_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    verdict = verify("unit_tests", GOOD, ASSERTS)
    assert (verdict.correct, verdict.value, verdict.infrastructure) == (None, None, True)
    assert "no memory" in verdict.reason
    lenient = load_reward({"name": "unit_tests", "max_failed": 1.0})
    logged: dict[str, float] = {}
    with caplog.at_level(logging.WARNING):
        scores = lenient(completions=[GOOD] * 2, answer=[ASSERTS] * 2, log_metric=logged.__setitem__)
    assert scores == [None, None]
    assert logged == {"checks_failed/unit_tests": 1.0, "checks_raised/unit_tests": 0.0}
    assert "2 of 2 checks failed" in caplog.text


@pytest.mark.usefixtures("broken")
def test_too_many_failures_stop_the_run() -> None:
    with pytest.raises(SVFError, match=r"could not check 2 of 2 completions.*max_failed") as raised:
        load_reward("unit_tests")(completions=[GOOD] * 2, answer=[ASSERTS] * 2)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("bubblewrap")
def test_a_supervisor_killed_at_work_does_not_change_the_verdict(census: Callable[[], dict[int, str]]) -> None:
    slow = "import time\ntime.sleep(1)\n" + GOOD
    verify("unit_tests", GOOD, ASSERTS)
    killed = []

    def kill() -> None:
        time.sleep(0.5)
        for pid, name in census().items():
            if "bwrap" in name:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    verdicts = verify_all("unit_tests", [slow, slow, "def f(x):\n    return x\n"], [ASSERTS] * 3, timeout=20)
    thread.join()
    assert killed
    assert [(verdict.correct, verdict.infrastructure) for verdict in verdicts] == [
        (True, False),
        (True, False),
        (False, False),
    ]


@contextmanager
def signals_to_boxes(census: Callable[[], dict[int, str]], *numbers: int, every: float = 0.02) -> Iterator[None]:
    """Send signals in turn, from outside, to the first processes of the boxes that there are."""
    verify("unit_tests", GOOD, ASSERTS)
    stop = threading.Event()

    def send() -> None:
        turn = itertools.cycle(numbers)
        while not stop.wait(every):
            number = next(turn)
            for pid in census():
                with suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    if re.search(r"^NSpid:(\s+\d+){2}\s+1$", status, re.M):  # in a namespace within bubblewrap's
                        os.kill(pid, number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()
    assert verify("unit_tests", GOOD, ASSERTS).correct


BUSY = "import time\nwhile time.process_time() < .4: pass\n"
LINES = {"inputs": ["1"], "outputs": ["2"]}


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(("program", "reference"), [(BUSY + GOOD, ASSERTS), (BUSY + "print(2)", LINES)])
def test_a_program_that_is_killed_from_outside_has_no_verdict(
    census: Callable[[], dict[int, str]], program: str, reference: dict[str, Any]
) -> None:
    with signals_to_boxes(census, signal.SIGKILL):
        verdict = verify("unit_tests", program, reference, timeout=5)
    assert (verdict.correct, verdict.infrastructure) == (None, True)
    assert "killed from outside" in verdict.reason or "did not start" in verdict.reason


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(("program", "reference"), [(BUSY + GOOD, ASSERTS), (BUSY + "print(2)", LINES)])
def test_a_program_that_is_suspended_for_a_while_keeps_its_time(
    census: Callable[[], dict[int, str]], program: str, reference: dict[str, Any]
) -> None:
    start = time.monotonic()
    with signals_to_boxes(census, *[signal.SIGSTOP] * 6, signal.SIGCONT, every=0.2):
        verdict = verify("unit_tests", program, reference, timeout=0.6)
    assert verdict.reason == "all tests passed"
    assert time.monotonic() - start > 1


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
def test_a_program_that_is_suspended_for_long_has_no_verdict(census: Callable[[], dict[int, str]]) -> None:
    with signals_to_boxes(census, signal.SIGSTOP):
        verdict = verify("unit_tests", BUSY + GOOD, ASSERTS, timeout=1)
    assert (verdict.correct, verdict.infrastructure) == (None, True)


@pytest.mark.usefixtures("bubblewrap")
def test_a_supervisor_that_can_make_no_boxes_any_more_is_replaced(census: Callable[[], dict[int, str]]) -> None:
    verify_all("unit_tests", [GOOD] * 4, [ASSERTS] * 4)
    shown = census()
    children = {pid: _children(pid) for pid in shown}
    supervisors = [pid for box in shown if "bwrap" in shown[box] for pid in children[box] if "python" in shown[pid]]
    makers = [pid for supervisor in supervisors for pid in children[supervisor]]
    assert makers
    for pid in makers:
        os.kill(pid, signal.SIGKILL)
    verdicts = verify_all("unit_tests", [GOOD] * 6, [ASSERTS] * 6)
    assert [verdict.reason for verdict in verdicts] == ["all tests passed"] * 6


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []


@pytest.mark.usefixtures("bubblewrap")
def test_pairs_that_are_left_when_the_time_is_over_are_not_run() -> None:
    pairs = {"inputs": ["1"] * 30, "outputs": ["2"] * 30}
    start = time.monotonic()
    verdict = verify("unit_tests", "import time\ntime.sleep(0.3)\nprint(2)\n", pairs, share=True, timeout=0.5)
    assert time.monotonic() - start < 10
    assert verdict.correct is False
    assert verdict.score is not None
    assert 0 < verdict.score < 0.5
    assert verdict.reason.startswith("timed out")


@pytest.mark.usefixtures("bubblewrap")
def test_many_pairs_take_no_time_from_each_other() -> None:
    pairs = {"inputs": [str(number) for number in range(120)], "outputs": [str(number + 1) for number in range(120)]}
    assert verify("unit_tests", "print(int(input()) + 1)", pairs, timeout=0.2).correct is True


@pytest.mark.usefixtures("bubblewrap")
def test_pairs_on_a_busy_machine_take_no_time_from_each_other() -> None:
    cores = len(os.sched_getaffinity(0))
    hog = [sys.executable, "-c", BUSY_WAIT]
    busy = [subprocess.Popen(hog, start_new_session=True) for _ in range(12 * cores)]
    pairs = {"inputs": [str(number) for number in range(12)], "outputs": [str(number + 1) for number in range(12)]}
    program = "import time\nwhile time.process_time() < .05: pass\nprint(int(input()) + 1)"
    try:
        verdict = verify("unit_tests", program, pairs, timeout=0.1)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert verdict.reason == "all tests passed"


@pytest.mark.parametrize(
    "options",
    [{"timeout": "10"}, {"timeout": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"memory_mb": 1.5}],
)
def test_limits_that_are_none_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(SVFError, match=f"unit_tests: {next(iter(options))} must be a"):
        verify("unit_tests", GOOD, ASSERTS, **options)


# Where and by whom it is used


@pytest.mark.usefixtures("bubblewrap")
def test_any_thread_may_verify() -> None:
    programs = [f"def f(x):\n    return x + {number % 2}\n" for number in range(32)]
    with ThreadPoolExecutor(16) as threads:
        verdicts = list(threads.map(lambda program: verify("unit_tests", program, ASSERTS), programs))
    assert [verdict.correct for verdict in verdicts] == [bool(number % 2) for number in range(32)]


@pytest.mark.usefixtures("bubblewrap", "fresh_pool")
def test_threads_that_come_first_share_one_pool(census: Callable[[], dict[int, str]]) -> None:
    before = len([name for name in census().values() if "bwrap" in name])
    gate = threading.Barrier(8)

    def first(_: int) -> bool | None:
        gate.wait()
        return verify("unit_tests", GOOD, ASSERTS).correct

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(first, range(8)))
    # bubblewrap is two processes: one outside, and the first inside
    assert len([name for name in census().values() if "bwrap" in name]) - before <= 2 * parallel_checks()


@pytest.mark.usefixtures("bubblewrap")
def test_a_forked_process_may_verify() -> None:
    code = """
        import os
        assert all(verdict.correct for verdict in verify_all("unit_tests", [GOOD] * 4, [ASSERTS] * 4))
        child = os.fork()
        right = verify_all("unit_tests", [GOOD, "f = 1"], [ASSERTS] * 2)
        assert [verdict.correct for verdict in right] == [True, False]
        if child:
            raise SystemExit(os.waitpid(child, 0)[1])
    """
    done = subprocess.run(script(code), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("bubblewrap")
def test_a_careful_umask_does_not_matter() -> None:
    done = subprocess.run(
        script('print(verify("unit_tests", GOOD, ASSERTS).correct)'), capture_output=True, text=True, umask=0o077
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_unprivileged_user_may_verify() -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    interpreter = next(
        (
            path
            for path in (sys.executable, shutil.which("python3.11"), "/usr/bin/python3")
            if path and _runs(path, nobody)
        ),
        None,
    )
    if interpreter is None:
        pytest.skip("no interpreter here that another user may run with the package and tqdm")
    hostile = "import os\nassert os.listdir('/home') or os.fork() or open('/etc/passwd').read()\n" + GOOD
    bomb = "import os, time\nfor _ in range(200):\n    if not os.fork():\n        time.sleep(60)\n" + GOOD
    code = f"""
        verdicts = verify_all("unit_tests", [GOOD, {hostile!r}, {bomb!r}, GOOD], [ASSERTS] * 4, timeout=3)
        print([verdict.correct for verdict in verdicts], [verdict.reason for verdict in verdicts])
    """
    done = subprocess.run(
        [interpreter, *script(code)[1:]], user=nobody, group=nobody, extra_groups=[], cwd="/", capture_output=True,
        text=True, timeout=120, env=_environment(),
    )  # fmt: skip
    assert done.stdout.startswith("[True, False, False, True]"), done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _runs(interpreter: str, user: int) -> bool:
    try:
        done = subprocess.run(
            [interpreter, "-c", "import sys, tqdm, svf_rl.rewards; assert sys.version_info >= (3, 11)"],
            user=user, group=user, extra_groups=[], cwd="/", capture_output=True,
            env=_environment(),
        )  # fmt: skip
    except PermissionError:
        return False
    return done.returncode == 0


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process_behind(number: int, eventually: Eventually) -> None:
    seconds = f"87654.{number}{os.getpid()}"
    code = f"""
        program = "import subprocess\\nsubprocess.run(['/bin/sleep', '{seconds}'])\\n"
        verify_all("unit_tests", [program] * 3, [ASSERTS] * 3, timeout=2)
    """
    process = subprocess.Popen(script(code), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: running(seconds))
        process.send_signal(number)
        assert process.wait(20) == -number
        assert eventually(lambda: not running(seconds))
    finally:
        process.kill()
        process.wait()
