"""The process that decides: it runs the tests, whose calls reach the solution in another process through proxies."""

import ast
import builtins
import contextlib
import json
import os
import resource
import signal
import sys

import system_calls
from solution_proxy import CannotPass, Gone, Proxy, Solution

# How long a program may wait for a processor, beyond its own time (the patience of `svf_rl/sandbox/bubblewrap.py`)
WAIT_SECONDS = 30


def run_tests(job, descriptor, tell):
    """
    Run the tests of a job against the program behind `descriptor`.

    Returns a dictionary: `chosen` (numbers of the candidates that the program is made of), `passed` (one boolean a
    test), `reason` (of the first failure, or `""`), and `unscorable` (why the tests have no result, or `""`). `None`
    when there is no box.
    """
    solution = Solution(descriptor)
    trees = [ast.parse(test) for test in job["tests"]]
    chosen, reason = solution.load(for_solution(job))
    if not solution.started:
        return None
    outcome = {"chosen": chosen, "passed": [False] * len(trees), "reason": reason, "unscorable": ""}
    if reason:
        return outcome
    try:
        namespace = _namespace(job, trees, solution)
        if job["entry_point"]:
            outcome["passed"], outcome["reason"] = _checked(job, trees, namespace, solution, tell)
        else:
            outcome["passed"], outcome["reason"] = _asserted(trees, namespace, solution, tell)
    except Gone as error:
        outcome["reason"] = outcome["reason"] or str(error)
    except CannotPass as error:
        outcome["unscorable"] = str(error)
    return outcome


def _asserted(trees, namespace, solution, tell):
    """Run each test separately."""
    passed, reason = [], ""
    for tree in trees:
        text = "" if solution.gone else _failure(compile(tree, "<test>", "exec"), namespace)
        if text:
            text = f"{text} in the test: {ast.unparse(tree)}"[:500]
        passed.append(not text and not solution.gone)
        reason = reason or text or solution.gone
        tell({"passed": passed + [False] * (len(trees) - len(passed))})
    return passed, reason


def _checked(job, trees, namespace, solution, tell):
    """`check(candidate)` of the last tree: one test, or with `share` one for each of its `assert` statements."""
    counts = {}
    if job["share"]:
        trees = [_Counted(counts).visit(tree) for tree in trees]

        def count(number, condition):
            before = counts[number]
            try:
                counts[number] = bool(condition()) and before is not False
            except Exception:  # an assertion that raises does not hold
                counts[number] = False
            if counts[number] is not before:
                tell({"passed": [holds is True for holds in counts.values()]})

        namespace["__count__"] = count
    call = ast.parse(f"check({job['entry_point']})")
    reason = ""
    for tree in [*trees, call]:
        reason = reason or _failure(compile(ast.fix_missing_locations(tree), "<test>", "exec"), namespace)
    reason = reason or solution.gone
    if not counts:
        return [not reason], reason
    # those that a finished check did not reach, as `assert False` after what must raise, say nothing
    passed = [holds is True for holds in counts.values() if reason or holds is not None] or [not reason]
    return passed, reason or ("" if all(passed) else f"{passed.count(False)} of {len(passed)} assertions do not hold")


def _failure(code, namespace):
    """Why the code fails, or `""` when it runs to its end."""
    try:
        exec(code, namespace)
    except Gone as error:
        return str(error)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}".removesuffix(": ")[:500]
    return ""


