"""Runs programs one after another, each in its own box, under limits that nothing in the box can change.

    python supervisor.py SETTINGS

SETTINGS is JSON: `boxed` (whether programs get namespaces), `uid` (the user to become; 0: none), `packages` (the
folder that programs import from), `tmp_bytes` (the size of their /tmp).

One JSON line a request on standard input, one a reply on standard output (`svf_rl/sandbox/workers.py`). A request holds
`nonce`, `candidates`, `wanted`, `imports`, `setup`, `prompt`, `entry_point`, `share`, `limits`, `seconds`, `memory`,
`processes`, `output`, and either `tests` or, with `main`, `inputs`, `outputs` and `starts`; with `printed`, as many
bytes of the first output, of its begin and its end, are in the reply under that name.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the interpreter is isolated and looks nowhere

import namespaces  # noqa: E402
import test_process  # noqa: E402
import zygote  # noqa: E402
from box import Stopped, make_boxes  # noqa: E402
from link import Link  # noqa: E402
from solution_proxy import ENDED  # noqa: E402

PR_SET_DUMPABLE = 4
# what ends the process with the tests when it computes with what a program gave it
ENDED_BY_VALUES = {
    signal.SIGXCPU: "the tests did not end",
    **dict.fromkeys([signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT], "the tests crashed on a value of the program"),
}


def main(settings):
    if settings["uid"]:
        namespaces.become(settings["uid"])
    # or numpy starts one thread per core, which exceeds the limits on large machines
    os.environ["OMP_NUM_THREADS"] = "1"
    boxes = make_boxes(zygote.start({**settings, "here": str(HERE)}), settings["boxed"])
    sys.path.append(settings["packages"])  # tests may import them too
    # from here on no process may look into this one or its forks: they hold tests and verdicts
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    gc.freeze()  # garbage collections in the forks must not touch shared pages
    print("{}", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        nonce = job.pop("nonce")
        try:
            reply = run_with_inputs(boxes, job) if job["main"] else run_with_tests(boxes, job)
        except OSError as error:  # no process, memory or descriptor left: this says nothing about the program
            sys.exit(str(error))  # the pool asks another supervisor, whose zygote is alive
        print(json.dumps({**reply, "nonce": nonce}), flush=True)


def run_with_tests(boxes, job):
    with next(boxes) as box:
        report, written = os.pipe()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                test_process.run(job, box.link, written)
                status = 0
            finally:
                os._exit(status)
        os.close(written)
        try:
            # with `share`, all results are told at each change of one
            results = len(job["tests"]) + sum(test.count("assert") for test in job["tests"])
            text = box.watch(job, report, (1 << 20) + 16 * results**2, enough=b"\n\n", test_process=pid)
        except Stopped as stopped:
            return {**failed(job, str(stopped)), **(last_line(stopped.read) or {}), "reason": str(stopped)}
        finally:
            os.close(report)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        outcome = last_line(text)
        if not text.endswith(b"\n\n"):
            ended = -os.waitstatus_to_exitcode(status)
            if ended not in ENDED_BY_VALUES:
                raise OSError(f"the process with the tests ended unexpectedly (wait status {status})")
            return {**failed(job, ENDED_BY_VALUES[ended]), **(outcome or {})}
        if outcome is None:
            raise OSError(f"a box did not start: {box.complaint()}")
        if outcome["reason"].startswith(ENDED):
            outcome["reason"] = box.why_killed(job) or outcome["reason"]
        return outcome


def last_line(text):
    """The last message of the test process; `None` if there is none, or if there is no box."""
    lines = text[: text.rfind(b"\n") + 1].strip().split(b"\n")
    return json.loads(lines[-1]) if lines[-1] else None


def run_with_inputs(boxes, job):
    """One new process for each pair of input and output; `seconds` are for all of them, plus `starts`."""
    most, left = job["seconds"], job["seconds"] + job["starts"]
    outcome = failed(job, "")
    for number, (given, expected) in enumerate(zip(job["inputs"], job["outputs"], strict=True)):
        if left <= 0:
            outcome["reason"] = outcome["reason"] or "timed out"
            break
        with next(boxes) as box:
            reason = run_once(box, {**job, "seconds": min(most, left)}, given, expected, outcome)
            left -= box.own_seconds()
        outcome["passed"][number] = not reason
        outcome["reason"] = outcome["reason"] or reason
        if reason and not job["share"]:
            break
    return outcome


def run_once(box, job, given, expected, outcome):
    """Why the program fails on this input, or `""`."""
    box.give_input(given)
    link = Link(box.link)
    try:
        link.receive()
        link.send(json.dumps(test_process.for_solution(job)))
    except (EOFError, OSError) as error:
        raise OSError(f"a box did not start: {box.complaint()}") from error
    try:
        got = box.watch(job, box.stdout, job["output"])
        note_printed(job, got, outcome)
        status = box.wait(job)
        if status and (killed := box.why_killed(job)):
            return killed
        what, chosen, text = link.receive()
        outcome["chosen"] = chosen or []  # none of a program that does not compile
    except (Stopped, EOFError) as stopped:
        note_printed(job, getattr(stopped, "read", b""), outcome)
        return str(stopped) or "the program ended before it began"
    if what != "chosen":
        return str(text)
    if status:
        return f"exit status {status}"
    return "" if outputs_match(got.decode(errors="replace"), expected) else "the output differs"


def note_printed(job, got, outcome):
    if "printed" not in job or "printed" in outcome:
        return
    most = job["printed"]
    if len(got) > most:
        got = got[: most // 2] + b"\n...\n" + got[len(got) - most // 2 :]
    outcome["printed"] = got.decode(errors="replace")


def outputs_match(got, expected):
    """Whether two texts are the same in all lines, ignoring white space at their ends and empty lines at the end."""
    got, expected = (
        [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")] for text in (got, expected)
    )
    return got == expected


def failed(job, reason):
    count = len(job["inputs"] if job["main"] else job["tests"])
    return {"chosen": [], "passed": [False] * count, "reason": reason, "unscorable": ""}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
