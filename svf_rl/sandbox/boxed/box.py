"""The supervisor's side of a box: requesting it, watching it and ending it."""

import contextlib
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

from system_calls import MOST_SHARED

# Seconds between two checks of a running program.
TICK = 0.05
# What waits in a socket at most: one buffer of the usual size, which no program may enlarge.
SOCKET_BYTES = 208 << 10


class Stopped(Exception):
    """The program is to be ended: it exceeded its time, memory, processes or output. `read` is its output until
    then."""

    read = b""


def make_boxes(zygote):
    """Boxes one after another. The next one is made while a program runs in the previous one."""
    prepared = Box(zygote)
    while True:
        box, prepared = prepared, Box(zygote)
        yield box


class Box:
    """A process that waits for a job at the other end of `link`. Its standard input is the file `stdin`, its standard
    output is read from `stdout`."""

    def __init__(self, zygote):
        self.link, link = (end.detach() for end in socket.socketpair())
        self.stdin = os.memfd_create("stdin")
        self.stdout, stdout = os.pipe()
        self._info, info = os.pipe()
        self._messages, self._began, self._memory_kills = b"", 0.0, 0
        try:
            socket.send_fds(zygote, [b"."], [link, self.stdin, stdout, info])
        finally:
            for descriptor in (link, stdout, info):
                os.close(descriptor)

    def __enter__(self):
        self._began, self._memory_kills = time.monotonic(), count_memory_kills()
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
        return int(self._messages.splitlines()[-1])

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

    def ran_out_of_time(self):
        """
        Whether the kernel ended it, as it does when the CPU time is used up. Raises `OSError` where the reason may also
        be that the machine, or the control group, ran out of memory.
        """
        if not self._ended() or not self._messages.endswith(b"\n-9\n"):
            return False
        if count_memory_kills() != self._memory_kills:
            raise OSError("the machine ran out of memory")
        return True

    def complaint(self):
        """The reason why the box could not be made."""
        self._ended()
        return " ".join(line for line in self._messages.decode().splitlines() if not line.lstrip("-").isdigit())

    def _pid(self):
        """The first process of the box, 0 while it is not known."""
        first, newline, _ = self._messages.partition(b"\n")
        return int(first) if newline and first.isdigit() else 0

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
        seconds = time.monotonic() - self._began
        if seconds <= TICK:
            return
        self._ended(0)
        if not self._pid():  # not made yet: the machine is busy
            return
        used = measure_usage(self._pid())
        if used.memory + measure_hidden(used.processes) > job["memory"]:
            raise Stopped("out of memory")
        if len(used.processes) > job["processes"]:
            raise Stopped("too many processes")
        idle = job["idle_seconds"]
        if seconds <= min(idle, job["seconds"]):
            return
        tests = measure_usage(test_process) if test_process else Usage()
        # what it waits for a processor is the machine's doing; more processes than cores are its own
        own = max(seconds - max(used.waited, tests.waited), used.spent)
        if own > job["seconds"]:
            raise Stopped(f"timed out after {job['seconds']:.3g} s")
        if own > idle and used.spent + tests.spent < idle / 10:
            raise Stopped(f"timed out after {idle:.3g} s, most of them asleep")


def count_memory_kills():
    """How many processes the kernel has killed on this machine because memory ran out."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


class Usage(NamedTuple):
    """Of a process and all below it: their numbers, the memory in bytes that they have resident, the CPU time that they
    spent, and the longest time that one of them waited for a processor, both in seconds."""

    processes: tuple = ()
    memory: int = 0
    spent: float = 0.0
    waited: float = 0.0


def measure_usage(root):
    """The [`Usage`] of the process `root`."""
    children, pages, ticks = {}, {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        pages[int(entry.name)] = int(fields[21])
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))  # its own and its ended children's
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    used, taken = (sum(table.get(pid, 0) for pid in pids) for table in (pages, ticks))
    return Usage(
        tuple(pids), used * os.sysconf("SC_PAGE_SIZE"), taken / os.sysconf("SC_CLK_TCK"), max(map(measure_wait, pids))
    )


def measure_hidden(pids):
    """The bytes that processes may hold without one having them resident: what waits in the sockets of their network
    namespace, and shared memory, of which one page may be left that keeps all of it. Raises `Stopped`."""
    sockets, shared = set(), set()
    for pid in pids:
        try:
            sockets |= set(Path(f"/proc/{pid}/net/unix").read_text().splitlines())
            mappings = [line.split() for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()]
        except OSError as error:
            if isinstance(error, PermissionError) and holds_memory(pid):
                raise Stopped("it hides what it uses") from None
            continue  # it has ended
        shared |= {fields[4] for fields in mappings if "s" in fields[1] and fields[5:6] == ["/dev/zero"]}  # its inode
    sockets -= set(Path("/proc/self/net/unix").read_text().splitlines())  # where it has no namespace of its own
    return len(sockets) * SOCKET_BYTES + len(shared) * MOST_SHARED


def holds_memory(pid):
    """Whether a process has not begun to end."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) > 0
    except OSError:
        return False


def measure_wait(pid):
    """The seconds that the main thread of a process could have run and did not; 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
