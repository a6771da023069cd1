"""A pool of workers stays within its size, replaces what dies, and outlives forks."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from svf_rl.errors import InfrastructureError
from svf_rl.sandbox.workers import WorkerPool

# answers with its process number; `sleep` waits, `end` ends it without an answer, `say` leaves a last word
ECHO = """
import json, os, sys, time
print("{}", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    time.sleep(request.get("sleep", 0))
    if "say" in request:
        sys.exit(request["say"])
    if request.get("end"):
        os._exit(1)
    reply = json.dumps({"pid": os.getpid(), "text": request.get("text"), "nonce": request["nonce"]})
    if request.get("forge") == "before":
        print(json.dumps({"text": "forged"}))
    print(reply, flush=True)
    if request.get("forge") == "later":
        print(reply, flush=True)
"""


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool("echo", [sys.executable, "-I", "-S", "-c", ECHO], 2)
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_request_is_answered_and_the_worker_kept(pool: WorkerPool) -> None:
    first, second = pool.call({"text": "é\n∑"}, 10), pool.call({"text": None}, 10)
    assert (first["text"], second["text"]) == ("é\n∑", None)
    assert first["pid"] == second["pid"]


def test_a_worker_that_says_what_it_was_not_asked_is_replaced(pool: WorkerPool) -> None:
    with pytest.raises(InfrastructureError, match=r"answered something else|said more"):
        pool.call({"forge": "before"}, 10)
    pid = pool.call({"text": "a"}, 10)["pid"]
    with suppress(InfrastructureError):  # where the second reply came together with the first
        pool.call({"text": "b", "forge": "later"}, 10)
    reply = pool.call({"text": "c"}, 10)
    assert reply["text"] == "c"
    assert reply["pid"] != pid


def test_a_large_request_and_reply_pass(pool: WorkerPool) -> None:
    text = "a" * (5 << 20)
    assert pool.call({"text": text}, 30)["text"] == text


def test_no_more_workers_than_its_size_whatever_asks(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: pool.call({"sleep": 0.02}, 10), range(24)))
    assert len({reply["pid"] for reply in replies}) == 2


def test_a_killed_worker_is_replaced_unseen(pool: WorkerPool) -> None:
    pid = pool.call({}, 10)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert pool.call({"text": "again"}, 10)["text"] == "again"


def test_a_worker_killed_at_work_is_replaced_and_the_request_repeated(pool: WorkerPool) -> None:
    pid = pool.call({}, 10)["pid"]
    timer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    timer.start()
    reply = pool.call({"sleep": 0.5, "text": "again"}, 10)
    assert reply["text"] == "again"
    assert reply["pid"] != pid
    timer.join()


@pytest.mark.parametrize("request_", [{"end": True}, {"say": "what it said last"}])
def test_a_request_that_ends_workers_is_an_infrastructure_error(pool: WorkerPool, request_: dict[str, object]) -> None:
    with pytest.raises(InfrastructureError, match="a worker of echo died") as raised:
        pool.call(request_, 10)
    if "say" in request_:
        assert "what it said last" in str(raised.value)
    assert pool.call({"text": "well"}, 10)["text"] == "well"


def test_a_worker_that_does_not_answer_is_killed(
    pool: WorkerPool, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    pid = pool.call({}, 10)["pid"]
    with pytest.raises(InfrastructureError, match=r"did not answer within 0\.3 s"):
        pool.call({"sleep": 60}, 0.3)
    assert eventually(lambda: not alive(pid))
    assert pool.call({"text": "well"}, 10)["text"] == "well"


def test_a_worker_that_does_not_read_is_killed(pool: WorkerPool) -> None:
    pid = pool.call({}, 10)["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert pool.call({"text": "a" * (1 << 20)}, 2)["pid"] != pid


def test_a_process_without_descriptors_is_an_infrastructure_error(pool: WorkerPool) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
    try:
        with pytest.raises(InfrastructureError, match=r"a worker of echo could not be started: .*Too many open files"):
            pool.call({}, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert pool.call({"text": "well"}, 10)["text"] == "well"


def test_a_worker_that_never_starts_is_an_infrastructure_error() -> None:
    pool = WorkerPool("nothing", ["sh", "-c", "echo no room >&2; exit 3"], 1)
    for _ in range(2):
        with pytest.raises(InfrastructureError, match="a worker of nothing died: no room"):
            pool.call({}, 10)


def test_an_interrupted_request_leaves_no_answer_for_the_next(pool: WorkerPool) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.call({"sleep": 1, "text": "old"}, 10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert pool.call({"text": "new"}, 10)["text"] == "new"


def test_close_ends_the_workers(pool: WorkerPool, eventually: Callable[[Callable[[], bool]], bool]) -> None:
    pid = pool.call({}, 10)["pid"]
    pool.close()
    assert eventually(lambda: not alive(pid))
    assert pool.call({}, 10)["pid"] != pid


def test_a_fork_has_workers_of_its_own(pool: WorkerPool) -> None:
    pid = pool.call({}, 10)["pid"]
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(pool.call({}, 10)["pid"] == pid)
            pool.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.call({}, 10)["pid"] == pid


def test_requests_leave_no_descriptors_behind(pool: WorkerPool) -> None:
    pool.call({}, 10)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (a count)
    for _ in range(5):
        with pytest.raises(InfrastructureError):
            pool.call({"end": True}, 10)
        pool.call({}, 10)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_workers_that_died_idle_are_not_asked(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(2) as threads:
        replies = list(threads.map(lambda _: pool.call({"sleep": 0.2}, 10), range(2)))
    for reply in replies:
        os.kill(reply["pid"], signal.SIGKILL)
    assert pool.call({"text": "again"}, 10)["text"] == "again"
