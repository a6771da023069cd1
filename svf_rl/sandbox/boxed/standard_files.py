"""`/dev/stdin`, `/proc/self/fd/1` and the like, in a box without `/proc`."""

import builtins
import io
import os
from functools import wraps

_NUMBERS = {f"/dev/{name}": number for number, name in enumerate(("stdin", "stdout", "stderr"))}
_NUMBERS |= {f"{folder}/fd/{number}": number for folder in ("/dev", "/proc/self") for number in range(3)}


def name_standard_files():
    """Let `open` and `os.open` find them: a copy of the descriptor, as of a pipe."""

    def copy_of(file):
        if isinstance(file, str | bytes | os.PathLike):
            number = _NUMBERS.get(os.fsdecode(file))
            return None if number is None else os.dup(number)
        return None

    open_file, open_descriptor = io.open, os.open

    @wraps(open_file)
    def opened(file, *arguments, **keywords):
        copy = copy_of(file)
        return open_file(file if copy is None else copy, *arguments, **keywords)

    @wraps(open_descriptor)
    def descriptor(path, *arguments, **keywords):
        copy = copy_of(path)
        return open_descriptor(path, *arguments, **keywords) if copy is None else copy

    builtins.open = io.open = opened
    os.open = descriptor
