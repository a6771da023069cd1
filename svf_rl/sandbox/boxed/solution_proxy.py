"""The solution as seen by the test process: proxies of objects in another process."""

import builtins

from wire import Link, WireError, own, theirs

ENDED = "the program ended"


class Gone(BaseException):
    """The solution's process ended or sent invalid data. Not an `Exception`, so that no test catches it."""


class CannotPass(BaseException):
    """The tests pass something to the solution that cannot be sent, so they say nothing about the solution."""


def _asks(operation):
    """A method that the object itself carries out, in its process."""
    return lambda self, *operands, **keywords: self._ask(operation, self, *operands, **keywords)


class Proxy:
    """An object of the solution's process that is not plain data. It is equal only to objects of that process, so that
    an `__eq__` of the solution is never called with an expected value."""

    __slots__ = ("_ask", "_number")

    def __init__(self, ask, number):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    __call__ = _asks("call")
    __getattr__ = _asks("getattr")
    __setattr__ = _asks("setattr")
    __getitem__ = _asks("getitem")
    __setitem__ = _asks("setitem")
    __iter__ = _asks("iter")
    __next__ = _asks("next")
    __len__ = _asks("len")
    __bool__ = _asks("bool")
    __str__ = _asks("str")
    __repr__ = _asks("repr")

    def __instancecheck__(self, value):
        return type(value) is Proxy and self._ask("isinstance", value, self) is True

    def __eq__(self, other):
        return type(other) is Proxy and self._ask("equal", self, other) is True

    __hash__ = object.__hash__


class Solution:
    """The test process's side of the connection."""

    def __init__(self, descriptor):
        self.started = False  # the interpreter in the box, before any code of the solution
        self.gone = ""  # why the process no longer answers
        self._functions = []  # functions of the tests that the solution may call
        self._link = Link(descriptor, self._refer, lambda number: Proxy(self.ask, number), self._functions)

    def load(self, job):
        """Send the code; returns (which candidates it is made of, why it could not be run or `""`)."""
        chosen = []
        try:
            self._link.send(job)
            while True:
                what, value, text = self._link.receive()
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
        try:
            self._link.send((operation, operands, keywords))
        except WireError as error:
            raise CannotPass(str(error)) from None
        except OSError:
            raise self._gone(f"{ENDED} before the tests did") from None
        try:
            what, value, more = self._link.receive()
            while what == "callback":
                self._link.send(self._called_back(value, more))
                what, value, more = self._link.receive()
            if what == "value" and more is not None:
                _update(operands[1:], more)
        except (EOFError, OSError):
            raise self._gone(f"{ENDED} before the tests did") from None
        except (WireError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise self._gone(f"the program sent invalid data: {error}") from None
        if what == "value":
            return value
        kind = getattr(builtins, value, None) if isinstance(value, str) else None
        if what != "raised" or not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise self._gone(_shown(more))  # `SystemExit` and similar end a program
        if kind is StopIteration and operation != "next":
            kind = RuntimeError  # it would end a `map` of the tests as if nothing were left to check
        raise _exception(kind, _shown(more))

    def _gone(self, reason):
        self.gone = reason
        return Gone(reason)

    def _called_back(self, number, arguments):
        try:
            return ("returned", (self._functions[number](*arguments),), {})
        except Exception as error:  # a function of the tests, called with arguments of the solution
            return ("failed", (f"{type(error).__name__}: {error}",), {})

    def _refer(self, value):
        if type(value) is Proxy:
            return theirs(value._number)
        if callable(value):
            self._functions.append(value)
            return own(len(self._functions) - 1)
        raise WireError(f"a {type(value).__name__} cannot be passed to the solution")


def _update(operands, changed):
    """Apply the solution's changes of lists, sets and dictionaries to those of the tests."""
    for mine, other in zip(operands, changed, strict=True):
        if type(mine) is type(other):
            if isinstance(mine, list | bytearray):
                mine[:] = other
            elif isinstance(mine, dict | set) and mine != other:
                mine.clear()
                mine.update(other)


def _shown(text):
    return text[:500] if type(text) is str and text else "the program ended unexpectedly"


def _exception(kind, text):
    try:
        return kind(text)
    except TypeError:  # a few need more than a text
        return ValueError(text)
