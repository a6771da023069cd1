"""The one exception type that the command line prints as a single line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class SVFError(ValueError):
    """Bad input from the user. The message is one line and says what to change."""


@dataclass
class Outcome:
    """How a command ended: its exit status."""

    status: int = 0


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[Outcome]:
    """Print an `SVFError` or an interrupt from within as one line on standard error and set the status to 1; with
    `debug`, let it be raised, traceback and all."""
    outcome = Outcome()
    try:
        yield outcome
    except SVFError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        outcome.status = 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("error: interrupted", file=sys.stderr)
        outcome.status = 1
