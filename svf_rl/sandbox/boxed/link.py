"""One end of the connection between tests and program: messages, and the table of what both sides know by a number.

Each message also carries what has changed in lists and the like that both sides hold, so that they stay one object for
both, and the numbers that one side has forgotten. A message goes out only in answer to another, so both tables agree.
"""

import posix
import sys
from _thread import RLock
from functools import cached_property
from types import FunctionType

import stand_ins
import wire
from wire import WireError

MOST_BYTES = 1 << 26
_MOST_ENTRIES = 1 << 20


class _Entry:
    # `kind` and `state`: the kind of data that both sides have a copy of, and its content when it last passed (`None`
    # while it is read); `mine`: whether the other side has a stand-in; `seen`: see `stand_ins.py`
    __slots__ = ("kind", "mine", "seen", "state", "value")

    def __init__(self, value, kind, state, mine):
        self.value, self.kind, self.state, self.mine, self.seen = value, kind, state, mine, False

    def is_forgotten(self):
        """Whether nothing but the table refers to the value."""
        return sys.getrefcount(self.value) <= _ALONE


_ALONE = 0
_ALONE = (lambda entry: sys.getrefcount(entry.value))(_Entry([], "", None, False))


class Link:
    """
    Values over one end of a socket pair, each as its length and its bytes.

    `first` is 0 on one side and 1 on the other: each gives every other number. `answer(operation, operands, keywords)`
    carries out what the other side asks for.
    """

    judges = False  # whether this side must not show values of its own to the other (`stand_ins.py`)

    def __init__(self, descriptor, first=0, answer=None):
        self.descriptor, self.answer = descriptor, answer
        self.entries, self._numbers, self._last = {}, {}, first
        self._followed = {}  # those of the entries that have data which may change
        self._new, self._sweep_at, self.lock, self._prepared = [], 64, RLock(), {}

    @cached_property
    def metaclass(self):
        """The class of all classes that stand for one of the other side."""
        return stand_ins.make_metaclass(self)

    # the table, as `wire.py` uses it

    def number_of(self, value):
        return self._numbers.get(id(value))

    def add(self, value, kind="", state=None, number=None, mine=False):
        """Note a value under the other side's `number`, or else under one of this side."""
        if number is None:
            number = self._last = self._last + 2
            self._new.append(number)
        elif number in self.entries or (number - self._last) % 2 == 0 or len(self.entries) > _MOST_ENTRIES:
            raise WireError("not a number to give")
        self.entries[number] = _Entry(value, kind, state, mine)
        self._numbers[id(value)] = number
        if kind:
            self._followed[number] = self.entries[number]
        return number

    def follow(self, number, kind, state):
        """Note the content of a value that may change."""
        entry = self._followed[number] = self.entries[number]
        entry.kind, entry.state = kind, state

    def _forget(self, number):
        del self._numbers[id(self.entries.pop(number).value)]
        self._followed.pop(number, None)

    def _forgotten(self):
        """The numbers of what only the table holds, and of what belongs to this side none."""
        everything = len(self.entries) > self._sweep_at  # going through all of them each time would take too long
        entries = self.entries if everything else self._followed
        numbers = [number for number, entry in entries.items() if not entry.mine and entry.is_forgotten()]
        if everything:
            self._sweep_at = 2 * (len(self.entries) - len(numbers)) + 64
        return tuple(numbers)

    def is_stand_in(self, value):
        """Whether it stands for an object or a class of the other side."""
        return type(type(value)) is self.metaclass or type(value) is self.metaclass

    describe_class = staticmethod(stand_ins.describe_class)

    def stand_in_class(self, *described):
        return self._prepared.pop(described, None) or stand_ins.make_class(self, *described)

    def prepare(self):
        """Make now what almost every program needs."""
        functions = self.describe_class(FunctionType)
        self._prepared[functions] = stand_ins.make_class(self, *functions)

    def check_passes(self, value):
        """Raises an error for what must not be known to the other side, or has been forgotten by it."""

    def check_derived(self, name):
        """Raises an error where a class is derived from one of the other side."""

    # messages

    def send(self, value):
        """Raises `WireError` for what cannot pass; nothing is sent then."""
        parts, states = [], []
        self._new.clear()
        forgotten = self._forgotten()
        followed = list(self._followed.items())
        try:
            wire.put(self, value, parts.append)
            for number, entry in followed:
                if entry.state is not None and wire.is_changed(entry.kind, entry.value, entry.state):
                    state = wire.take_state(entry.kind, entry.value)
                    parts.append(b"u%d;" % number)
                    wire.put_state(self, state, parts.append)
                    states.append((entry, state))
            wire.put(self, forgotten, parts.append)
            length = sum(map(len, parts))
            if length > MOST_BYTES:
                raise WireError(f"a value of {length} bytes is too large")
        except BaseException:
            for number in self._new:
                self._forget(number)
            raise
        for entry, state in states:
            entry.state = state
        for number in forgotten:
            self._forget(number)
        data = memoryview(b"".join([b"%08x" % length, *parts]))
        while data:
            data = data[posix.write(self.descriptor, data) :]

    def receive(self):
        """Raises `EOFError` when the other side is gone, `WireError` for bytes that `send` cannot have written."""
        length = int(self._read(8), 16)
        if not 0 <= length <= MOST_BYTES:
            raise WireError("not a length")
        reader = wire.Reader(self, self._read(length))
        try:
            value = reader.read()
            while reader.is_at(b"u"):
                entry, state = self.entries[reader.number()], reader.state()
                wire.STATES[entry.kind][1](wire.known_type(entry.kind), entry.value, state)
                entry.state = wire.take_state(entry.kind, entry.value)
            for number in reader.read():
                entry = self.entries[number]
                if not entry.mine and self.is_stand_in(entry.value):
                    raise WireError("an object of its own is forgotten")
                self._forget(number)
            if reader.at != length:
                raise WireError("more bytes than one value")
        except (ValueError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError) as error:
            raise WireError(f"not a value: {type(error).__name__}: {error}") from None
        return value

    def _read(self, count):
        parts = []
        while count:
            part = posix.read(self.descriptor, min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def ask(self, operation, *operands, **keywords):
        """What the other side answers; it may ask for something itself before."""
        with self.lock:
            self.send(("ask", (operation, *operands), tuple(keywords.items())))
            what, value = self.wait()
        if what == "raised":
            raise value
        return value

    def wait(self):
        """("value", answer) or ("raised", exception). Raises `EOFError` when the other side ended instead."""
        while True:
            what, value, more = self.receive()
            if what != "ask":
                break
            self.reply(value, more)
            value = more = None  # nothing here must keep what the other side has forgotten
        if what == "value" or (what == "raised" and isinstance(value, Exception)):
            return what, value
        raise EOFError(more)

    def reply(self, asked, keywords):
        """Carry out what the other side asks for."""
        try:
            reply = ("value", self.answer(*asked, **dict(keywords)), None)
        except Exception as error:
            error.__traceback__ = error.__context__ = None  # they hold everything
            reply = ("raised", error, None)
        try:
            self.send(reply)
        except (WireError, RecursionError, MemoryError) as error:
            self.send(("raised", ValueError(f"the result cannot be passed on: {error}"), None))
