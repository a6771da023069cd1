"""Runs programs one after another, each in a box of its own, under limits that nothing in the box can lift.

    python supervisor.py SETTINGS

SETTINGS is JSON: `box` (the command that starts a box, or nothing), `python` (the command in it), `environment`,
`packages` (folders to import from), `compiled` (a folder for compiled files), `uid` (whom programs run as; 0: whoever
runs this).

One JSON line a request on standard input, one a reply on standard output (`svf_rl/rewards/workers.py`). A request holds
`candidates`, `wanted`, `imports`, `setup`, `prompt`, `entry_point`, `share`, `limits`, `seconds`, `memory`,
`processes`, `output`, and either `tests` or `inputs` and `outputs`.
"""

import json
import os
import py_compile
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the interpreter is isolated and looks nowhere

import judge  # noqa: E402
from output import matches  # noqa: E402
from wire import Link  # noqa: E402

# How often a program that runs on is looked at.
TICK = 0.05


class Stopped(Exception):
    """The program was ended from outside: its time, memory, processes or output ran out."""


def main(settings):
    compiled = Path(settings["compiled"])
    for name in ("tested", "wire"):
        py_compile.compile(str(HERE / f"{name}.py"), cfile=str(compiled / f"{name}.pyc"), doraise=True)
    print("{}", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply = run_with_inputs(settings, job) if job["main"] else run_with_tests(settings, job)
        except OSError as error:  # no process, no memory or no descriptor left: says nothing about the program
            reply = {"infrastructure": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)
        if not stays_clean():
            return  # what cannot be reaped ends with this process's namespace


def run_with_tests(settings, job):
    mine, theirs = socket.socketpair()
    report, written = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            theirs.close()
            os.close(report)
            judge.run(job, mine.fileno(), written, settings["uid"])
            status = 0
        finally:
            os._exit(status)
    mine.close()
    os.close(written)
    box = None
    try:
        box = Box(settings, theirs, None, subprocess.DEVNULL)
        theirs.close()
        text = box.watch(job, report, 1 << 20)
        return json.loads(text) if text else failed(job, "the tests could not be run to their end")
    except Stopped as stopped:
        return failed(job, str(stopped))
    finally:
        theirs.close()
        os.close(report)
        if box is not None:
            box.end()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def run_with_inputs(settings, job):
    """One fresh process for each pair of input and output."""
    deadline = time.monotonic() + job["seconds"]
    outcome = failed(job, "")
    for number, (given, expected) in enumerate(zip(job["inputs"], job["outputs"], strict=True)):
        job["seconds"] = deadline - time.monotonic()
        reason = run_once(settings, job, given, expected, outcome)
        outcome["passed"][number] = not reason
        outcome["reason"] = outcome["reason"] or reason
        if reason and not job["share"]:
            break
    return outcome


def run_once(settings, job, given, expected, outcome):
    """Why the program fails on this input, or `""`."""
    mine, theirs = socket.socketpair()
    stdin = os.memfd_create("input")
    os.write(stdin, given.encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    box = None
    try:
        box = Box(settings, theirs, stdin, subprocess.PIPE)
        theirs.close()
        link = Link(mine.fileno())
        link.send({key: job[key] for key in ("candidates", "wanted", "imports", "setup", "main", "limits")})
        got = box.watch(job, box.process.stdout.fileno(), job["output"])
        status = box.wait(job)
        try:
            link.receive()
        except EOFError:
            raise OSError("the box did not start") from None
        what, chosen, text = link.receive()
        if what != "chosen":
            return str(text)
        outcome["chosen"] = chosen
        if status:
            return f"exit status {status}"
        return "" if matches(got.decode(errors="replace"), expected) else "the output differs"
    except (Stopped, EOFError) as stopped:
        return str(stopped) or "the program ended before it began"
    finally:
        for end in (mine, theirs):
            end.close()
        os.close(stdin)
        if box is not None:
            box.end()


def failed(job, reason):
    count = len(job["inputs"] if job["main"] else job["tests"])
    return {"chosen": None, "passed": [False] * count, "reason": reason, "unscorable": ""}


class Box:
    """One box with one interpreter in it."""

    def __init__(self, settings, end, stdin, stdout):
        self._info, info = os.pipe()
        os.set_inheritable(info, True)
        command = [*settings["python"], str(end.fileno()), *settings["packages"]]
        if settings["box"]:
            command = [*settings["box"], "--info-fd", str(info), *command]
        uid = {"user": settings["uid"], "group": settings["uid"], "extra_groups": []} if settings["uid"] else {}
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=stdout, stderr=subprocess.DEVNULL,
                pass_fds=(end.fileno(), info), env=settings["environment"], start_new_session=True, **uid,
            )  # fmt: skip
        except BaseException:
            os.close(self._info)
            raise
        finally:
            os.close(info)
        self._boxed = bool(settings["box"])
        self._started = time.monotonic()

    def watch(self, job, descriptor, most):
        """All that comes from `descriptor`, until its other ends close. Raises `Stopped`."""
        parts, size = [], 0
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(0, select.POLLRDHUP)  # whoever asked is gone
        while True:
            self._check(job)
            for ready, event in poll.poll(TICK * 1000):
                if ready == 0 and event & (select.POLLHUP | select.POLLRDHUP | select.POLLERR):
                    sys.exit(1)
                if ready == descriptor:
                    part = os.read(descriptor, 1 << 16)
                    if not part:
                        return b"".join(parts)
                    parts.append(part)
                    size += len(part)
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
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._info)

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
        seconds = time.monotonic() - self._started
        if seconds > job["seconds"]:
            raise Stopped(f"timed out after {job['seconds']:.3g} s")
        if seconds > 4 * TICK:
            count, memory = usage(self.process.pid)
            if memory > job["memory"]:
                raise Stopped("out of memory")
            if count > job["processes"]:
                raise Stopped("too many processes")


def usage(root):
    """Processes below `root` and the bytes of memory they hold. (0, 0) where there is no /proc."""
    children, pages = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        pages[int(entry.name)] = int(fields[21])
    found, waiting = 0, [root]
    total = 0
    while waiting:
        pid = waiting.pop()
        found += 1
        total += pages.get(pid, 0)
        waiting += children.get(pid, [])
    return found, total * os.sysconf("SC_PAGE_SIZE")


def stays_clean():
    """Reap what ended; whether nothing else of a program is still here."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
