"""Values as bytes, and back: what passes between the tests and the program.

The test process reads data from a hostile program, so reading builds only types of a short list, for any bytes.
(`pickle` calls functions named in its input, `marshal` trusts its input, and both take milliseconds to import.)

What may be changed in place (lists, dictionaries, arrays, ...) gets a number under which both sides keep a copy. What
belongs to one side (functions, classes, objects of its classes) gets a number under which the other side keeps a
stand-in (`stand_ins.py`), which holds the data too if its class is derived from a type of data. `Link` keeps the table.
"""

import builtins
import sys
from functools import cache
from itertools import chain
from operator import is_
from types import ModuleType

_DEEPEST = 150


class WireError(Exception):
    """Not the bytes of a value, or a value that is too large, too deep or of a kind that does not pass."""


# The types that pass as themselves, with their modules. Nothing that another side says imports anything else.
_EXCEPTIONS = [
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
]
_MODULES = {
    "builtins": [
        *"int float complex bool str bytes bytearray list tuple dict set frozenset range slice".split(),
        *_EXCEPTIONS,
    ],
    "collections": ["OrderedDict", "Counter", "defaultdict", "deque"],
    "datetime": ["date", "time", "datetime", "timedelta", "timezone"],
    "zoneinfo": ["ZoneInfo"],
    "decimal": ["Decimal", "DecimalException", "InvalidOperation", "DivisionByZero"],
    "fractions": ["Fraction"],
    "uuid": ["UUID"],
    "array": ["array"],
    "pathlib": ["PosixPath", "PurePosixPath", "PureWindowsPath"],
    "json": ["JSONDecodeError"],
    "statistics": ["StatisticsError"],
    "dataclasses": ["FrozenInstanceError"],
    "queue": ["Empty", "Full"],
    "re": ["error"],
    "numpy": [
        *"ndarray bool_ float16 float32 float64 complex64 complex128 str_ bytes_ datetime64 timedelta64".split(),
        *(f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)),
    ],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def known_name(kind):
    """The name of a type that passes as itself, else `None`."""
    name = type.__dict__["__name__"].__get__(kind)
    if name == "bool" and kind is not bool:
        name = "bool_"  # numpy's
    module = sys.modules.get(_MODULE_OF.get(name, ""))
    return name if module is not None and getattr(module, name, None) is kind else None


@cache
def known_type(name):
    """The type of that name. Raises `WireError` for others."""
    if name not in _MODULE_OF:
        raise WireError("not a type that passes")
    return getattr(__import__(_MODULE_OF[name]), name)


def data_base(kind):
    """The type of data that a class is derived from, and its name; `None` and `""` for most classes."""
    for base in type.__dict__["__mro__"].__get__(kind):
        name = known_name(base)
        if name in _SCALARS_BY_NAME or (name in STATES and name != "ndarray") or name in ("tuple", "frozenset"):
            return base, name
        if name is not None and issubclass(base, BaseException):
            return base, "Exception"
    return None, ""


def _text(value):
    data = str.encode(value, "utf-8", "surrogatepass")
    return b"s%d;%s" % (len(data), data)


_CONSTANTS = {None: b"N", True: b"T", False: b"F", Ellipsis: b"E", NotImplemented: b"I"}
_CONSTANT_OF = {code: value for value, code in _CONSTANTS.items()}
_SCALARS = {
    **dict.fromkeys(map(type, (True, None, Ellipsis, NotImplemented)), _CONSTANTS.get),
    int: lambda value: b"i%s;" % int.__format__(value, "x").encode(),
    float: lambda value: b"f%s;" % float.hex(value).encode(),
    complex: lambda value: b"c%s,%s;" % (float.hex(value.real).encode(), float.hex(value.imag).encode()),
    str: _text,
    bytes: lambda value: b"b%d;%s" % (len(value), bytes(value)),
}
_SCALARS_BY_NAME = {kind.__name__: write for kind, write in _SCALARS.items() if kind is not bool}


def _zone(value):
    """The time zone of a time; its distance from UTC where the zone is of a class that does not pass."""
    zone = value.tzinfo
    if zone is None or known_name(type(zone)) is not None:
        return zone
    return sys.modules["datetime"].timezone(value.utcoffset(), value.tzname())


# Values that never change: the arguments that make each again
_FIXED = {
    "range": lambda value: (value.start, value.stop, value.step),
    "slice": lambda value: (value.start, value.stop, value.step),
    "Decimal": lambda value: (str(value),),
    "Fraction": lambda value: (value.numerator, value.denominator),
    "date": lambda value: (value.year, value.month, value.day),
    "time": lambda value: (value.hour, value.minute, value.second, value.microsecond, _zone(value)),
    "datetime": lambda value: (
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, _zone(value),
    ),
    "timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "timezone": lambda value: value.__getinitargs__(),
    "ZoneInfo": lambda value: (value.key,),
    "UUID": lambda value: (str(value),),
    **dict.fromkeys(_MODULES["pathlib"], lambda value: (str(value),)),
}  # fmt: skip


