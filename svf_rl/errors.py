"""The exceptions that the command line prints as a single line."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper


class SVFError(ValueError):
    """Bad input from the user. The message is one line and says what to change."""


class InfrastructureError(RuntimeError):
    """A check could not be made. Verifiers raise it; it becomes a verdict that is never scored."""


class Stopped(BaseException):
    """A run was asked by a signal to end, and can resume later. The message is one line and says from where. Like
    `KeyboardInterrupt` it is nothing for `except Exception`."""

    status = os.EX_TEMPFAIL  # 75, "try again"


def one_line(said: object, at_most: int = 500) -> str:
    """What an error says, or any text, as one printable line. Where it has more than `at_most` characters its middle is
    left out, between words: causes stand at the beginning, and remedies at the end."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(said)).split()
    text = " ".join(words)
    if len(text) <= at_most or len(words) < 2:
        return text or (type(said).__name__ if isinstance(said, BaseException) else "")
    head = text[: 2 * at_most // 3].rpartition(" ")[0] or words[0]
    tail = text[-at_most // 3 :].partition(" ")[2] or words[-1]
    return f"{head} … {tail}"


def short_repr(value: object, at_most: int = 150) -> str:
    """A value from a file, or of a user's function, as a message shows it: on one printable line, and not all of it."""
    text = one_line(repr(value), at_most)
    return text if len(text) <= at_most else f"{text[:at_most]}…"


@contextmanager
def whole_output() -> Iterator[None]:
    """Bring what the block prints to standard output. Where nobody reads it any more, as behind `| head`, the process
    ends without a word and with the status of SIGPIPE; where it cannot be written, with one line."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # `>&-`
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or not _output_takes_no_more():
            raise
        with suppress(OSError):  # what is left would be written at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
            raise SystemExit(1) from None
        raise SystemExit(128 + signal.SIGPIPE) from None


def _output_takes_no_more() -> bool:
    """Whether an error is of standard output, and of no other pipe or file: it is tried with an empty line."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    except (ValueError, AttributeError):  # closed, or no file at all
        return False
    return False


@dataclass
class Outcome:
    """How a command ended: its exit status."""

    status: int = 0


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[Outcome]:
    """Print an `SVFError` or an interrupt from within as one line on standard error and set the status to 1; with
    `debug`, let it be raised, traceback and all. A run that was [`Stopped`] has a line and a status of its own."""
    outcome = Outcome()
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal without × or … gets ? for it
        sys.stdout.reconfigure(errors="replace")
    try:
        yield outcome
    except SVFError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        outcome.status = 1
    except Stopped as stopped:
        if str(stopped):
            print(stopped, file=sys.stderr)
        outcome.status = stopped.status
    except KeyboardInterrupt:
        if debug:
            raise
        print("error: interrupted", file=sys.stderr)
        outcome.status = 1
