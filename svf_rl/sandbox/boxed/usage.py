"""What processes use, as the kernel tells it in /proc."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from system_calls import MOST_SHARED

# What waits in a socket at most: one buffer of the usual size, which no program may enlarge.
SOCKET_BYTES = 208 << 10

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Hidden(Exception):
    """A process keeps others from seeing what it uses."""


def count_memory_kills():
    """How many processes the kernel has killed on this machine because memory ran out."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


class Usage(NamedTuple):
    """Of a process and all below it: their numbers, how many of them run or could, the bytes of memory that they have
    resident, the seconds of CPU time that they spent and the most that one of them did, the longest time in seconds
    that one of them waited for a processor, and whether a signal stopped the first, or it has ended."""

    processes: tuple = ()
    runnable: int = 0
    memory: int = 0
    spent: float = 0.0
    most_spent: float = 0.0
    waited: float = 0.0
    is_stopped: bool = False
    has_ended: bool = False


def measure_usage(root):
    """The [`Usage`] of the process `root`."""
    children, pages, ticks, own_ticks, states = {}, {}, {}, {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(entry.name)
        children.setdefault(int(fields[1]), []).append(pid)
        states[pid], pages[pid] = fields[0], int(fields[21])
        own_ticks[pid] = sum(map(int, fields[11:13]))
        ticks[pid] = own_ticks[pid] + sum(map(int, fields[13:15]))  # and its ended children's
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    return Usage(
        processes=tuple(pids),
        runnable=sum(states.get(pid) == "R" for pid in pids),
        memory=sum(pages.get(pid, 0) for pid in pids) * os.sysconf("SC_PAGE_SIZE"),
        spent=sum(ticks.get(pid, 0) for pid in pids) / _TICKS_PER_SECOND,
        most_spent=max(own_ticks.get(pid, 0) for pid in pids) / _TICKS_PER_SECOND,
        waited=max(map(measure_wait, pids)),
        is_stopped=states.get(root) == "T",
        has_ended=states.get(root, "X") in "XZ",
    )


def measure_hidden(pids):
    """The bytes that processes may hold without one having them resident: what waits in the sockets of their network
    namespace, and shared memory, of which one page may be left that keeps all of it. Raises `Hidden`."""
    sockets, shared = set(), set()
    for pid in pids:
        try:
            sockets |= set(Path(f"/proc/{pid}/net/unix").read_text().splitlines())
            mappings = [line.split() for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()]
        except OSError as error:
            if isinstance(error, PermissionError) and holds_memory(pid):
                raise Hidden from None
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
    """The longest time in seconds that a thread of a process could have run and did not; 0 where the kernel does not
    tell."""
    waits = [0.0]
    with contextlib.suppress(OSError):
        waits += [read_wait(thread) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return max(waits)


def read_wait(thread, folder=None):
    """The seconds that a thread waited, by its path in /proc, which `folder` is an open descriptor of where covered."""
    try:
        descriptor = os.open(f"{thread}/schedstat", os.O_RDONLY, dir_fd=folder)
    except OSError:
        return 0.0
    try:
        return int(os.read(descriptor, 100).split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
    finally:
        os.close(descriptor)
