"""Which of the texts that a completion holds is its program. Runs in the box, since reading hostile code may kill."""

import ast
import builtins
from functools import cache


def choose(candidates, wanted):
    """
    The numbers of the candidates that make the program, joined in this order; none, and why the first of all does not
    compile, where none does.

    The program is the first candidate that defines one of the wanted names, else the first that does something, else
    the first that compiles. Before it come others, which do nothing but define, for names that it lacks: its imports
    or helpers in a block of their own.
    """
    problems = []

    @cache
    def parsed(number):
        try:
            return compile(candidates[number], "<solution>", "exec", ast.PyCF_ONLY_AST).body
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
            problems.append(f"{type(error).__name__}: {error}"[:500])
            return []

    numbers = range(len(candidates))
    program = next((n for n in numbers if wanted and not bound(parsed(n)).isdisjoint(wanted)), None)
    for suits in (does_something, lambda statement: True):
        if program is None:
            program = next((n for n in numbers if any(map(suits, parsed(n)))), None)
    if program is None:
        return [], (problems or ["the program is empty"])[0]
    joined = []
    missing = lacking(parsed(program), wanted)
    while missing:
        others = (n for n in numbers if n != program and n not in joined and not any(map(does_something, parsed(n))))
        found = next((n for n in others if missing & bound(parsed(n))), None)
        if found is None:
            break
        joined.append(found)
        missing = (missing | lacking(parsed(found), ())) - set().union(*(bound(parsed(n)) for n in joined))
    return [*sorted(joined), program], ""


def named(node):
    """The names that a node itself binds: of a function, a class, an argument, an import, an assignment, what `except`
    and `match` name."""
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).partition(".")[0]}
    if isinstance(node, ast.Name):
        return set() if isinstance(node.ctx, ast.Load) else {node.id}
    own = (getattr(node, "name", None), node.arg if isinstance(node, ast.arg) else None)
    return {name for name in own if isinstance(name, str)}


def bound(statements):
    """The names that statements bind in their own scope."""
    names, waiting = set(), list(statements)
    while waiting:
        node = waiting.pop()
        names |= named(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


def lacking(statements, wanted):
    """The names that statements use, or that are wanted of them, and that nothing in them binds."""
    used, given = set(wanted), bound(statements)
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.add(node.id)
        given |= named(node)
    return set() if "*" in given else used - given - vars(builtins).keys()


_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)


def does_something(statement):
    """Whether a statement does more than define names and constants; prose that compiles, like `Solution` and
    `Answer: below`, does not."""
    if isinstance(statement, ast.Expr):
        return any(isinstance(node, ast.Call | ast.Await | ast.NamedExpr) for node in ast.walk(statement))
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return any(isinstance(node, ast.Call | ast.Name) for node in ast.walk(statement.value or ast.Pass()))
    return not isinstance(statement, _DEFINITIONS)
