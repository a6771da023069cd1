"""Stand-ins: what one side holds for the objects and classes of the other. Each operation is carried out there.

A class of the other side is a class here, with the special methods that it has there and no others, so that `callable`,
`iter`, `isinstance` and `except` mean what they say. One derived from a type of data is derived from it here too, and
its objects hold their data.

What tests expect must not be shown to the program, which would only have to agree (the rule is in the README).
"""

import types

from wire import WireError, data_base, known_name

_CONVERTING = "abs neg pos invert int float complex index round trunc floor ceil bool"
_PLAIN = "len hash str repr format bytes iter next reversed enter getitem setitem delitem fspath"
_BINARY = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or"
_COMPARING = "lt le gt ge"


def _names(text, *prefixes):
    return {f"__{prefix}{name}__" for name in text.split() for prefix in prefixes or ("",)}


_SHOWING = _names(_BINARY, "", "r", "i") | _names(_COMPARING)
_DIFFERENCES = _names("sub truediv floordiv mod divmod xor", "", "r", "i")
SPECIAL = _names(_CONVERTING) | _names(_PLAIN) | _SHOWING | {"__call__", "__contains__", "__exit__"}

# Types of the interpreter that `isinstance` and `inspect` ask for
_IMITATED = {kind.__name__: kind for kind in vars(types).values() if type(kind) is type}
_IMITATED |= {kind.__name__: kind for kind in (zip, map, filter, enumerate, reversed)}
# The attributes with such names that are passed on: others, as `__array_interface__`, speak to C code, or to `pickle`
_OPEN = SPECIAL | _names(
    "abstractmethods annotations author cause class_getitem closure code context dataclass_fields dataclass_params "
    "defaults dict doc eq func globals init isabstractmethod kwdefaults match_args members missing module name ne new "
    "post_init qualname self slots text_signature version wrapped"
)
# Attributes of a class that stay here, since Python itself reads them
_LOCAL = {"__mro__", "__bases__", "__base__", "__dict__", "__class__", "__name__", "__qualname__", "__module__"}


def make_metaclass(link):
    """The class of all classes that stand for a class of the other side of `link`."""

    class StandInClass(type):
        def __new__(cls, name, bases, body):
            link.check_derived(name)
            raise WireError(f"{name} cannot be derived from a class of the other side")

        def __call__(cls, *arguments, **keywords):
            return link.ask("call", cls, *arguments, **keywords)

        def __getattribute__(cls, name):
            if name in _LOCAL or link.number_of(cls) is None:
                return type.__getattribute__(cls, name)
            return _get(link, cls, name)

        def __setattr__(cls, name, value):
            link.ask("setattr", cls, name, value)

        def __delattr__(cls, name):
            link.ask("delattr", cls, name)

        def __dir__(cls):
            return link.ask("dir", cls)

        def __iter__(cls):
            return link.ask("special", cls, "__iter__")

        def __len__(cls):
            return link.ask("special", cls, "__len__")

        def __getitem__(cls, key):
            return link.ask("special", cls, "__getitem__", key)

        def __contains__(cls, item):
            return any(item is value or item == value for value in cls)

        __hash__ = type.__hash__
        __bool__ = lambda cls: True  # noqa: E731

    return StandInClass


_FUNCTION = ()


def describe_class(kind):
    """A class by its name, its module, its bases among the types of data and the classes of that module, and the names
    of those attributes that a stand-in must have itself: special methods, and what it has in place of its data's."""
    if kind is types.FunctionType and _FUNCTION:
        return _FUNCTION
    bases = tuple(b for b in kind.__bases__ if data_base(b)[1] or (b.__module__ == kind.__module__ and b is not object))
    own = [name for c in kind.__mro__ if c is not object and known_name(c) is None for name in vars(c)]
    data = data_base(kind)[0]
    names = {name for name in own if name in SPECIAL or name == "__eq__" or (data is not None and hasattr(data, name))}
    return kind.__name__, str(kind.__module__), bases, tuple(sorted(names))


_FUNCTION = describe_class(types.FunctionType)  # once, for all programs to come