class _Counted(ast.NodeTransformer):
    """`assert condition` becomes `__count__(number, lambda: condition)`, after which the test continues."""

    def __init__(self, counts):
        self._counts = counts

    def visit_Assert(self, node):
        number = len(self._counts)
        self._counts[number] = None  # not reached yet
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        arguments = [ast.Constant(number), ast.Lambda(nothing, node.test)]
        call = ast.Expr(ast.Call(ast.Name("__count__", ast.Load()), arguments, []))
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _namespace(job, trees, solution):
    """
    The names that tests can use: their imports, and what the solution defines.

    The name of a module means that module of this process and no other, whatever the solution binds to it. Names of
    built-in functions mean the solution's only if the tests call nothing else of it: a solution that defines `abs` or
    `math` must not be tested with its own definitions.
    """
    nodes = [node for tree in trees for node in ast.walk(tree)]
    loaded = {node.id for node in nodes if isinstance(node, ast.Name)}
    if job["entry_point"]:
        loaded.add(job["entry_point"])
    theirs = solution.ask("globals", *sorted(loaded))
    values, modules = {}, {}
    for name in loaded & theirs.keys():  # anything else, such as `__builtins__`, was not requested
        kind, value = theirs[name]
        if kind == "module" or (type(value) is Proxy and _is_module(name, nodes)):
            modules |= _trusted_module(name)
        elif kind == "value":
            values[name] = value
    plain = {name: value for name, value in values.items() if not hasattr(builtins, name)}
    if job["entry_point"]:
        plain |= {name: value for name, value in values.items() if name == job["entry_point"]}
    elif not any(callable(value) for value in plain.values()):
        plain = values
    namespace = {**modules, **plain, "__name__": "tests", "__builtins__": builtins}
    if job["prompt"]:
        namespace.update(_helpers(job["prompt"], job["entry_point"], loaded))
    exec(compile(job["imports"], "<imports>", "exec"), namespace)
    return namespace


# Names under which tests may mean a module that is called otherwise
_ALIASES = {"np": "numpy", "pd": "pandas", "dt": "datetime"}
# Modules that run code: tests that mean one must import it themselves.
_NEVER = frozenset(
    "bdb cProfile code codeop concurrent ctypes dbm doctest ensurepip idlelib imp importlib lib2to3 marshal "
    "multiprocessing os pdb pickle pickletools pkgutil posix profile pstats pty pydoc runpy shelve site "
    "subprocess timeit trace turtledemo unittest venv webbrowser xmlrpc zipapp zipimport".split()
)


def _trusted_module(name):
    """The module that a name means, by itself: nothing here follows what the solution says of it."""
    module = _ALIASES.get(name, name)
    known = module in sys.stdlib_module_names or module in ("numpy", "pandas")
    if not known or module.startswith("_") or module in _NEVER:
        return {}
    try:
        return {name: __import__(module)}
    except ImportError:  # not installed
        return {}


def _is_module(name, nodes):
    """Whether the tests mean a module of the standard library: they only use attributes of the name, which it has."""
    if not _trusted_module(name):
        return False
    taken = [node.attr for node in nodes if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == name]
    uses = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    return 0 < uses == len(taken) and all(hasattr(__import__(name), attribute) for attribute in taken)


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


def for_solution(job):
    """The part of a job that is sent to the solution's process."""
    return {key: job[key] for key in ("candidates", "wanted", "imports", "setup", "main", "limits")}


def run(job, descriptor, report):
    """
    Run the tests in this process, a fork that ends here. The outcome goes to the descriptor `report` as a line of JSON
    and an empty line. If the share of passed tests counts, a line is sent before whenever the share changes.
    """
    seconds = int(job["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # ends the process where the supervisor, which sees what waits for a processor, did not: the tests may hang
    signal.setitimer(signal.ITIMER_REAL, seconds + WAIT_SECONDS)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    system_calls.confine_tests(descriptor, report)

    def tell(outcome):
        os.write(report, json.dumps(outcome).encode() + b"\n")

    try:
        outcome = run_tests(job, descriptor, tell if job["share"] else lambda outcome: None)
    except Exception as error:  # can only be caused by data from the program
        passed, reason = [False] * len(job["tests"]), f"{type(error).__name__} in the tests: {error}"[:500]
        outcome = {"chosen": [], "passed": passed, "reason": reason, "unscorable": ""}
    tell(outcome)
    os.write(report, b"\n")
