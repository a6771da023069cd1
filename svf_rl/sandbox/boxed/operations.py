"""What one side may ask of the objects of the other, and what both do with an assertion."""

import copy
import operator

from stand_ins import SPECIAL


def special(value, name, *operands):
    """The special method `name` of the value's class."""
    if name not in SPECIAL:
        raise AttributeError(name)
    if isinstance(value, type):  # some of a class's are also found in the class itself
        return {"__iter__": iter, "__len__": len, "__getitem__": operator.getitem}[name](value, *operands)
    return getattr(type(value), name)(value, *operands)


def signature(value):
    """As `stand_ins.py` makes it again."""
    import inspect

    found = inspect.signature(value)

    def optional(part):
        return () if part is inspect.Parameter.empty else (part,)

    parameters = [(p.name, int(p.kind), optional(p.default), optional(p.annotation)) for p in found.parameters.values()]
    return parameters, optional(found.return_annotation)


def assertion(count):
    """`__count__` in tests whose assertions are counted: tells `count` whether the condition of one holds."""

    def counted(number, condition):
        try:
            count(number, bool(condition()))
        except Exception:  # an assertion that raises does not hold
            count(number, False)

    return counted


OPERATIONS = {
    "call": lambda function, *arguments, **keywords: function(*arguments, **keywords),
    "method": lambda value, name, *arguments: getattr(value, name)(*arguments),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "dir": lambda value: sorted(dir(value)),
    "equal": lambda one, other: bool(one == other),
    "special": special,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "signature": signature,
}
