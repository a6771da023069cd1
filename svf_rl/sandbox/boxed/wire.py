"""Values between tests and solution: plain data by value, everything else as the number of an object.

The test process reads data from a hostile program, so decoding builds only built-in types, for any bytes. (`pickle`
calls functions named in its input, `marshal` trusts its input, and both take milliseconds to import.)
"""

import builtins
import posix

MOST_BYTES = 1 << 26
_DEEPEST = 150


class WireError(Exception):
    """Not the bytes of a value, or a value too large or too deep to pass."""


class Link:
    """
    Values over one end of a socket pair, each as its length and its bytes.

    `refer(object)` gives the bytes for what is not plain data: `own(n)` or `theirs(n)`. `resolve(number)` gives what
    stands for the other side's object, and `mine` is the list of this side's objects.
    """

    def __init__(self, descriptor, refer=None, resolve=None, mine=None):
        self.descriptor, self.refer, self.resolve, self.mine = descriptor, refer, resolve, mine

    def send(self, value):
        """Raises `WireError` for what cannot pass; nothing is sent then."""
        parts = []
        _put(value, self.refer, parts.append, 0)
        length = sum(map(len, parts))
        if length > MOST_BYTES:
            raise WireError(f"a value of {length} bytes is too large")
        data = memoryview(b"".join([b"%08x" % length, *parts]))
        while data:
            data = data[posix.write(self.descriptor, data) :]

    def receive(self):
        """Raises `EOFError` when the other side is gone, `WireError` for bytes that `send` cannot have written."""
        length = int(self._read(8), 16)
        if not 0 <= length <= MOST_BYTES:
            raise WireError("not a length")
        reader = _Reader(self._read(length), self.resolve, self.mine)
        try:
            value = reader.read(0)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, ImportError, ArithmeticError) as error:
            raise WireError(f"not a value: {type(error).__name__}: {error}") from None
        if reader.at != length:
            raise WireError("more bytes than one value")
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


def own(number):
    """Bytes for an object of this side."""
    return b"o%d;" % number


def theirs(number):
    """Bytes for an object of the other side, which receives the object itself."""
    return b"y%d;" % number


def _put(value, refer, put, depth):
    kind = type(value)
    # a subclass counts as its built-in value, without calling its own methods
    base = kind if kind in _PLAIN else next((base for base in _PLAIN if issubclass(kind, base)), None)
    if base is None:
        known = _KNOWN.get((kind.__module__, kind.__qualname__))
        if known is not None:
            put(b"x")
            _put((kind.__qualname__, known(value)), refer, put, depth + 1)
        elif kind.__module__ == "numpy" and hasattr(value, "tolist"):
            _put(value.tolist(), refer, put, depth + 1)
        else:
            put(refer(value))
        return
    if depth > _DEEPEST:
        raise WireError("a value is nested too deeply")
    if (write := _SCALARS.get(base)) is not None:
        put(write(value))
    elif base is type:
        is_builtin = getattr(builtins, value.__name__, None) is value
        put(b"k%s;" % value.__name__.encode() if is_builtin else refer(value))
    elif base is dict:
        items = list(dict.items(value))
        put(b"d%d;" % len(items))
        for key, item in items:
            _put(key, refer, put, depth + 1)
            _put(item, refer, put, depth + 1)
    else:
        items = list(base.__iter__(value))
        put(b"%s%d;" % (_SEQUENCES[base], len(items)))
        for item in items:
            _put(item, refer, put, depth + 1)


def _text(value):
    data = str.encode(value, "utf-8", "surrogatepass")
    return b"s%d;%s" % (len(data), data)


_CONSTANTS = {None: b"N", True: b"T", False: b"F", Ellipsis: b"E"}
_SCALARS = {
    bool: _CONSTANTS.get,
    type(None): _CONSTANTS.get,
    type(Ellipsis): _CONSTANTS.get,
    int: lambda value: b"i%s;" % int.__format__(value, "x").encode(),
    float: lambda value: b"f%s;" % float.hex(value).encode(),
    complex: lambda value: b"c%s,%s;" % (float.hex(value.real).encode(), float.hex(value.imag).encode()),
    str: _text,
    bytes: lambda value: b"b%d;%s" % (len(value), bytes(value)),
    bytearray: lambda value: b"B%d;%s" % (len(value), bytes(value)),
}
_SEQUENCES = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_PLAIN = dict.fromkeys([type, dict, *_SCALARS, *_SEQUENCES])  # in their order, and quick to look up

# Values of the standard library that compare by value: how each is written, and (in the test process) read again.
_KNOWN = {
    ("builtins", "range"): lambda value: (value.start, value.stop, value.step),
    ("decimal", "Decimal"): lambda value: (str(value),),
    ("fractions", "Fraction"): lambda value: (value.numerator, value.denominator),
    ("collections", "deque"): lambda value: (list(value), value.maxlen),
    ("datetime", "date"): lambda value: (value.year, value.month, value.day),
    ("datetime", "time"): lambda value: (value.hour, value.minute, value.second, value.microsecond),
    ("datetime", "datetime"): lambda value: (
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond,
    ),
    ("datetime", "timedelta"): lambda value: (value.days, value.seconds, value.microseconds),
}  # fmt: skip
_MODULES = {name: module for module, name in _KNOWN}
_CONSTANT_OF = {code: value for value, code in _CONSTANTS.items()}
_SEQUENCE_OF = {code: base for base, code in _SEQUENCES.items()}


class _Reader:
    def __init__(self, data, resolve, mine):
        self.data, self.at, self.resolve, self.mine = data, 0, resolve, mine

    def read(self, depth):
        if depth > _DEEPEST + 5:
            raise WireError("a value is nested too deeply")
        code = self.data[self.at : self.at + 1]
        self.at += 1
        if code in _CONSTANT_OF:
            return _CONSTANT_OF[code]
        if code == b"x":
            name, arguments = self.read(depth + 1)
            return getattr(__import__(_MODULES[name]), name)(*arguments)
        end = self.data.index(b";", self.at)
        field, self.at = self.data[self.at : end], end + 1
        if code == b"i":
            return int(field, 16)
        if code == b"f":
            return float.fromhex(field.decode())
        if code == b"c":
            real, _, imaginary = field.decode().partition(",")
            return complex(float.fromhex(real), float.fromhex(imaginary))
        if code == b"k":
            value = getattr(builtins, field.decode())
            if type(value) is not type:
                raise WireError("not a type")
            return value
        count = int(field)
        if count < 0:
            raise WireError("not a value")
        if code in b"sbB":
            data = self.data[self.at : self.at + count]
            if len(data) != count:
                raise WireError("bytes are missing")
            self.at += count
            if code == b"s":
                return data.decode("utf-8", "surrogatepass")
            return bytes(data) if code == b"b" else bytearray(data)
        if code == b"d":
            return {self.read(depth + 1): self.read(depth + 1) for _ in range(count)}
        if code in _SEQUENCE_OF:
            items = [self.read(depth + 1) for _ in range(count)]
            return items if code == b"l" else _SEQUENCE_OF[code](items)
        if code == b"o":
            return self.resolve(count)
        if code == b"y" and self.mine is not None:
            return self.mine[count]
        raise WireError("not a value")
