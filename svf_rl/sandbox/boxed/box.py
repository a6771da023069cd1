"""The supervisor's side of a box: requesting it, watching it and ending it."""

import contextlib
import os
import select
import signal
import socket
import time
from typing import NamedTuple

from usage import Hidden, Usage, count_memory_kills, measure_hidden, measure_usage, measure_wait

OUT_OF_TIME = "timed out: its CPU time is used up"
# Seconds between two checks of a running program.
TICK = 0.05
_PROCESSORS = len(os.sched_getaffinity(0))
# What counts at most of the time between two checks: where it is longer, this process was kept from running.
MOST_BETWEEN = 1.0
# How long a box may be stopped by a signal from outside
PAUSE_SECONDS = 10.0


class Stopped(Exception):
    """The program is to be ended: it exceeded its time, memory, processes or output. `read` is its output until
    then."""

    read = b""


def make_boxes(zygote, boxed):
    """Boxes one after another. The next one is made while a program runs in the previous one."""
    Box.memory_kills = count_memory_kills()
    prepared = Box(zygote, boxed)
    while True:
        box, prepared = prepared, Box(zygote, boxed)
        yield box


class Box:
    """A process that waits for a job at the other end of `link`. Its standard input is the file `stdin`, its standard
    output is read from `stdout`. Where it is not `boxed`, it may kill or stop itself as others may."""

    memory_kills = 0  # on this machine, when it was last asked: that takes a millisecond

    def __init__(self, zygote, boxed):
        self.link, link = (end.detach() for end in socket.socketpair())
        self.stdin = os.memfd_create("stdin")
        self.stdout, stdout = os.pipe()
        self._info, info = os.pipe()
        self._boxed, self._messages = boxed, b""
        self._began = self._checked = self._elapsed = self._paused = 0.0
        self._waited_before = self._longest_wait = self._waited = self._late_before = 0.0
        self._most_memory = 0
        try:
            socket.send_fds(zygote, [b"."], [link, self.stdin, stdout, info])
        finally:
            for descriptor in (link, stdout, info):
                os.close(descriptor)

    def __enter__(self):
        self._began = self._checked = time.monotonic()
        self._late_before = measure_wait(os.getpid())
        self._ended(0)
        self._waited_before = measure_wait(self._pid()) if self._pid() else 0.0  # while it was made
        return self

    def __exit__(self, *_):
        self.end()

    def give_input(self, text):
        os.write(self.stdin, text.encode("utf-8", "surrogatepass"))
        os.lseek(self.stdin, 0, os.SEEK_SET)

    def watch(self, job, descriptor, most, enough=b"", test_process=None):
        """All data from `descriptor`, until its other ends close or the data ends in `enough`. Raises `Stopped`.

        `test_process` is a process outside of the box that works on the same program.
        """
        parts, size = [], 0
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(0, select.POLLRDHUP)  # the requester is gone
        try:
            while True:
                self._check(job, test_process)
                for ready, event in poll.poll(TICK * 1000):
                    if ready == 0 and event & (select.POLLHUP | select.POLLRDHUP | select.POLLERR):
                        raise SystemExit(1)
                    if ready == descriptor:
                        part = os.read(descriptor, 1 << 16)
                        parts.append(part)
                        size += len(part)
                        if not part or (enough and part.endswith(enough)):
                            return b"".join(parts)
                        if size > most:
                            raise Stopped("too much output")
        except Stopped as stopped:
            stopped.read = b"".join(parts)
            raise

    def wait(self, job):
        """The exit status. Raises `Stopped`."""
        while not self._ended():
            self._check(job)
        return self._result().status

    def end(self):
        """Kill every process in the box and wait until they are gone."""
        ended = self._ended(0)
        while not ended:
            if pid := self._pid():
                # all processes of a process namespace die with its first one; without a namespace, kill its session
                for kill in (os.kill, os.killpg):
                    with contextlib.suppress(ProcessLookupError):
                        kill(pid, signal.SIGKILL)
            ended = self._ended()
        for descriptor in (self.link, self.stdin, self.stdout, self._info):
            os.close(descriptor)

    def why_killed(self, job):
        """
        Why the kernel ended it, or `""` where it ended otherwise: its CPU time is used up, or its memory. Raises
        `OSError` where that is not the program's doing.
        """
        if not self._ended() or self._messages.count(b"\n") < 2 or self._result().status != -signal.SIGKILL:
            return ""
        result = self._result()
        # unboxed, a program may kill itself, and must not escape its verdict by that
        if not self._boxed or result.spent >= job["idle_seconds"]:
            return OUT_OF_TIME
        kills_before, Box.memory_kills = Box.memory_kills, count_memory_kills()
        if Box.memory_kills == kills_before:
            raise OSError("a program was killed from outside of its box")
        if max(self._most_memory, result.memory) > job["memory"] / 2:
            return "out of memory, as the whole machine"
        raise OSError("the machine ran out of memory")

    def own_seconds(self):
        """What the program took of the time since it was given to it: all but waiting for a processor, its own waiting
        and that of those that noticed its end."""
        late = measure_wait(os.getpid()) - self._late_before
        ended = self._ended() and self._messages.count(b"\n") > 1
        result = self._result() if ended else Result(0, 0.0, 0, self._waited_before + self._waited)
        waited = result.waited - self._waited_before + late
        return max(time.monotonic() - self._began - self._paused - waited, result.spent)

    def complaint(self):
        """The reason why the box could not be made."""
        self._ended()
        return " ".join(line for line in self._messages.decode().splitlines() if not line[:1].isdigit())

    def _pid(self):
        """The first process of the box, 0 while it is not known."""
        first, newline, _ = self._messages.partition(b"\n")
        return int(first) if newline and first.isdigit() else 0

    def _result(self):
        """What the last message says of a box that has ended."""
        status, spent, memory, waited = self._messages.splitlines()[-1].split()
        return Result(int(status), float(spent), int(memory), float(waited))

    def _ended(self, seconds=TICK):
        """Read the messages about the box for at most `seconds`; whether they are complete."""
        while select.select([self._info], [], [], seconds)[0]:
            part = os.read(self._info, 64)
            if not part:
                if self._pid() and self._messages.count(b"\n") < 2:
                    raise OSError("the process that waits for a box was killed")
                return True
            self._messages += part
        return False

    def _check(self, job, test_process=None):
        now = time.monotonic()
        if now - self._began <= TICK:
            return
        between, self._checked = min(now - self._checked, MOST_BETWEEN), now
        self._late_before = measure_wait(os.getpid())
        self._ended(0)
        if not self._pid():  # not made yet: the machine is busy
            return
        used = measure_usage(self._pid())
        if used.has_ended and not test_process:
            return
        try:
            memory = used.memory + measure_hidden(used.processes)
        except Hidden:
            raise Stopped("it hides what it uses") from None
        self._most_memory = max(self._most_memory, memory)
        if memory > job["memory"]:
            raise Stopped("out of memory")
        if len(used.processes) > job["processes"]:
            raise Stopped("too many processes")
        tests = measure_usage(test_process) if test_process else Usage()
        if used.most_spent > job["idle_seconds"]:
            raise Stopped(OUT_OF_TIME)
        # no signal from inside stops the first process of a box
        if self._boxed and (used.is_stopped or tests.is_stopped):
            self._paused += between
            if self._paused > PAUSE_SECONDS:
                raise OSError("a program was stopped from outside of its box")
            return
        self._elapsed += between
        # What it waits for a processor is the machine's doing, where its own processes would find one each.
        longest = max(self._longest_wait, used.waited - self._waited_before)
        if used.runnable <= _PROCESSORS:
            self._waited += longest - self._longest_wait
        self._longest_wait = longest
        idle = job["idle_seconds"]
        if self._elapsed <= min(idle, job["seconds"]):
            return
        # it waits while the tests do not, and the other way round
        own = max(self._elapsed - self._waited - tests.waited, used.spent)
        if own > job["seconds"]:
            raise Stopped(f"timed out after {job['seconds']:.3g} s")
        if own > idle and used.spent + tests.spent < idle / 10:
            raise Stopped(f"timed out after {idle:.3g} s, most of them asleep")


class Result(NamedTuple):
    """How the first process of a box ended: its exit status, its CPU time and the time that it waited for a processor
    in seconds, and the most memory that it had in bytes."""

    status: int
    spent: float
    memory: int
    waited: float
