"""Functions that run in turns, each as if it were alone in the process, and ask for what is done for all at once."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from accelerate.state import GradientState

from svf_rl.episodes.random_state import restore_random_state, take_random_state

Result = TypeVar("Result")


class Left(BaseException):
    """Raised where a function waits for an answer that never comes, as what answers has failed."""


class Lockstep:
    """
    Takes turns between functions, and answers what they ask.

    A function has the process to itself until it asks for something or ends; then it is the next one's turn. Once all
    that have not ended have asked, `answer` gets what they ask for by their names, and each goes on with its own
    answer. Their random generators and accelerate's state of gradient accumulation are kept apart. `answer` is called
    in the thread of [`run`], so that what it computes with sees one thread only.

    Args:
        answer (`Callable`): Takes the questions and returns the answers, both by name.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Mapping[str, Any]]):
        self._answer, self._here = answer, threading.local()

    def run(self, functions: Mapping[str, Callable[[], Result]]) -> dict[str, Future[Result]]:
        """What became of each function. Raises what `answer` raises, after the functions were made to leave."""
        seats = {name: _Seat() for name in functions}
        with ThreadPoolExecutor(max(1, len(functions)), thread_name_prefix="run") as threads:
            ends = {name: threads.submit(self._start, seats[name], function) for name, function in functions.items()}
            for name, end in ends.items():
                end.add_done_callback(seats[name].end)
            waiting = list(functions)
            try:
                while waiting:
                    for name in waiting:
                        seats[name].turn.release()
                        seats[name].asked.acquire()
                    waiting = [name for name in waiting if not ends[name].done()]
                    if waiting:
                        answers = self._answer({name: seats[name].question for name in waiting})
                        for name in waiting:
                            seats[name].answer = answers[name]
            finally:
                for name in waiting:
                    seats[name].left = True
                    seats[name].turn.release()
        return ends

    def ask(self, question: Any) -> Any:
        """Called by a function: the answer, after the others had their turns."""
        seat: _Seat = self._here.seat
        seat.question, state = question, _take_state()
        seat.asked.release()
        seat.turn.acquire()
        _restore_state(state)
        if seat.left:
            raise Left
        return seat.answer

    def _start(self, seat: "_Seat", function: Callable[[], Result]) -> Result:
        seat.turn.acquire()
        if seat.left:
            raise Left
        self._here.seat = seat
        return function()


class _Seat:
    def __init__(self) -> None:
        self.turn, self.asked = threading.Semaphore(0), threading.Semaphore(0)
        self.question: Any = None
        self.answer: Any = None
        self.left = False

    def end(self, _: Any) -> None:
        self.asked.release()


def _take_state() -> tuple[Any, ...]:
    """What libraries keep once for the process, and a training run takes for its own."""
    return take_random_state(), dict(GradientState._shared_state)


def _restore_state(state: tuple[Any, ...]) -> None:
    drawn, gradients = state
    restore_random_state(drawn)
    GradientState._shared_state.clear()
    GradientState._shared_state.update(gradients)
