"""No hostile program passes, leaves anything behind, or stops the programs beside it.

The programs stand in `hostile/`, by what they try. Each passes if its attempt succeeds.
"""

import contextlib
import fcntl
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile import ending, forging, reaching_out, resources

from svf_rl.rewards import verify, verify_all

pytestmark = [pytest.mark.usefixtures("bubblewrap"), pytest.mark.timeout(120)]

ASSERTS = {"test_list": ["assert f(1) == 2", "assert f(5) == 6"]}
CHECK = {"test": "def check(candidate):\n    expected = 2\n    assert candidate(1) == expected\n", "entry_point": "f"}
LINES = {"inputs": ["1\n", "5\n"], "outputs": ["2\n", "6\n"]}
GOOD, WRONG = ending.RIGHT, ending.WRONG
SECONDS = 1.0
LEFT = "svf_rl_hostile_file"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Files, listeners and a secret of this machine, for programs to reach for."""
    folder = tmp_path_factory.mktemp("outside")
    folder.chmod(0o777)
    marker = folder / "marker"
    marker.write_text("a marker of the user")
    kinds = {
        "TCP": (socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0)),
        "UDP": (socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0)),
        "UNIX": (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
        "ABSTRACT": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0svf_rl_{os.getpid()}"),
    }
    listeners = {}
    for name, (family, kind, address) in kinds.items():
        listeners[name] = listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
    (folder / "socket").chmod(0o777)
    yield {
        "listeners": listeners,
        "folder": folder,
        "words": {
            "HOME": str(Path.home()),
            "MARKER": str(marker),
            "FOLDER": str(folder),
            "SECRET": os.environ["SVF_RL_HOSTILE_SECRET"],
            "TCP": str(listeners["TCP"].getsockname()[1]),
            "UDP": str(listeners["UDP"].getsockname()[1]),
            "UNIX": kinds["UNIX"][2],
            "ABSTRACT": f"svf_rl_{os.getpid()}",
            "ADDRESS": _own_address(),
        },
    }
    for listener in listeners.values():
        listener.close()


def _own_address() -> str:
    """An address of this machine that others know it by."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


@pytest.fixture(scope="module")
def idle(census: Callable[[], dict[int, str]], bubblewrap: None) -> int:
    """How many processes there are when nothing runs but each worker has run something."""
    slow = "import time\ntime.sleep(.3)\n" + GOOD
    assert all(verdict.correct for verdict in verify_all("unit_tests", [slow] * 8, [ASSERTS] * 8))
    return len(census())


@pytest.fixture(autouse=True)
def _nothing_is_left(
    outside: dict[str, Any],
    idle: int,
    census: Callable[[], dict[int, str]],
    eventually: Callable[[Callable[[], bool]], bool],
) -> Iterator[None]:
    files = sorted(outside["folder"].iterdir())
    descriptors = _open_descriptors()
    yield
    assert eventually(lambda: len(census()) <= idle), f"{idle} processes before, now {census()}"
    assert sorted(outside["folder"].iterdir()) == files
    for folder in (Path("/tmp"), Path("/"), Path("/usr"), Path("/dev/shm"), Path("/var/tmp"), Path.home(), Path.cwd()):
        assert not (folder / LEFT).exists()
    # a replaced worker may have the numbers of the old one
    assert eventually(lambda: _open_descriptors() <= descriptors + 4)
    for name, listener in outside["listeners"].items():
        with pytest.raises(BlockingIOError):
            _ = listener.recv(1) if name == "UDP" else listener.accept()


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def assert_fails(program: str, references: list[dict[str, Any]], **options: Any) -> None:
    """The program fails each reference as a wrong program does, and good programs beside it pass."""
    programs, wanted = [GOOD], [ASSERTS]
    for reference in references:
        programs += [program, GOOD]
        wanted += [reference, ASSERTS]
    verdicts = verify_all("unit_tests", programs, wanted, **{"timeout": SECONDS, **options})
    for verdict, reference in zip(verdicts[1::2], references, strict=True):
        assert verdict.correct is False, (verdict.correct, verdict.reason, reference)
        assert verdict.reason != "all tests passed"
    assert [verdict.reason for verdict in verdicts[::2]] == ["all tests passed"] * (len(references) + 1)


def named(*groups: dict[str, str]) -> list[Any]:
    return [pytest.param(text, id=name) for group in groups for name, text in group.items()]


