"""The process that decides: it runs the tests, whose calls reach the solution in another process through proxies."""

import ast
import copy
import json
import os
import signal
from functools import partial

import system_calls
from operations import assertion
from solution_proxy import CannotPass, Gone, Solution
from test_names import bind_names, find_names

MOST_SECONDS = 24 * 3600
NONE_REACHED = "no assertion was reached"


# Made before the fork; each process uses its own
_READY = Solution()
_READY.prepare()


def run_tests(job, descriptor, tell):
    """
    Run the tests of a job against the program behind `descriptor`.

    Returns a dictionary: `chosen` (numbers of the candidates that the program is made of), `passed` (one boolean a
    test), `reason` (of the first failure, or `""`), and `unscorable` (why the tests have no result, or `""`). `None`
    when there is no box.
    """
    solution, solution.descriptor = _READY, descriptor
    trees = [ast.parse(test) for test in job["tests"]]
    chosen, reason = solution.load(for_solution(job))
    if not solution.started:
        return None
    outcome = {"chosen": chosen, "passed": [False] * len(trees), "reason": reason, "unscorable": ""}
    if reason:
        return outcome
    try:
        names, reached = find_names(job, trees), set()
        if job["inside"]:
            run = partial(_inside, solution, (tuple(names.modules.items()), tuple(names.built_in)))
        else:
            run = partial(_beside, bind_names(job, names, solution), reached)
        asserts = _asserts(*trees)
        judge = _checked if job["entry_point"] else _asserted
        outcome["passed"], outcome["reason"] = judge(job, trees, run, solution, tell)
        if not job["inside"] and not outcome["reason"] and asserts and not reached:
            outcome.update(passed=[False] * len(outcome["passed"]), reason=NONE_REACHED)
    except Gone as error:
        outcome["reason"] = outcome["reason"] or str(error)
    except CannotPass as error:
        outcome["unscorable"] = str(error)
    return outcome


def _asserted(job, trees, run, solution, tell):
    """Run each test separately."""
    passed, reason = [], ""
    for tree in trees:
        text = "" if solution.gone else run(tree)
        if text:
            text = f"{text} in the test: {ast.unparse(tree)}"[:500]
        passed.append(not text and not solution.gone)
        reason = reason or text or solution.gone
        tell({"passed": passed + [False] * (len(trees) - len(passed))})
    return passed, reason


def _checked(job, trees, run, solution, tell):
    """`check(candidate)` of the last tree: one test, or with `share` one for each of its `assert` statements."""
    counts = {}
    if job["share"]:
        trees = [ast.fix_missing_locations(_Counted(counts).visit(tree)) for tree in trees]

    def count(number, holds):
        before = counts[number]
        counts[number] = holds is True and before is not False
        if counts[number] is not before:
            tell({"passed": [holds is True for holds in counts.values()]})

    call = ast.parse(f"check({job['entry_point']})")
    reason = ""
    for tree in [*trees[:-1], ast.Module([*trees[-1].body, *call.body], [])]:
        reason = reason or run(tree, count)
    reason = reason or solution.gone
    if not counts:
        return [not reason], reason
    # those that a finished check did not reach, as `assert False` after what must raise, say nothing
    passed = [holds is True for holds in counts.values() if reason or holds is not None] or [not reason]
    return passed, reason or ("" if all(passed) else f"{passed.count(False)} of {len(passed)} assertions do not hold")


def _beside(namespace, reached, tree, count=None):
    """Run a tree in this process: why it fails, or `""`. The assertions that hold are added to `reached`."""

    def counted(number, holds):
        reached.add(number)
        count(number, holds)

    namespace.update(__count__=assertion(counted), __reached__=reached.add)
    tree = ast.fix_missing_locations(_Reached().visit(copy.deepcopy(tree)))
    return _failure(exec, compile(tree, "<test>", "exec"), namespace)


def _inside(solution, names, tree, count=None):
    """Run a tree in the solution's process: why it fails, or `""`. Whoever runs there may say what is not so; only that
    assertions were reached is counted here."""
    reached = set()
    tree = ast.parse(ast.unparse(tree))
    asserts = _asserts(tree)
    text = ast.unparse(ast.fix_missing_locations(_Reached().visit(tree)))
    reason = _failure(solution.ask, "run", text, *names, reached.add, count)
    return reason or (NONE_REACHED if asserts and not reached else "")


def _asserts(*trees):
    """The assertions in trees. `assert False` is none: it stands where nothing should come."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [node for node in nodes if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)]


def _failure(function, *arguments):
    """Why a call fails, or `""` when it returns."""
    try:
        function(*arguments)
    except Gone as error:
        return str(error)
    except (Exception, SystemExit) as error:
        return _described(error)
    return ""


def _described(error):
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")[:500]
    except (Exception, Gone):  # its text is the solution's to give
        return type(error).__name__


class _Reached(ast.NodeTransformer):
    """After each assertion that holds, `__reached__` is called with its line."""

    def visit_Assert(self, node):
        call = ast.Call(ast.Name("__reached__", ast.Load()), [ast.Constant(node.lineno)], [])
        return [node, ast.copy_location(ast.Expr(call), node)]


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


def for_solution(job):
    """The part of a job that is sent to the solution's process."""
    return {key: job[key] for key in ("candidates", "wanted", "imports", "setup", "main", "limits")}


def run(job, descriptor, report):
    """
    Run the tests in this process, a fork that ends here. The outcome goes to the descriptor `report` as a line of JSON
    and an empty line. If the share of passed tests counts, a line is sent before whenever the share changes.
    """
    seconds = int(job["seconds"]) + 1
    system_calls.limit("RLIMIT_AS", 1 << 31)
    system_calls.limit("RLIMIT_CPU", seconds, seconds + 1)  # SIGXCPU, and SIGKILL later
    signal.alarm(MOST_SECONDS)  # ends the process where no supervisor is left that would
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    system_calls.confine_tests(descriptor, report)

    def tell(outcome):
        os.write(report, json.dumps(outcome).encode() + b"\n")

    try:
        outcome = run_tests(job, descriptor, tell if job["share"] else lambda outcome: None)
    except Exception as error:  # can only be caused by data from the program
        passed, reason = [False] * len(job["tests"]), f"{_described(error)} (in the tests)"
        outcome = {"chosen": [], "passed": passed, "reason": reason, "unscorable": ""}
    tell(outcome)
    os.write(report, b"\n")
