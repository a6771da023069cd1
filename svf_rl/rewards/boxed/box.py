"""One box: namespaces of its own, a fresh interpreter in them, and the ways to watch and to end it."""

import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

# How often a program that runs on is looked at.
TICK = 0.05


class Stopped(Exception):
    """The program was ended from outside: its time, memory, processes or output ran out."""


class Boxes:
    """Boxes one after another. The next one starts while a program runs in the one before it."""

    def __init__(self, settings):
        self._settings, self._prepared = settings, None

    def next(self):
        box, self._prepared = self._prepared, None
        if box is not None and box.process.poll() is not None:
            box.end()
            box = None
        return box or Box(self._settings)

    def prepare(self):
        if self._prepared is None:
            self._prepared = Box(self._settings)


class Box:
    """An interpreter that waits for a job at the other end of `link`. Its standard input is the file `stdin`."""

    def __init__(self, settings):
        self.link, theirs = (end.detach() for end in socket.socketpair())
        self.stdin = os.memfd_create("stdin")
        self._info, info = os.pipe()
        self._boxed, self._began = bool(settings["box"]), 0.0
        command = [*settings["python"], str(theirs), *settings["packages"]]
        if self._boxed:
            command = [*settings["box"], "--info-fd", str(info), *command]
        try:
            self.process = subprocess.Popen(
                command, stdin=self.stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                pass_fds=(theirs, info), env=settings["environment"], start_new_session=True,
            )  # fmt: skip
        except OSError:
            for descriptor in (self.link, self.stdin, self._info):
                os.close(descriptor)
            raise
        finally:
            os.close(theirs)
            os.close(info)

    def __enter__(self):
        self._began = time.monotonic()
        return self

    def __exit__(self, *_):
        self.end()

    def give_input(self, text):
        os.write(self.stdin, text.encode("utf-8", "surrogatepass"))
        os.lseek(self.stdin, 0, os.SEEK_SET)

    def watch(self, job, descriptor, most, enough=b""):
        """All that comes from `descriptor`, until its other ends close, or a part ends in `enough`. Raises `Stopped`."""
        parts, size = [], 0
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(0, select.POLLRDHUP)  # whoever asked is gone
        while True:
            self._check(job)
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

    def wait(self, job):
        """The exit status. Raises `Stopped`."""
        while True:
            try:
                return self.process.wait(TICK)
            except subprocess.TimeoutExpired:
                self._check(job)

    def end(self):
        """Kill all that runs in the box and wait until it is gone."""
        if self.process.poll() is None:
            self._kill()
            self.process.wait()
        self.process.stdout.close()
        for descriptor in (self.link, self.stdin, self._info):
            os.close(descriptor)

    def _kill(self):
        target = self.process.pid
        if self._boxed and select.select([self._info], [], [], 0)[0]:
            info = os.read(self._info, 4096)
            if b"child-pid" in info:
                # the first process of the box's own process namespace: all others die with it
                target = json.loads(info)["child-pid"]
        for kill in (os.kill, os.killpg):
            try:
                kill(target, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _check(self, job):
        seconds = time.monotonic() - self._began
        if seconds > job["seconds"]:
            raise Stopped(f"timed out after {job['seconds']:.3g} s")
        if seconds > 4 * TICK:
            count, memory = usage(self.process.pid)
            if memory > job["memory"]:
                raise Stopped("out of memory")
            if count > job["processes"]:
                raise Stopped("too many processes")


def usage(root):
    """Processes from `root` down, and the bytes of memory they hold."""
    children, pages = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        pages[int(entry.name)] = int(fields[21])
    count = total = 0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        count += 1
        total += pages.get(pid, 0)
        waiting += children.get(pid, [])
    return count, total * os.sysconf("SC_PAGE_SIZE")
