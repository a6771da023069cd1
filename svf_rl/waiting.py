"""A sign of life where nothing else says that something is under way."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 10.0


@contextmanager
def say_waiting(what: str) -> Iterator[None]:
    """While the block lasts, the first process writes a line to standard error every ten seconds: `<what> (20 s)`."""
    started, over = time.monotonic(), threading.Event()

    def say() -> None:
        while not over.wait(SECONDS):
            print(f"{what} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    if os.environ.get("RANK", "0") == "0":
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