# What may be changed in place: a type's content part by part, how an object is filled with it, how one is made where
# that needs the content.


def _items(base, value):
    return base.__iter__(value)


def _pairs(base, value):
    return chain.from_iterable(base.items(value))


def _fill_list(base, value, state):
    base.__setitem__(value, slice(None), state)


def _fill_set(base, value, state):
    base.clear(value)
    base.update(value, state)


def _fill_pairs(base, value, state):
    base.clear(value)
    for key, item in zip(state[::2], state[1::2], strict=True):
        base.__setitem__(value, key, item)


def _fill_default(base, value, state):
    value.default_factory = state[0]
    _fill_pairs(base, value, state[1:])


def _array_state(base, value):
    if value.dtype.kind in _ARRAY_KINDS:
        return [value.dtype.str, value.shape, value.tobytes()]
    return [None, value.shape, *value.ravel().tolist()]


def _make_array(base, local, state):
    import numpy

    kind, shape, *items = state
    if kind is None:
        value = numpy.empty(len(items), object)
        value[:] = items
    elif len(kind) < 16 and kind[1:2] in _ARRAY_KINDS:
        value = numpy.frombuffer(items[0], kind).copy()
    else:
        raise WireError("not an array")
    return value.reshape(shape)


def _fill_array(base, value, state):
    value[...] = _make_array(base, base, state)


_ARRAY_KINDS = tuple("biufcSUmM")
STATES = {
    "list": (_items, _fill_list, None),
    "set": (_items, _fill_set, None),
    "dict": (_pairs, _fill_pairs, None),
    "OrderedDict": (_pairs, _fill_pairs, None),
    "Counter": (_pairs, _fill_pairs, None),
    "defaultdict": (lambda base, value: [value.default_factory, *_pairs(base, value)], _fill_default, None),
    "bytearray": (lambda _, value: [bytes(value)], lambda base, value, state: _fill_list(base, value, *state), None),
    "deque": (
        lambda base, value: [value.maxlen, *base.__iter__(value)],
        lambda base, value, state: base.__init__(value, state[1:], state[0]),
        None,
    ),
    "array": (
        lambda _, value: [value.typecode, value.tobytes()],
        lambda base, value, state: _fill_list(base, value, base(*state)),
        lambda base, local, state: base.__new__(local, *state),
    ),
    "ndarray": (_array_state, _fill_array, _make_array),
}
_BY_VALUE = ("bytearray", "array", "ndarray")  # whose state is not one of objects


def take_state(name, value):
    """The content of a value that may be changed, as a list."""
    return list(STATES[name][0](known_type(name), value))


def is_changed(name, value, before):
    """Whether the content of a value is another than before. Looks at what it holds, and does not compare objects."""
    parts = STATES[name][0](known_type(name), value)
    if name in _BY_VALUE:
        return before != parts
    return not all(map(is_, chain(before, _END), chain(parts, _END)))


_END = (object(),)


def put(link, value, write, depth=0):
    """Write the bytes of a value, by `write`. New numbers are noted in `link`."""
    kind = type(value)
    if (scalar := _SCALARS.get(kind)) is not None:
        write(scalar(value))
        return
    if depth > _DEEPEST:
        raise WireError("a value is nested too deeply")
    if kind is tuple or kind is frozenset:
        write(b"%s%d;" % (b"t" if kind is tuple else b"Z", len(value)))
        for item in value:
            put(link, item, write, depth + 1)
        return
    number = link.number_of(value)
    if number is not None:
        write(b"r%d;" % number)
        return
    name = known_name(kind)
    if name in STATES:
        state = take_state(name, value)
        write(b"m%d;" % link.add(value, name, state))
        put(link, name, write)
        put_state(link, state, write, depth)
    elif name in _FIXED:
        write(b"x")
        put(link, (name, _FIXED[name](value)), write, depth)
    elif kind.__module__ == "numpy" and name is not None:  # a number of an array
        write(b"a")
        put(link, (value.dtype.str, value.tobytes()), write, depth)
    elif name is not None and issubclass(kind, BaseException):
        fields = {key: item for key, item in vars(value).items() if type(item) in _SCALARS and key[:1] != "_"}
        write(b"e")
        put(link, (name, value.args, tuple(fields.items()), value.__cause__), write, depth)
    elif isinstance(value, type) and known_name(value) is not None:
        write(b"k")
        put(link, known_name(value), write)
    elif isinstance(value, type):
        link.check_passes(value)
        write(b"C%d;" % link.add(value, mine=True))
        put(link, link.describe_class(value), write, depth)
    elif isinstance(value, ModuleType):
        raise WireError("a module does not pass")
    else:
        link.check_passes(value)
        number = link.add(value, mine=True)
        write(b"h%d;" % number)
        put(link, kind, write, depth)
        _put_data(link, value, number, write, depth)


