"""What the names in tests mean: the tests' own, the solution's, or a built-in function or module, whatever the solution
binds to its name. All of it is decided by the tests alone."""

import ast
import builtins
import contextlib
import sys
from typing import NamedTuple

from choose_program import named

# Names under which tests may mean a module that is called otherwise
_ALIASES = {"np": "numpy", "pd": "pandas", "dt": "datetime"}
# Modules that run code: tests that mean one must import it themselves.
_NEVER = frozenset(
    "antigravity bdb cProfile code codeop concurrent ctypes dbm doctest ensurepip idlelib imp importlib lib2to3 "
    "marshal multiprocessing os pdb pickle pickletools pkgutil posix profile pstats pty pydoc runpy shelve site "
    "subprocess timeit trace turtledemo unittest venv webbrowser xmlrpc zipapp zipimport".split()
)


# Built-in functions that tests use around a result. A solution's own is meant only where tests use no other name.
_HELPERS = frozenset(
    "abs all any bool callable dict float frozenset getattr hasattr id int isinstance issubclass iter len list map "
    "next print range repr reversed round set sorted str tuple type vars zip".split()
)


class Names(NamedTuple):
    """`modules`: the modules that names mean; `built_in`: names that mean built-in functions; `solution`: names that
    mean the solution's."""

    modules: dict[str, str]
    built_in: list[str]
    solution: list[str]


def find_names(job, trees):
    """The [`Names`] in the trees of a job's tests."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    loaded = {node.id for node in names} | ({job["entry_point"]} if job["entry_point"] else set())
    modules = {name: module for name in loaded if (module := _meant_module(name, nodes))}
    built_in = {name for name in loaded if hasattr(builtins, name)} - {job["entry_point"]}
    called = {getattr(node.func, "id", "") for node in nodes if isinstance(node, ast.Call)} & built_in
    others = loaded - built_in - modules.keys()
    given = ast.parse(f"{job['imports']}\n{job['setup']}")
    if called and others <= set().union(*map(named, (*nodes, *ast.walk(given)))):
        # as `assert sum(1, 2) == 3`, where there is nothing else that the solution could define
        built_in -= called if len(called) == 1 else called - _HELPERS
    return Names(modules, sorted(built_in), sorted(loaded - built_in - modules.keys()))


def bind_names(job, names, solution):
    """The namespace of tests that run beside the solution."""
    theirs = dict(solution.ask("globals", *names.solution))
    values = {name: theirs[name] for name in names.solution if name in theirs}  # nothing that was not asked for
    solution.named = {v for name, v in values.items() if _is_class_name(name) and type(v) is solution.metaclass}
    modules = {name: __import__(module) for name, module in names.modules.items()}
    namespace = {**modules, **values, "__name__": "tests", "__builtins__": builtins}
    if job["prompt"]:
        namespace.update(_helpers(job["prompt"], job["entry_point"], names.solution))
    if job["imports"]:
        exec(compile(job["imports"], "<imports>", "exec"), namespace)
    for node in ast.parse(job["setup"]).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            with contextlib.suppress(ImportError, OSError):  # of the solution, say, or too large
                exec(compile(ast.Module([node], []), "<setup>", "exec"), namespace)
    return namespace


def _is_class_name(name):
    return name[:1].isupper() and "_" not in name


def _meant_module(name, nodes):
    """The module that tests mean by a name which they use only for attributes that it has, else `""`."""
    module = _ALIASES.get(name, name)
    known = module in sys.stdlib_module_names or module in ("numpy", "pandas")
    if not known or module.startswith("_") or module in _NEVER:
        return ""
    uses = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    taken = [node.attr for node in nodes if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == name]
    if not 0 < uses == len(taken):
        return ""
    try:
        found = __import__(module)
    except ImportError:  # not installed
        return ""
    return module if all(hasattr(found, attribute) for attribute in taken) else ""


def _helpers(prompt, entry_point, loaded):
    """Other functions that the prompt defines: the tests mean these, not the solution's."""
    namespace = {"__name__": "prompt"}
    for body in ("", " pass", "\n    pass"):  # a prompt may end before the body of its function
        with contextlib.suppress(SyntaxError):
            exec(compile(prompt.rstrip() + body, "<prompt>", "exec"), namespace)
            break
    return {
        name: namespace[name]
        for name in loaded
        if name in namespace and name != entry_point and callable(namespace[name])
    }