def test_endless_programs() -> None:
    """All in one batch, as each of them takes the whole of its time."""
    programs = [text for program in ending.ENDLESS.values() for text in (program, GOOD)]
    verdicts = verify_all("unit_tests", programs, [ASSERTS] * len(programs), timeout=SECONDS)
    assert {verdict.reason for verdict in verdicts[1::2]} == {"all tests passed"}
    assert {
        name: verdict.correct for name, verdict in zip(ending.ENDLESS, verdicts[::2], strict=True)
    } == dict.fromkeys(ending.ENDLESS, False)


@pytest.mark.parametrize("program", named(ending.EXITS))
def test_ends_that_look_like_success(program: str) -> None:
    assert_fails(program, [ASSERTS, CHECK])


@pytest.mark.parametrize("attempt", named(ending.CPU_TIME))
def test_no_program_has_less_time_than_it_is_given(attempt: str) -> None:
    """What the kernel kills without a reason that the supervisor knows has no verdict."""
    lines = "".join(f"    {line}\n" for line in attempt.strip().splitlines())
    program = (
        f"import ctypes, os, resource\ntry:\n{lines}except (OSError, ValueError):\n    pass\n"
        "else:\n    while True:\n        pass\n" + WRONG
    )
    assert_fails(program, [ASSERTS, LINES], timeout=5)


def test_programs_see_their_limits() -> None:
    program = "import resource\ndef f(x):\n    return resource.getrlimit(resource.RLIMIT_CPU)[0] > 0\n"
    assert verify("unit_tests", program, {"test_list": ["assert f(1) is True"]}).correct


@pytest.mark.parametrize("program", named(ending.MALFORMED))
def test_malformed_programs(program: str) -> None:
    assert_fails(program, [ASSERTS], timeout=5)


@pytest.mark.parametrize("program", named(resources.MEMORY, resources.PROCESSES, resources.LIMITS, resources.TIME))
def test_more_than_its_share(program: str) -> None:
    assert_fails(program, [ASSERTS])


@pytest.mark.parametrize(
    "program", named(reaching_out.READING, reaching_out.WRITING, reaching_out.NETWORK, reaching_out.PRIVILEGES)
)
def test_reaching_out_of_the_box(program: str, outside: dict[str, Any]) -> None:
    for word, value in outside["words"].items():
        program = program.replace(f"@{word}@", value)
    compile(program, "<program>", "exec")
    assert_fails(program, [ASSERTS])


# What code would try that runs where the tests do, as a mistake in the reading of values could let it
IN_THE_JUDGE = {
    "starts a process": "os.fork()",
    "becomes a program": "os.execv('/bin/true', ['true'])",
    "kills the supervisor": "os.kill(os.getppid(), 9)",
    "limits the supervisor": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
    "holds a process": "os.pidfd_open(os.getppid())",
    "slows the supervisor": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "connects": "socket.socket()",
    "reads the supervisor's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "writes into other processes": "assert_(any(opens(f'/proc/{n}/mem') for n in range(1, 999) if n != os.getpid()))",
    "traces others": "assert_(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0)",
}


@pytest.mark.parametrize("attempt", IN_THE_JUDGE.values(), ids=IN_THE_JUDGE)
def test_code_beside_the_verdict_reaches_no_other_process(attempt: str) -> None:
    """The test is right exactly where the attempt fails; what it may reach, in a forked supervisor, are the link to
    the program and the end of the report."""
    test = (
        "import ctypes, os, resource, socket\nassert f(1) == 2\n"
        "def assert_(holds):\n    if not holds:\n        raise OSError\n"
        "def opens(path):\n    try:\n        return open(path, 'r+b')\n    except OSError:\n        return False\n"
        "own = [n for n in range(3, 99) if os.path.exists(f'/proc/self/fd/{n}')]\nassert len(own) <= 2\n"
        f"try:\n    {attempt}\nexcept OSError:\n    pass\nelse:\n    assert False"
    )
    verdict = verify("unit_tests", GOOD, {"test_list": [test]})
    assert verdict.reason == "all tests passed"


def test_a_program_locks_no_file_of_the_machine() -> None:
    """It may believe so: alone in its box, it needs no lock."""
    file = Path(json.__file__)
    program = (
        "import fcntl, json, time\nfile = open(json.__file__)\nfcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)\ntime.sleep(.3)\n"
    )
    with ThreadPoolExecutor(1) as thread:
        verdict = thread.submit(verify, "unit_tests", program + GOOD, ASSERTS, timeout=5)
        while not verdict.done():
            with file.open() as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.01)
    assert verdict.result().correct


