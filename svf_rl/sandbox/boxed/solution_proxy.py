"""The solution as seen by the test process: the connection to it, and what it may ask of the tests."""

import io
import json
from types import BuiltinMethodType

from link import Link
from operations import OPERATIONS
from wire import WireError

ENDED = "the program ended"
OWN = ("tests", "prompt")  # modules of classes that the tests define


class Gone(BaseException):
    """The solution's process ended or sent invalid data. Not an `Exception`, so that no test catches it."""


class CannotPass(BaseException):
    """The tests need something of the solution that does not pass, so they say nothing about the solution."""


class Solution(Link):
    """The test process's side of the connection."""

    judges = True

    def __init__(self):
        self.started = False  # the interpreter in the box, before any code of the solution
        self.gone = ""  # why the process no longer answers
        self.named = set()  # the classes of the solution that the tests name
        super().__init__(-1, 0, self._answer)  # its descriptor comes with its program

    def load(self, job):
        """Send the code; returns (which candidates it is made of, why it could not be run or `""`)."""
        chosen = []
        try:
            self.send(json.dumps(job))  # as text, which no one can change
            while True:
                what, value, text = self.receive()
                if what == "started":
                    self.started = True
                elif what == "chosen" and not chosen and {*value} <= {*range(len(job["candidates"]))}:
                    chosen = list(value)  # sent before the solution runs; later messages about it may be forged
                elif what == "loaded":
                    return chosen, ""
                else:
                    return chosen, _shown(text)
        except (EOFError, OSError, WireError, ValueError, TypeError):
            return chosen, f"{ENDED} before the tests began"

    def ask(self, operation, *operands, **keywords):
        """The value of an operation in the solution's process; what it raised there is raised here."""
        with self.lock:
            if self.gone:
                raise Gone(self.gone)
            try:
                self.send(("ask", (operation, *operands), tuple(keywords.items())))
            except WireError as error:
                raise Gone(f"a value cannot be passed to the program: {error}") from None
            except OSError:
                raise self._gone("") from None
            try:
                what, value = self.wait()
            except (EOFError, OSError) as error:
                raise self._gone(*error.args[:1]) from None
            except (WireError, RecursionError, MemoryError) as error:
                raise self._gone(f"the program sent invalid data: {error}") from None
        if what == "value":
            return value
        if isinstance(value, StopIteration) and operation != "method" and operands[1:] != ("__next__",):
            value = RuntimeError("the program raised StopIteration")  # it would end a `map` as if all were checked
        raise value

    def _gone(self, reason=""):
        self.gone = _shown(reason) if reason else f"{ENDED} before the tests did"
        return Gone(self.gone)

    def _answer(self, operation, value=None, *operands, **keywords):
        """What the program asks of a value of the tests that was passed to it: never more than the value's own data,
        methods and operators, since functions and modules lead to everything."""
        entry = self.entries.get(self.number_of(value))
        if entry is None or not entry.mine or not _permits(operation, value, *operands[:1]):
            raise AttributeError(f"{operation} is not for the program")
        return OPERATIONS[operation](value, *operands, **keywords)

    def reply(self, asked, keywords):
        try:
            super().reply(asked, keywords)
        except CannotPass as error:
            if _runs_tests(*asked):
                raise
            self.send(("raised", ValueError(str(error)), None))

    def check_passes(self, value):
        if self.is_stand_in(value):
            raise WireError("it has been forgotten")
        if not (callable(value) or _is_own(value) or _is_stream(value) or type(value) is object):
            raise CannotPass(f"a {type(value).__name__} of the tests cannot be passed to the program")

    def check_derived(self, name):
        raise CannotPass(f"the tests derive the class {name} from one of the program")

    def is_named(self, kind):
        """Whether the tests name a class, or one that it is derived from."""
        return not self.named.isdisjoint(type.__dict__["__mro__"].__get__(kind))

    def has_seen(self, value, now=False):
        """Whether an object of the program may know a value of the tests; from `now` on it does."""
        entry = self.entries.get(self.number_of(value))
        if entry is not None and now:
            entry.seen = True
        return entry is None or entry.seen


def _is_own(value):
    """An object or class of a class that the tests define."""
    return (value if isinstance(value, type) else type(value)).__module__ in OWN


def _is_stream(value):
    """What is read step by step: iterators, views, texts as files."""
    kind = type(value)
    return kind in (io.StringIO, io.BytesIO) or (
        kind.__module__ in ("builtins", "itertools", "collections")
        and hasattr(kind, "__iter__")
        and kind is not memoryview
    )


def _runs_tests(operation, value, name="", *_):
    """Whether what a program asks for is of the tests' own making, unlike a frame or a buffer inside of a stream."""
    if operation == "call":
        return type(value) is not BuiltinMethodType or not _is_stream(value.__self__)
    return name == "__next__" or not _is_stream(value)


def _permits(operation, value, name=""):
    if operation == "call":
        return callable(value)
    if operation in ("special", "equal", "copy", "deepcopy", "dir"):
        compared = callable(value) and (operation == "equal" or name == "__hash__")
        return compared or _is_own(value) or _is_stream(value)
    if operation in ("setattr", "delattr"):
        return _is_own(value) and not isinstance(value, type) and not name.startswith("_")
    if operation in ("getattr", "method"):
        open_to_all = name in ("__name__", "__qualname__", "__doc__", "__next__")
        return open_to_all or (not name.startswith("_") and (_is_own(value) or _is_stream(value)))
    return False


def _shown(text):
    return text[:500] if type(text) is str and text else "the program ended unexpectedly"