def make_class(link, name, module, bases, names):
    """The class here for what `describe_class` said of one there."""
    if not all(type(text) is str for text in (name, module, *names)):
        raise WireError("not a class")
    if not all(isinstance(kind, type) and (type(kind) is link.metaclass or data_base(kind)[1]) for kind in bases):
        raise WireError("not the bases of a class")
    base = next(filter(None, (data_base(kind)[0] for kind in bases)), None)
    imitated = _IMITATED.get(name) if module == "builtins" else None
    data = _Items if module == "builtins" and name in ("dict_keys", "dict_items") else base

    def __getattribute__(self, attribute):
        if attribute == "__class__":
            return imitated or type(self)
        if base is not None and attribute not in names and hasattr(base, attribute):
            return base.__getattribute__(self, attribute)  # of its data, which is here
        return _get(link, self, attribute)

    def __setattr__(self, attribute, value):
        if base is not None and attribute not in names and hasattr(base, attribute):
            base.__setattr__(self, attribute, value)
        else:
            link.ask("setattr", self, attribute, value)

    body = {
        "__module__": module if module == "builtins" else "solution",  # and no name that something might import
        "__getattribute__": __getattribute__,
        "__setattr__": __setattr__,
        "__delattr__": lambda self, attribute: link.ask("delattr", self, attribute),
        "__dir__": lambda self: link.ask("dir", self),
    }
    for attribute in names:
        if attribute == "__call__":
            body[attribute] = lambda self, *arguments, **keywords: link.ask("call", self, *arguments, **keywords)
        elif attribute == "__eq__":
            body["__eq__"], body["__ne__"] = _comparing(link, data)
        elif attribute in SPECIAL:
            body[attribute] = _asking(link, attribute, data)
    if "__eq__" in names and "__hash__" not in names:
        body["__hash__"] = None
    return type.__new__(link.metaclass, name, tuple(bases), body)


class _Items(set):
    """What a view of a dictionary is compared by: the set of its items."""


for _name in "contains eq and rand or ror sub rsub xor rxor lt le gt ge".split():
    setattr(_Items, f"__{_name}__", lambda self, other, name=f"__{_name}__": getattr(set(self), name)(other))


def _get(link, owner, attribute):
    if attribute in ("__copy__", "__deepcopy__"):  # as `copy` asks for them: of a class, of an object
        return lambda *arguments: link.ask(
            attribute.strip("_"), arguments[0] if type(owner) is link.metaclass else owner
        )
    if attribute == "__signature__":
        return _signature(link.ask("signature", owner))
    if attribute in ("send", "throw", "__next__"):  # which may end with `StopIteration`
        return lambda *arguments: link.ask("method", owner, attribute, *arguments)
    if link.judges and attribute[:2] == "__" == attribute[-2:] and attribute not in _OPEN:
        raise AttributeError(f"{attribute} is not passed on")
    return link.ask("getattr", owner, attribute)


def _comparing(link, base):
    def __eq__(self, other):
        if not link.judges or link.is_stand_in(other):
            return link.ask("equal", self, other) is True
        return NotImplemented if base is None else base.__eq__(self, other)

    def __ne__(self, other):
        equal = __eq__(self, other)
        return equal if equal is NotImplemented else not equal

    return __eq__, __ne__


def _asking(link, name, base):
    """The special method `name`. On the side of the tests it follows the rule."""
    own = getattr(base, name, None)

    def ask(self, *operands):
        return link.ask("special", self, name, *operands)

    def show(self, other, *more):
        shown = link.is_stand_in(other)
        if not shown and (name[2:-2] in _COMPARING or not link.is_named(type(self))):
            return NotImplemented if own is None else own(self, other, *more)
        result = ask(self, other, *more)
        if result is NotImplemented or not (link.has_seen(self) or (name in _DIFFERENCES and not shown)):
            return result
        if not link.is_stand_in(result) or data_base(type(result))[1]:
            raise TypeError(f"an object of the program that was shown a value of the tests is no number: {name}")
        link.has_seen(result, True)
        return result

    def convert(self, *more):
        if link.has_seen(self) or not (name == "__bool__" or link.is_named(type(self))):
            raise TypeError(f"an object of the program is no number: {name}")
        return ask(self, *more)

    def contain(self, item):
        if link.is_stand_in(item) or link.is_named(type(self)):
            return ask(self, item)
        return any(item is value or item == value for value in self) if own is None else own(self, item)

    def leave(self, kind, error, _):
        # a program that could end an assertion's error would pass
        ask(self, kind, error, None)
        return False

    if not link.judges:
        return ask
    if name in _SHOWING:
        return show
    return {"__contains__": contain, "__exit__": leave}.get(name, convert if name in _names(_CONVERTING) else ask)


def _signature(described):
    import inspect

    parameters, returned = described
    empty = inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect._ParameterKind(kind),
                default=default[0] if default else empty,
                annotation=annotation[0] if annotation else empty,
            )
            for name, kind, default, annotation in parameters
        ],
        return_annotation=returned[0] if returned else empty,
    )
