"""The process of the solution: sets its own limits, runs the code, then answers the calls of the test process.

Nothing here decides about the verdict, so it does not matter what a solution does to this process.
"""

import builtins
import posix
import resource
import sys
from types import ModuleType

from choose_program import choose
from wire import Link, WireError, own


def main(descriptor):
    objects = []  # those that the test process refers to by number
    numbers = {}

    def refer(value):
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)  # kept alive, so that its id stays unique
        return own(numbers[id(value)])

    link = Link(descriptor, refer, lambda number: stand_in(link, number), objects)
    link.send(("started", None, ""))
    job = link.receive()
    for name, most in job["limits"].items():  # soft and hard, so that they cannot be raised again
        resource.setrlimit(getattr(resource, name), (most, most))
    if not job["main"]:
        nothing = posix.open("/dev/null", posix.O_RDWR)
        for standard in (0, 1):
            posix.dup2(nothing, standard)
    chosen, problem = choose(job["candidates"], job["wanted"])
    if not chosen:
        link.send(("broken", None, problem))
        return
    link.send(("chosen", chosen, ""))
    program = "\n".join(job["candidates"][number] for number in chosen)
    name = "__main__" if job["main"] else "solution"
    module = ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    builtins.exit = builtins.quit = sys.exit  # `site` defines them, and it is not loaded
    for part, source in (("imports", job["imports"]), ("solution", program), ("setup", job["setup"])):
        if not source:
            continue
        try:
            exec(compile(source, f"<{part}>", "exec"), module.__dict__)
        except BaseException as error:
            if job["main"]:
                raise
            link.send(("broken", None, described(error)))  # the test process must know of everything, `SystemExit` too
            return
    if not job["main"]:
        link.send(("loaded", None, ""))
        while True:  # until the test process hangs up
            answer(link, module.__dict__, *link.receive())


def answer(link, namespace, operation, operands, keywords):
    """Carry out what the test process asks for, and reply with (what, value, arguments)."""
    try:
        if operation == "globals":
            found = {name: namespace[name] for name in operands if name in namespace}
            value = {
                name: ("module", item.__name__) if type(item) is ModuleType else ("value", item)
                for name, item in found.items()
            }
        else:
            value = OPERATIONS[operation](*operands, **keywords)
        reply = ("value", value, None)
        if operation == "call" and any(isinstance(operand, list | dict | set | bytearray) for operand in operands[1:]):
            reply = ("value", value, list(operands[1:]))  # the caller must see what a function did to its arguments
    except BaseException as error:  # the test process raises it again on its side
        kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
        reply = ("raised", next(kinds, "Exception"), described(error))  # the nearest built-in class
    try:
        link.send(reply)
    except (WireError, RecursionError, MemoryError) as error:
        link.send(("raised", "ValueError", f"the result cannot be passed on: {error}"))


def stand_in(link, number):
    """A function that calls the test process's function of that number."""

    def call(*arguments):
        link.send(("callback", number, list(arguments)))
        while True:
            operation, operands, keywords = link.receive()
            if operation == "returned":
                return operands[0]
            if operation == "failed":
                raise RuntimeError(operands[0])
            answer(link, {}, operation, operands, keywords)

    return call


OPERATIONS = {
    "call": lambda function, *arguments, **keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda value, key: value[key],
    "setitem": lambda value, key, item: value.__setitem__(key, item),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "equal": lambda one, other: bool(one == other),
    "isinstance": isinstance,
}


def described(error):
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # its `__str__` belongs to the solution
        return type(error).__name__[:500]
