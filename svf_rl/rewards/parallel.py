"""How many checks a process runs at once."""

import os


def parallel_checks() -> int:
    """This process's share of the machine's cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))