def _put_data(link, value, number, write, depth):
    """The data that an object of a class of its own has as a list, a number, an exception, ..."""
    base, name = data_base(type(value))
    if name in _SCALARS_BY_NAME:
        write(_SCALARS_BY_NAME[name](value))
    elif name in ("tuple", "frozenset"):
        put(link, base(base.__iter__(value)), write, depth)
    elif name == "Exception":
        put(link, (value.args, value.__cause__), write, depth)
    elif name:
        state = take_state(name, value)
        link.follow(number, name, state)
        put_state(link, state, write, depth)


def put_state(link, state, write, depth=0):
    write(b"%d;" % len(state))
    for item in state:
        if (scalar := _SCALARS.get(type(item))) is not None:
            write(scalar(item))
        else:
            put(link, item, write, depth + 1)


class Reader:
    """Reads what `put` wrote. Any of Python's errors may be raised for bytes that it did not write."""

    def __init__(self, link, data):
        self.link, self.data, self.at = link, data, 0

    def field(self):
        end = self.data.index(b";", self.at)
        field, self.at = self.data[self.at : end], end + 1
        return field

    def count(self):
        count = int(self.field())
        if not 0 <= count <= len(self.data):
            raise WireError("not a count")
        return count

    def number(self):
        return int(self.field())

    def is_at(self, code):
        """Whether this code is next, and if it is, go past it."""
        found = self.data[self.at : self.at + 1] == code
        self.at += found
        return found

    def read(self, depth=0):
        code = self.data[self.at : self.at + 1]
        self.at += 1
        if code in _CONSTANT_OF:
            return _CONSTANT_OF[code]
        read = self._READ.get(code)
        if read is None or depth > _DEEPEST + 5:
            raise WireError("not a value")
        return read(self, depth)

    def _bytes(self, depth):
        count = self.count()
        data = self.data[self.at : self.at + count]
        if len(data) != count:
            raise WireError("bytes are missing")
        self.at += count
        return data

    def _complex(self, depth):
        real, _, imaginary = self.field().decode().partition(",")
        return complex(float.fromhex(real), float.fromhex(imaginary))

    def state(self, depth=0):
        return [self.read(depth + 1) for _ in range(self.count())]

    def _fixed(self, depth):
        name, arguments = self.read(depth)
        if name not in _FIXED or (name == "Fraction" and not all(type(part) is int for part in arguments)):
            raise WireError("not a value")
        return known_type(name)(*arguments)

    def _exception(self, depth):
        name, arguments, fields, cause = self.read(depth)
        kind = known_type(name)
        if not issubclass(kind, BaseException):
            raise WireError("not an exception")
        error = kind(*arguments) if kind.__module__ == "builtins" else kind.__new__(kind, *arguments)
        vars(error).update({key: item for key, item in fields if key[:1] != "_"})
        error.__cause__ = cause
        return error

    def _array_item(self, depth):
        kind, data = self.read(depth)
        return _make_array(None, None, [kind, (), data])[()]

    def _shared(self, depth):
        number, name = self.number(), self.read(depth)
        if name not in STATES:
            raise WireError("not a value")
        base = known_type(name)
        return self._filled(number, name, base, base, depth)

    def _filled(self, number, name, base, local, depth):
        _, fill, make = STATES[name]
        if make is not None:
            state = self.state(depth)
            value = make(base, local, state)
            self.link.add(value, name, state, number)
            return value
        value = base.__new__(local)
        base.__init__(value)
        self.link.add(value, name, None, number)  # may hold itself, so it is known before it is filled
        state = self.state(depth)
        fill(base, value, state)
        self.link.follow(number, name, state)
        return value

    def _class(self, depth):
        number = self.number()
        value = self.link.stand_in_class(*self.read(depth))
        self.link.add(value, number=number)
        return value

    def _stand_in(self, depth):
        number, local = self.number(), self.read(depth)
        if type(local) is not self.link.metaclass:
            raise WireError("not a class")
        base, name = data_base(local)
        if name in STATES:
            return self._filled(number, name, base, local, depth)
        if not name:
            value = object.__new__(local)
        elif name == "Exception":
            arguments, cause = self.read(depth)
            value = base.__new__(local, *arguments)
            value.__cause__ = cause
        else:
            data = self.read(depth)
            if type(data) is not base:
                raise WireError("not the data of its class")
            value = base.__new__(local, data)
        self.link.add(value, number=number)
        return value

    _READ = {  # noqa: RUF012  (the class is used as it is)
        b"i": lambda self, depth: int(self.field(), 16),
        b"f": lambda self, depth: float.fromhex(self.field().decode()),
        b"c": _complex,
        b"s": lambda self, depth: self._bytes(depth).decode("utf-8", "surrogatepass"),
        b"b": _bytes,
        b"t": lambda self, depth: tuple(self.state(depth)),
        b"Z": lambda self, depth: frozenset(self.state(depth)),
        b"r": lambda self, depth: self.link.entries[self.number()].value,
        b"k": lambda self, depth: known_type(self.read(depth)),
        b"x": _fixed,
        b"a": _array_item,
        b"e": _exception,
        b"m": _shared,
        b"C": _class,
        b"h": _stand_in,
    }
