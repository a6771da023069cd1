"""Calls of a user's code that may raise anything or never end: tools and environments."""

import asyncio
import ctypes
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from trl.trainer.utils import start_event_loop_in_daemon

# Beyond the time limit, for an event loop to say that no coroutine keeps it
_SLACK_SECONDS = 5.0


_SHARED = SimpleNamespace()
"""Has the event loop of all coroutines that no trainer runs, in which clients that are kept between calls go on."""


class TimedOut(Exception):
    """A call did not end within the time limit."""


class UserCalls:
    """
    Calls functions one after another in one thread, which all of them share: what belongs to a thread, such as a
    connection of sqlite3, can be kept between them.

    A call that does not end is left behind in its thread, which no exit of the process waits for, and the next ones get
    a new thread. Python code in it is ended by an exception; what waits in a library is first ended when it returns.

    Args:
        seconds (`float`): A call may take; as many as Python can wait for where there are more.
        owner (*optional*): A trainer of TRL, whose event loop coroutines share; default: that of the process.
    """

    def __init__(self, seconds: float, owner: Any = _SHARED) -> None:
        self.seconds, self._owner = min(seconds, threading.TIMEOUT_MAX / 2), owner
        self.abandoned = 0
        """Threads that were left behind."""
        self._jobs: SimpleQueue[Any] | None = None
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], Any], limited: bool = True) -> Any:
        """What the function returns. Raises what it raises, and with `limited` [`TimedOut`]."""
        if self._jobs is None:
            self._jobs = SimpleQueue()
            self._thread = threading.Thread(target=_work, args=(self._jobs,), daemon=True, name="tools")
            self._thread.start()
        future: Future[Any] = Future()
        self._jobs.put((future, function))
        try:
            return future.result(self.seconds if limited else None)
        except FutureTimeout:
            if future.done():  # the error is the function's own, or it ended at the last moment
                return future.result()
            self._abandon()
            raise TimedOut(f"did not end within {self.seconds:g} seconds") from None

    def gather(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """What each coroutine returns or raises, in order; they run together, in an event loop that all calls share.
        Where one of them keeps it for ever there is a new one, for those that had not begun too."""
        found: dict[int, Any] = {}
        rest = list(range(len(coroutines)))
        while rest:
            loop, futures = _loop_of(self._owner), {i: Future[Any]() for i in rest}
            tasks = [asyncio.run_coroutine_threadsafe(_run(coroutines[i], futures[i]), loop) for i in rest]
            late = wait(futures.values(), self.seconds).not_done
            rest = [i for i in rest if futures[i].cancel()]  # what has not begun
            if late and not self._loop_answers():
                _start_loop(self._owner)
            for i in futures.keys() - set(rest):
                ended = futures[i].done()
                found[i] = futures[i].result() if ended else TimedOut(f"did not end within {self.seconds:g} seconds")
            for task in tasks:
                task.cancel()
        return [found[i] for i in range(len(coroutines))]

    def _loop_answers(self) -> bool:
        """Whether nothing keeps the event loop."""
        answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._owner.async_loop)
        return bool(wait([answer], _SLACK_SECONDS).done)

    def _abandon(self) -> None:
        assert self._jobs is not None
        assert self._thread is not None
        assert self._thread.ident is not None
        self._jobs.put(None)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit))
        self._jobs = self._thread = None
        self.abandoned += 1


def start_coroutine(coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
    """Begin what no time limit ends, in the event loop of the process."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop_of(_SHARED))


def _loop_of(owner: Any) -> asyncio.AbstractEventLoop:
    if not hasattr(owner, "async_loop"):
        _start_loop(owner)
    loop: asyncio.AbstractEventLoop = owner.async_loop
    return loop


def _start_loop(owner: Any) -> None:
    owner.async_loop_thread, owner.async_loop, owner.async_loop_ready_event = start_event_loop_in_daemon("tools")
    owner.async_loop_ready_event.wait()


async def _run(coroutine: Coroutine[Any, Any, Any], future: "Future[Any]") -> None:
    """Give `future` what it returns or raises, unless that was cancelled before. What would end the event loop, such as
    `sys.exit`, is an error like others."""
    if not future.set_running_or_notify_cancel():
        return
    result: Any
    try:
        result = await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        result = RuntimeError(repr(error))
    except BaseException as error:  # noqa: BLE001  (a user's code may raise anything)
        result = error
    future.set_result(result)


def _work(jobs: "SimpleQueue[Any]") -> None:
    while (job := jobs.get()) is not None:
        future, call = job
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  (a user's code may raise anything, `sys.exit` too)
            future.set_exception(error)
        del job, future, call  # what they hold is not to live until the next one
