"""The process of the solution: sets its own limits, runs the code, then answers the calls of the test process.

Nothing here decides about the verdict, so it does not matter what a solution does to this process.
"""

import builtins
import importlib
import json
import posix
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import system_calls
from choose_program import choose
from link import Link
from operations import OPERATIONS, assertion
from standard_files import name_standard_files


def main(descriptor, boxed):
    link = Link(descriptor, 1)
    link.send(("started", None, ""))
    job = json.loads(link.receive())
    for name, most in job["limits"].items():
        system_calls.limit(name, most)
    if boxed:
        system_calls.keep_time()
    if job["main"]:
        name_standard_files()
    else:
        nothing = posix.open("/dev/null", posix.O_RDWR)
        for standard in (0, 1):
            posix.dup2(nothing, standard)
    chosen, problem = choose(job["candidates"], job["wanted"])
    if not chosen:
        link.send(("broken", None, problem))
        return
    link.send(("chosen", tuple(chosen), ""))
    program = "\n".join(job["candidates"][number] for number in chosen)
    name = "__main__" if job["main"] else "solution"
    module = ModuleType(name)
    module.__file__ = f"{posix.getcwd()}/{name}.py"
    module.__loader__ = SimpleNamespace(get_source=lambda name: program)  # for `inspect`
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    builtins.exit = builtins.quit = sys.exit  # `site` defines them, and it is not loaded
    parts = (("<imports>", job["imports"]), (module.__file__, program), ("<setup>", job["setup"]))
    for file_name, source in parts:
        if not source:
            continue
        try:
            exec(compile(source, file_name, "exec"), module.__dict__)
        except BaseException as error:
            if job["main"]:
                raise
            link.send(("broken", None, described(error)))  # the test process must know of everything, `SystemExit` too
            return
    if not job["main"]:
        link.send(("loaded", None, ""))
        link.answer = partial(answer, vars(module), {})
        while True:  # until the test process hangs up
            _, asked, keywords = link.receive()
            reply(link, asked, keywords)
            asked = keywords = None  # nothing here must keep what the tests have forgotten


def reply(link, asked, keywords):
    try:
        link.reply(asked, keywords)
    except BaseException as error:  # `SystemExit` and similar end a program
        link.send(("ended", None, described(error)))


def answer(namespace, tests, operation, *operands, **keywords):
    """Carry out what the test process asks for. `tests` is the namespace of tests that run here."""
    if operation == "globals":
        found = ((name, namespace[name]) for name in operands if name in namespace)
        return tuple(pair for pair in found if type(pair[1]) is not ModuleType)
    if operation == "run":
        return run_inside(namespace, tests, *operands)
    return OPERATIONS[operation](*operands, **keywords)


def run_inside(namespace, tests, text, modules, built_in, reached, count):
    """Run tests in this process, where the program can forge what they find."""
    if not tests:
        tests.update(namespace, __name__="tests", **{name: getattr(builtins, name) for name in built_in})
        tests.update({name: importlib.import_module(module) for name, module in modules})
    tests.update(__reached__=reached, __count__=assertion(count))
    exec(compile(text, "<tests>", "exec"), tests)


def described(error):
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # its `__str__` belongs to the solution
        return type(error).__name__[:500]
