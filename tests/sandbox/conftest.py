"""What tests of the sandbox share: who runs here, and what they left."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# before any sandbox starts: the environment that programs must not see
os.environ["SVF_RL_HOSTILE_SECRET"] = "a-secret-of-the-environment"


def descendants(root: int) -> dict[int, str]:
    """Processes below `root` as the host sees them: number → state and name."""
    children: dict[int, list[int]] = {}
    shown: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        state, parent = rest.split()[:2]
        children.setdefault(int(parent), []).append(int(entry.name))
        shown[int(entry.name)] = f"{state} {name.partition('(')[2]}"
    found, waiting = {}, [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = shown[child]
            waiting.append(child)
    return found


@pytest.fixture(scope="session")
def census() -> Callable[[], dict[int, str]]:
    """Counts the processes that this one has started, however deep."""
    return lambda: descendants(os.getpid())


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Whether something comes true within some seconds: what was killed takes a moment to be gone."""

    def holds(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    return holds
