"""`unit_tests`: the program in the completion passes the reference's tests, run in the sandbox."""

import ast
import keyword
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from svf_rl.errors import SVFError
from svf_rl.rewards.reading.program_texts import find_candidates
from svf_rl.rewards.references import is_number, shorten
from svf_rl.rewards.verifier import Verdict, verifier
from svf_rl.sandbox.bubblewrap import MEMORY_MB, SECONDS, run_program

# Of all candidates together. A real program is never this long; the sandbox accepts 64 MB at most, and a character may
# take four bytes.
_MOST_CHARACTERS = 1 << 23


def check_reference(reference: Any, *, timeout: float = SECONDS, memory_mb: int = MEMORY_MB, **_: Any) -> None:
    """Raises `SVFError` for a reference that is not one of the three kinds, or whose tests are not valid Python, and
    for invalid limits."""
    if not is_number(timeout) or not 0 < timeout <= 3600:
        raise SVFError(f"unit_tests: timeout must be a number of seconds above 0 and at most 3600, not {timeout!r}")
    if isinstance(memory_mb, bool) or not isinstance(memory_mb, int) or memory_mb < 64:
        raise SVFError(f"unit_tests: memory_mb must be a whole number of at least 64, not {memory_mb!r}")
    _request(reference)


@verifier("unit_tests", waits=True, check_reference=check_reference)
def unit_tests(
    completion: str,
    reference: Any,
    *,
    share: bool = False,
    timeout: float = SECONDS,
    memory_mb: int = MEMORY_MB,
    allow_unsandboxed: bool = False,
    tests: Literal["beside", "inside"] = "beside",
) -> Verdict:
    """
    Run the program against tests. It sees the arguments of the tests' calls, never the tests.

    What a program can still do in spite of the sandbox: cheat in a helper that the tests call and that it defines
    itself (give `prompt`, then the prompt's helpers are used); read `test_setup_code`, which runs in the program's
    process (its imports, for the tests, outside of it), and change what it calls, so it should neither contain expected
    values nor compare anything; and decide how two objects of its own classes compare. Where the tests have assertions,
    one must have been reached.

    Args:
        completion (`str`): holds the program: raw, in a fenced block, up to a closing fence, or the body of the
            function that the reference's `prompt` begins.
        reference (`Mapping`): one of these, other keys are not read:

            - `{test, entry_point}` and optionally `prompt` (HumanEval): `test` defines `check(candidate)`;
            - `{test_list}` and optionally `test_setup_code` (run after the program), `test_imports`, `entry_point`
              (MBPP): each test a piece of code with `assert`;
            - `{inputs, outputs}`: texts for standard input, and what must be printed.
        share (`bool`, *optional*, defaults to `False`): score the share of passed tests instead of all or nothing.
        timeout (`float`, *optional*, defaults to `10.0`):
            seconds of CPU time for the program in all of its tests, or for each pair of input and output. In total it
            may take three times as long by the clock, plus the time to start it for each pair.
        memory_mb (`int`, *optional*, defaults to `1024`): memory of the program.
        allow_unsandboxed (`bool`, *optional*, defaults to `False`):
            run it without a sandbox where bubblewrap is missing.
        tests (`str`, *optional*, defaults to `"beside"`):
            where tests run. `"inside"` is for tests that need the program in their own process: those that derive from
            its classes, compare its objects with plain values, patch, pickle or await what it defines, or use pandas.
            There a program can read the tests and forge every result, so it is for evaluation and not for training.
    """
    request = _request(reference)
    if not completion.strip():
        return Verdict(False, None, "the completion is empty")
    texts = find_candidates(completion, request["prompt"])
    if sum(map(len, texts)) > _MOST_CHARACTERS:
        return Verdict(False, None, "the program is too long to be run")
    outcome = run_program(
        {**request, "candidates": texts, "share": share, "inside": tests == "inside"},
        timeout,
        memory_mb,
        allow_unsandboxed,
    )
    code = "\n".join(texts[number] for number in outcome["chosen"]) or None
    passed = outcome["passed"]
    if outcome["unscorable"]:
        return Verdict(None, code, outcome["unscorable"])
    correct = bool(passed) and all(passed) and not outcome["reason"]
    reason = "all tests passed" if correct else outcome["reason"] or "a test failed"
    score = sum(passed) / len(passed) if share and passed else None
    return Verdict(correct, code, reason, score)


def _request(reference: Any) -> dict[str, Any]:
    """The reference as the supervisor expects it."""
    if not isinstance(reference, Mapping):
        raise SVFError(
            f"unit_tests: an answer must be a mapping, such as {{test_list: [...]}}, not {shorten(reference)}"
        )
    # in a table, each row has the keys of all rows
    given = {key: value for key, value in reference.items() if value is not None}
    request = {
        "prompt": _text(given, "prompt"), "entry_point": "", "wanted": [], "imports": "", "setup": "", "main": False,
        "tests": [], "inside": False,
    }  # fmt: skip
    if "inputs" in given or "outputs" in given:
        inputs, outputs = _texts(given, "inputs"), _texts(given, "outputs")
        if len(inputs) != len(outputs) or not inputs:
            counts = f"{len(inputs)} inputs and {len(outputs)} outputs"
            raise SVFError(f"unit_tests: {counts} in an answer; give one output for each input")
        return {**request, "main": True, "inputs": inputs, "outputs": outputs}
    imports = "\n".join(_texts(given, "test_imports"))
    setup = _text(given, "test_setup_code").replace("\r\n", "\n")
    _tree("test_imports", imports)
    _tree("test_setup_code", setup)
    request |= {"imports": imports, "setup": setup}
    if "entry_point" in given and not _is_name(_text(given, "entry_point")):
        raise SVFError(f"unit_tests: entry_point in an answer is not a valid name: {shorten(given['entry_point'])}")
    if "test_list" in given:
        tests = _texts(given, "test_list")
        request["wanted"] = [given["entry_point"]] if "entry_point" in given else _called(tests)
    elif "test" in given and "entry_point" in given:
        tests = [_text(given, "test")]
        request |= {"entry_point": given["entry_point"], "wanted": [given["entry_point"]]}
        if "check" not in _bound(_tree("test", tests[0])):
            raise SVFError(f"unit_tests: test in an answer does not define check(candidate): {shorten(tests[0])}")
    else:
        raise SVFError("unit_tests: an answer needs test and entry_point, test_list, or inputs and outputs")
    for test in tests:
        if not _tree("a test", test).body:
            raise SVFError("unit_tests: a test in an answer is empty, so that every program would pass it")
    if not tests:
        raise SVFError("unit_tests: an answer has no tests")
    return {**request, "tests": tests}


def _called(tests: Sequence[str]) -> list[str]:
    """Names that the tests call, in their order."""
    nodes = [node for test in tests for node in ast.walk(_tree("a test", test))]
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    return list(dict.fromkeys(call.id for call in calls if isinstance(call, ast.Name)))


def _bound(tree: ast.Module) -> set[str]:
    """Names that a module may bind at its top level."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias)
    }


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _tree(what: str, code: str) -> ast.Module:
    """The parsed code. Raises `SVFError` for invalid Python."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # null bytes, and what is too deep
        raise SVFError(f"unit_tests: {what} in an answer is not valid Python ({error}): {shorten(code)}") from error


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise SVFError(f"unit_tests: {key} in an answer must be text, not {shorten(value)}")
    return value


def _texts(given: Mapping[str, Any], key: str) -> list[str]:
    value = given.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise SVFError(f"unit_tests: {key} in an answer must be a list of texts, not {shorten(value)}")
    return list(value)