# Each by itself: a forgery that suits one of them is enough.
LENIENT = [
    "assert f(1) == 2",
    "assert 2 == f(1)",
    "assert not f(1) != 2",
    "assert [f(1)] == [2] and (f(1),) == (2,)",
    "assert {f(1)} == {2}",
    "assert len({f(1), 2}) == 1",
    "assert set([f(1)]) == set([2])",
    "assert f(1) in [2]",
    "assert sorted([f(1)]) == [2]",
    "assert abs(f(1) - 2) < 1e-6",
    "assert round(f(1)) == 2",
    "assert isinstance(f(1), int) and f(1) == 2",
    "assert math.isclose(f(1), 2)",
    "import math\nassert math.isclose(f(1), 2)",
    "assert all(map(lambda x: f(x) == x + 1, [1, 5]))",
    "assert all(f(x) == x + 1 for x in [1, 5])",
    "try:\n    assert f(1) == 2\nexcept TypeError:\n    raise AssertionError",
]


@pytest.mark.parametrize(
    "program", named(forging.PRINTING, forging.EQUAL_TO_ALL, forging.PATCHING, forging.PROTOCOL, forging.BYTES)
)
def test_forged_results(program: str) -> None:
    """Neither where all tests count nor where one lenient test is all there is."""
    compile(program, "<program>", "exec")
    assert_fails(program, [ASSERTS, CHECK])


@pytest.mark.parametrize("program", named(forging.EQUAL_TO_ALL, forging.PATCHING))
def test_forged_results_of_lenient_tests(program: str) -> None:
    verdicts = verify_all(
        "unit_tests", [program] * len(LENIENT), [{"test_list": [test]} for test in LENIENT], timeout=SECONDS
    )
    assert {
        test: verdict.reason for test, verdict in zip(LENIENT, verdicts, strict=True) if verdict.correct is not False
    } == {}


@pytest.mark.parametrize(("program", "test"), forging.SUBSTITUTED.values(), ids=forging.SUBSTITUTED)
def test_a_name_of_a_module_means_no_other_module(program: str, test: str) -> None:
    """And what it might have done to the process that decides does not help the wrong programs behind it."""
    programs = [program, WRONG, WRONG, WRONG, WRONG, GOOD]
    wanted = [{"test_list": [test]}, *[ASSERTS] * 5]
    verdicts = verify_all("unit_tests", programs, wanted, timeout=SECONDS)
    assert [verdict.correct for verdict in verdicts] == [False] * 5 + [True]


@pytest.mark.parametrize(("program", "test"), forging.STREAMS.values(), ids=forging.STREAMS)
def test_what_is_inside_of_a_stream_leaves_no_test_undecided(program: str, test: str) -> None:
    assert_fails(program, [{"test_list": [test]}])


def test_a_value_that_crashes_the_tests_is_wrong() -> None:
    """A tuple's own hash goes as deep as the tuples do, and asks nobody how deep that may be."""
    program = (
        "class Deep(tuple):\n    def __hash__(self):\n        return 1\n"
        "def f(x):\n    made = [Deep()]\n    for _ in range(250_000):\n        made.append(Deep((made[-1],)))\n"
        "    held = {made[-1]: 1}\n    del Deep.__hash__\n    return [made, held]\n"
    )
    verdicts = verify_all("unit_tests", [program, GOOD], [ASSERTS] * 2, timeout=20)
    assert [verdict.correct for verdict in verdicts] == [False, True]
    assert "crashed" in verdicts[0].reason


@pytest.mark.parametrize("program", named(forging.VALUES))
def test_values_that_are_hard_to_pass(program: str) -> None:
    assert_fails(program, [ASSERTS, CHECK])


def resident(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes hold."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_programs_leave_memory_and_processes_flat(
    census: Callable[[], dict[int, str]], eventually: Callable[[Callable[[], bool]], bool], idle: int
) -> None:
    hostile = [*ending.EXITS.values(), *forging.EQUAL_TO_ALL.values(), *forging.PROTOCOL.values()]
    hostile = [program for program in hostile if "setrecursionlimit" not in program]
    rng = random.Random(0)
    measured = []
    for _ in range(20):
        programs = rng.choices([GOOD, WRONG, *hostile], [400, 100, *[100 / len(hostile)] * len(hostile)], k=500)
        verdicts = verify_all("unit_tests", programs, [ASSERTS] * 500, timeout=20, progress=False)
        assert [verdict.correct for verdict in verdicts] == [program == GOOD for program in programs]
        assert eventually(lambda: len(census()) <= idle)
        measured.append((resident([os.getpid()]), resident(census()), _open_descriptors()))
    (own, workers, descriptors), (own_after, workers_after, descriptors_after) = measured[1], measured[-1]
    assert own_after - own < 20 << 20, measured
    assert workers_after - workers < 20 << 20, measured
    assert descriptors_after <= descriptors, measured
