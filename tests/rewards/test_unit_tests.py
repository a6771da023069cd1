"""`unit_tests` says right of right programs, and wrong of wrong ones, whatever a completion wraps them in."""

import ast
import gzip
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fakes import BUSY_WAIT

from svf_rl.errors import SVFError
from svf_rl.rewards import Verdict, load_reward, verify, verify_all

pytestmark = pytest.mark.usefixtures("bubblewrap")

ASSERTS = {"test_list": ["assert f(1) == 2", "assert f(5) == 6"]}
GOOD = "def f(x):\n    return x + 1\n"


def run(program: str, *tests: str, **options: Any) -> Verdict:
    return verify("unit_tests", program, {"test_list": list(tests)}, **options)


def failures(programs: list[str], references: list[dict[str, Any]], **options: Any) -> dict[int, str]:
    """Position and reason of the programs that do not pass."""
    verdicts = verify_all("unit_tests", programs, references, progress=False, **options)
    return {at: verdict.reason for at, verdict in enumerate(verdicts) if verdict.correct is not True}


# Benchmarks


@pytest.fixture(scope="module")
def humaneval(shared_data: Path) -> list[dict[str, str]]:
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def checked(row: dict[str, str], *, prompt: bool = False) -> dict[str, str]:
    return {key: row[key] for key in ("test", "entry_point", *(["prompt"] if prompt else []))}


def test_humaneval_solutions_pass(humaneval: list[dict[str, str]]) -> None:
    assert len(humaneval) == 164
    assert (
        failures([row["prompt"] + row["canonical_solution"] for row in humaneval], list(map(checked, humaneval))) == {}
    )


def test_humaneval_bodies_pass_with_their_prompt(humaneval: list[dict[str, str]]) -> None:
    references = [checked(row, prompt=True) for row in humaneval]
    assert failures([row["canonical_solution"] for row in humaneval], references) == {}


def test_humaneval_solutions_whose_result_is_changed_fail(humaneval: list[dict[str, str]]) -> None:
    changed = [
        f"{row['prompt']}{row['canonical_solution']}\n_right = {row['entry_point']}\n"
        f"def {row['entry_point']}(*arguments):\n    return ('wrong', _right(*arguments))\n"
        for row in humaneval
    ]
    verdicts = verify_all("unit_tests", changed, list(map(checked, humaneval)), progress=False)
    assert [
        row["task_id"] for row, verdict in zip(humaneval, verdicts, strict=True) if verdict.correct is not False
    ] == []


def test_humaneval_solutions_with_a_mutation_fail(humaneval: list[dict[str, str]]) -> None:
    """One operator of each function is another."""
    rng = random.Random(0)
    mutants, references, tasks = [], [], []
    for row in humaneval:
        mutant = mutated(row["prompt"] + row["canonical_solution"], row["entry_point"], rng)
        if mutant:
            mutants.append(mutant)
            references.append(checked(row))
            tasks.append(row["task_id"])
    verdicts = verify_all("unit_tests", mutants, references, timeout=3, progress=False)
    passing = [task for task, verdict in zip(tasks, verdicts, strict=True) if verdict.correct is not False]
    assert len(tasks) == 141
    # not one of 157's triangles has its longest side in the middle, where this mutant's mistake is
    assert passing == ["HumanEval/157"]


OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def mutated(program: str, entry_point: str, rng: random.Random) -> str:
    """The program with one operator of the function negated or swapped; empty where it has none."""
    tree = ast.parse(program)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry_point)
    places = [
        node
        for node in ast.walk(function)
        if (isinstance(node, ast.BinOp) and type(node.op) in OTHER)
        or (isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER)
    ]
    if not places:
        return ""
    place = rng.choice(places)
    if isinstance(place, ast.BinOp):
        place.op = OTHER[type(place.op)]()
    else:
        place.ops[0] = OTHER[type(place.ops[0])]()
    return ast.unparse(tree)


def test_the_example_samples_of_human_eval(shared_data: Path) -> None:
    """Its README gives their share as 0.5: a body may be indented by anything, and a program must not read input."""
    folder = shared_data / "humaneval"
    problem = json.loads((folder / "example_problem.jsonl").read_text())
    samples = [json.loads(line)["completion"] for line in (folder / "example_samples.jsonl").read_text().splitlines()]
    verdicts = verify_all("unit_tests", samples, [checked(problem, prompt=True)] * 6, timeout=3)
    assert [verdict.correct for verdict in verdicts] == [False, False, False, True, True, True]


def test_mbpp_solutions_pass(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "mbpp" / "mbpp.jsonl").open()]
    assert len(rows) == 974
    references = [{key: row[key] for key in ("test_list", "test_setup_code")} for row in rows]
    assert failures([row["code"] for row in rows], references) == {}


def test_sanitized_mbpp_solutions_pass(shared_data: Path) -> None:
    rows = json.loads((shared_data / "mbpp" / "sanitized-mbpp.json").read_text())
    assert len(rows) == 427
    references = [{key: row[key] for key in ("test_list", "test_imports")} for row in rows]
    assert failures([row["code"] for row in rows], references) == {}


# What surrounds the program

FLOOR = "def f(x):\n    return math.floor(x) + 1\n"
IN_FORMS = {
    "raw": GOOD,
    "fenced": f"```python\n{GOOD}```",
    "fenced without a language": f"```\n{GOOD}```",
    "fenced with tildes": f"~~~python\n{GOOD}~~~",
    "fenced with capitals": f"```Python\n{GOOD}```",
    "between prose": f"Here is the function:\n\n```python\n{GOOD}```\nIt adds one to `x`.",
    "cut off in the block": f"Here it is:\n```python\n{GOOD}",
    "after a prefilled fence": f"{GOOD}```\nThis adds one.",
    "after a prefilled fence, with examples": f"{GOOD}```\n\nFor example:\n\n```python\nprint(f(1))\n```",
    "second of two blocks": f"First, install it:\n```bash\npip install x\n```\n```python\n{GOOD}```",
    "after a block that is not it": f"```python\nprint('f')\n```\nand then\n```python\n{GOOD}```",
    "after a block that is broken": f"```python\ndef f(x:\n```\nOr rather:\n```python\n{GOOD}```",
    "indented fence": f"1. So:\n   ```python\n{GOOD}   ```",
    "Windows line ends": GOOD.replace("\n", "\r\n"),
    "fenced with Windows line ends": f"```python\n{GOOD}```\n".replace("\n", "\r\n"),
    "with a guard": GOOD + "if __name__ == '__main__':\n    raise SystemExit(f(1))\n",
    "imports in a block before": f"```python\nimport math\n```\nThen:\n```python\n{FLOOR}```",
    "imports in a block after": f"```python\n{FLOOR}```\nwhich needs\n```python\nimport math\n```",
    "a helper in a block of its own": "```python\nimport math\ndef floor(x):\n    return math.floor(x)\n```\n"
    "```python\ndef f(x):\n    return floor(x) + 1\n```",
    "a draft in its thoughts": f"<think>\n```python\ndef f(x):\n    return x\n```\n</think>\n```python\n{GOOD}```",
    "not closed before the next block": f"```python\n{GOOD}\n```python\nprint(f(1))\n```",
    "indented with its fence": "1. So:\n   ```python\n" + "".join(f"   {line}" for line in GOOD.splitlines(True)),
    "as a lambda": "f = lambda x: x + 1",
    "as a class that is called": "class f(int):\n    def __new__(cls, x):\n        return int(x + 1)\n",
    "with helpers after it": "def f(x):\n    return helper(x)\ndef helper(x):\n    return x + 1\n",
    "with type hints and imports": "from typing import *\ndef f(x: Optional[int]) -> 'int':\n    return x + 1\n",
    "with dataclasses": "from dataclasses import dataclass\n@dataclass\n"
    "class P:\n    x: int\ndef f(x):\n    return P(x).x + 1\n",
    "printing a lot": "def f(x):\n    print('working ' * 10 ** 5)\n    return x + 1\n",
}


@pytest.mark.parametrize("completion", [pytest.param(text, id=name) for name, text in IN_FORMS.items()])
def test_the_program_is_found(completion: str) -> None:
    verdict = verify("unit_tests", completion, ASSERTS)
    assert (verdict.correct, verdict.reason) == (True, "all tests passed")
    assert verdict.extracted is not None
    assert "x" in verdict.extracted


PROMPT = "import math\n\n\ndef f(x):\n    '''Add one.'''\n"
WITH_PROMPT = {"test": "def check(candidate):\n    assert candidate(1) == 2\n", "entry_point": "f", "prompt": PROMPT}


@pytest.mark.parametrize(
    "completion",
    [
        "    return math.floor(x) + 1\n",
        "    return x + 1\n\n\ndef main():\n    pass\n",
        "    return x + 1\n```\nThat is it.",
        PROMPT + "    return x + 1\n",
        "def f(x):\n    return math.floor(x) + 1\n",
        f"```python\n{PROMPT}    return x + 1\n```",
        "```python\n    return x + 1\n```",
        "Sure:\n```python\ndef f(x):\n    return math.floor(x) + 1\n```",
    ],
)
def test_a_prompt_is_gone_on_from_or_repeated(completion: str) -> None:
    verdict = verify("unit_tests", completion, WITH_PROMPT)
    assert (verdict.correct, verdict.reason) == (True, "all tests passed")


@pytest.mark.parametrize("completion", ["", "  \n", "no code", "```python\n```", "def g(x):\n    return x + 1\n"])
def test_no_program_is_wrong(completion: str) -> None:
    assert verify("unit_tests", completion, ASSERTS).correct is False


MAIN = "import sys\nprint(int(sys.stdin.readline()) + 1)\n"
MAIN_IN_FORMS = {
    "raw": MAIN,
    "a heading before": f"# Solution\n\n```python\n{MAIN}```",
    "a heading before a fence without a language": f"# Solution\n```\n{MAIN}```",
    "cut off after a heading": f"# Solution\n```\n{MAIN}",
    "a word before": f"Solution\n\n```python\n{MAIN}```\nIt adds one.",
    "prose that is an annotation": f"Solution: here\n```python\n{MAIN}```",
    "prose that is a calculation": f"Time - linear\n```\n{MAIN}```",
    "the input and the output before": f"```\n5\n```\n```text\n6\n```\n```python\n{MAIN}```\n",
    "the output after": f"```python\n{MAIN}```\nprints\n```\n6\n```",
    "commands before": f"```bash\nls\n```\n```python\n{MAIN}```",
    "after a prefilled fence": f"{MAIN}```\nIt adds one.",
    "after a prefilled fence, with examples": f"{MAIN}```\n\nFor example:\n\n```python\nprint(7)\n```",
    "its imports in a block": "```python\nimport sys\n```\n```python\nprint(int(sys.stdin.readline()) + 1)\n```",
    "its function in a block": "```python\ndef f(x):\n    return x + 1\n```\nand\n"
    "```python\nprint(f(int(input())))\n```",
    "an indented fence": "- So:\n\n  ```python\n" + "".join(f"  {line}" for line in MAIN.splitlines(True)) + "  ```",
    "indented within its fence": "```python\n" + "".join(f"    {line}" for line in MAIN.splitlines(True)) + "```",
    "in capitals, with attributes": f"```Python title=main.py\n{MAIN}```",
    "in braces": f"```{{.python}}\n{MAIN}```",
    "a fence in a text of the program": f'usage = """\n```\n7\n```\n"""\n{MAIN}',
}


@pytest.mark.parametrize("completion", [pytest.param(text, id=name) for name, text in MAIN_IN_FORMS.items()])
def test_the_program_that_reads_and_prints_is_found(completion: str) -> None:
    verdict = verify("unit_tests", completion, {"inputs": ["1\n"], "outputs": ["2\n"]})
    assert (verdict.correct, verdict.reason) == (True, "all tests passed")
    assert verdict.extracted is not None
    assert "print" in verdict.extracted


def test_an_answer_that_is_no_program_is_wrong() -> None:
    verdict = verify("unit_tests", "I do not know how to do that.", {"inputs": ["1\n"], "outputs": ["2\n"]})
    assert verdict.correct is False
    assert "SyntaxError" in verdict.reason


def test_text_before_a_fence_is_never_run_in_place_of_its_program() -> None:
    verdict = verify("unit_tests", f"print(2)\n```python\n{MAIN}1 / 0\n```", {"inputs": ["1\n"], "outputs": ["2\n"]})
    assert verdict.correct is False


# Verdicts


def test_all_or_nothing_and_the_share_of_passed_tests() -> None:
    half = "def f(x):\n    return 2\n"
    assert verify("unit_tests", half, ASSERTS).value == 0.0
    shared = verify("unit_tests", half, ASSERTS, share=True)
    assert (shared.correct, shared.value) == (False, 0.5)
    assert "f(5)" in shared.reason
    assert verify("unit_tests", GOOD, ASSERTS, share=True).value == 1.0


def test_the_share_of_many_tests() -> None:
    many = {"test_list": [f"assert f({i}) == {i}" for i in range(420)]}
    assert verify("unit_tests", "def f(x):\n    return x\n", many, share=True).value == 1.0


def test_the_share_of_assertions_of_a_check() -> None:
    test = (
        "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\n"
        "    for x in (7, 8):\n        assert candidate(x) == 2\n    assert candidate(0) == 2, 'why'\n"
    )
    reference = {"test": test, "entry_point": "f"}
    assert verify("unit_tests", "def f(x):\n    return 2\n", reference, share=True).value == 0.75
    assert verify("unit_tests", "def f(x):\n    return 1 // (x - 5)\n", reference, share=True).value == 0.0
    assert verify("unit_tests", "f = 3\n", reference, share=True).value == 0.0


@pytest.mark.parametrize("share", [False, True])
def test_assertions_that_a_right_program_does_not_reach_do_not_make_it_wrong(share: bool) -> None:
    test = (
        "def check(candidate):\n    assert candidate(1) == 2\n"
        "    try:\n        candidate('a')\n        assert False\n    except TypeError:\n        pass\n"
        "    if candidate(2) != 3:\n        assert candidate(2) == 4\n"
    )
    reference = {"test": test, "entry_point": "f"}
    right = verify("unit_tests", GOOD, reference, share=share)
    assert (right.correct, right.value) == (True, 1.0)
    lenient = verify("unit_tests", "def f(x):\n    return 2 if x == 'a' else x + 1\n", reference, share=share)
    assert (lenient.correct, lenient.value) == (False, 0.5 if share else 0.0)
    ended = verify("unit_tests", "def f(x):\n    return x + 1 if x == 1 else [][x]\n", reference, share=share)
    assert (ended.correct, ended.value) == (False, 1 / 3 if share else 0.0)


def test_rewards_are_correct_or_wrong_for_each_row() -> None:
    reward = load_reward({"name": "unit_tests", "correct": 1, "wrong": -1, "timeout": 5})
    assert reward(completions=[GOOD, "def f(x):\n    return x\n"], answer=[ASSERTS, ASSERTS]) == [1.0, -1.0]


def test_the_time_is_for_the_program_and_all_its_tests() -> None:
    busy = (
        "import time\ndef f(x):\n    end = time.process_time() + 0.6\n"
        "    while time.process_time() < end:\n        pass\n    return x + 1\n"
    )
    tests = ["assert f(1) == 2"] * 5
    late = run(busy, *tests, timeout=1)
    assert late.correct is False
    assert "timed out" in late.reason
    assert run(busy, *tests, timeout=20).correct is True


def test_waiting_is_timed_too() -> None:
    waiting = "import time\ndef f(x):\n    time.sleep(1)\n    return x + 1\n"
    tests = ["assert f(1) == 2"] * 2
    assert "timed out" in run(waiting, *tests, timeout=0.3).reason
    assert run(waiting, *tests, timeout=10).correct is True


def test_the_memory_is_what_the_option_says() -> None:
    program = "x = bytes(600 << 20)\n" + GOOD
    assert verify("unit_tests", program, ASSERTS, memory_mb=1024).correct is True
    assert verify("unit_tests", program, ASSERTS, memory_mb=512).correct is False


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("assert f(1)", "must be a mapping"),
        (None, "must be a mapping"),
        (["assert f(1)"], "must be a mapping"),
        ({}, "needs test and entry_point, test_list, or inputs and outputs"),
        ({"test": "def check(c):\n    pass"}, "needs test and entry_point"),
        ({"test_list": []}, "no tests"),
        ({"test_list": "assert f(1)"}, "must be a list of texts"),
        ({"test_list": [1]}, "must be a list of texts"),
        ({"test_list": ["assert f("]}, "not valid Python"),
        ({"test_list": ["assert f(1)\0"]}, "not valid Python"),
        ({"test_list": [f"assert f({'-' * 10**5}1)"]}, "not valid Python"),
        ({"test": "def check(c):\n    assert c(1)", "entry_point": "class"}, "entry_point"),
        ({"test_list": ["# nothing"]}, "every program would pass"),
        ({"test_list": ["assert f(1)", "  "]}, "every program would pass"),
        ({"test_list": ["assert f(1)"], "test_setup_code": "("}, "test_setup_code in an answer is not valid Python"),
        ({"test_list": ["assert f(1)"], "test_imports": ["import"]}, "test_imports in an answer is not valid Python"),
        ({"test_list": ["assert f(1)"], "test_setup_code": 3}, "test_setup_code in an answer must be text"),
        ({"test": "def check(c):\n    assert c()", "entry_point": ""}, "entry_point in an answer is not a valid name"),
        (
            {"test": "def check(c):\n    assert c()", "entry_point": "a b"},
            "entry_point in an answer is not a valid name",
        ),
        ({"test": "assert f()", "entry_point": "f"}, "does not define check"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [], "outputs": []}, "0 inputs and 0 outputs"),
        ({"inputs": ["1"]}, "1 inputs and 0 outputs"),
        ({"inputs": [1], "outputs": ["1"]}, "must be a list of texts"),
        ({"inputs": "1", "outputs": "1"}, "must be a list of texts"),
    ],
)
def test_an_unusable_reference_is_one_clear_line(reference: Any, said: str) -> None:
    with pytest.raises(SVFError) as raised:
        verify("unit_tests", GOOD, reference)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_columns_that_a_row_does_not_use_may_be_empty() -> None:
    row = {**ASSERTS, "test_setup_code": "", "test_imports": [], "inputs": None, "outputs": None, "prompt": None}
    assert verify("unit_tests", GOOD, row).correct is True


# Programs that read and print


ECHO = "import sys\nfor line in sys.stdin:\n    print(int(line) + 1)\n"


@pytest.mark.parametrize(
    ("program", "output", "correct"),
    [
        (ECHO, "2\n3\n", True),
        (ECHO, "2\n3", True),
        (ECHO, "2\r\n3\r\n", True),
        (ECHO, "2\n3\n\n\n", True),
        (ECHO, "2  \n3\n", True),
        (ECHO, "2\n", False),
        (ECHO, "2\n3\n4\n", False),
        (ECHO, " 2\n3\n", False),
        (ECHO, "2\n\n3\n", False),
        (ECHO, "", False),
        ("print(2)", "2\n3\n", False),
        ("print('2\\n3\\n4')", "2\n3\n", False),
        ("print(2)\nprint(3)\nraise SystemExit(1)", "2\n3\n", False),
        ("print(2)\nprint(3)\n1 / 0", "2\n3\n", False),
        ("print(2)\nprint(3)\nraise SystemExit", "2\n3\n", True),
        ("print(2)\nprint(3)\nexit()", "2\n3\n", True),
        ("print(2)\nprint(3)\nquit(0)", "2\n3\n", True),
        ("a = input()\nb = input()\nprint(int(a) + 1, int(b) + 1, sep='\\n')", "2\n3\n", True),
        ("import sys\nsys.stdout.write(open(0).read().replace('2', '3').replace('1', '2'))", "2\n3\n", True),
        ("import sys\nsys.stdout.buffer.write(b'2\\n3\\n')", "2\n3\n", True),
        ("if __name__ == '__main__':\n    print('2\\n3')", "2\n3\n", True),
        ("import atexit\natexit.register(print, 3)\nprint(2)", "2\n3\n", True),
        ("import threading\nprint(2, flush=True)\nthreading.Thread(target=print, args=(3,)).start()", "2\n3\n", True),
        ("import os\nprint(2, flush=True)\nos.system('echo 3')", "2\n3\n", True),
        ("print('é∑')", "é∑", True),
        ("import sys\nsys.stderr.write('working' * 10 ** 5)\nprint('2\\n3')", "2\n3\n", True),
        ("print('```')", "```", True),
    ],
)
def test_output_is_compared_line_by_line(program: str, output: str, correct: bool) -> None:
    verdict = verify("unit_tests", program, {"inputs": ["1\n2\n"], "outputs": [output]})
    assert verdict.correct is correct, verdict.reason


@pytest.mark.parametrize(
    "program",
    [
        "print(sum(map(int, open('/dev/stdin').read().split())))",
        "import sys\nsys.stdin = open('/dev/stdin')\nprint(int(input()) + int(input()))",
        "import sys\nprint(sum(map(int, sys.stdin.buffer)))",
        "print(sum(map(int, open(0, 'rb', buffering=0).read().split())))",
        "import io, os\nprint(sum(map(int, io.BytesIO(os.read(0, 9)))))",
        "with open('/proc/self/fd/0') as lines:\n    print(sum(map(int, lines)))",
        "import pathlib\nprint(sum(map(int, pathlib.Path('/dev/fd/0').read_text().split())))",
        "import os\nprint(sum(map(int, os.read(os.open('/dev/stdin', os.O_RDONLY), 9).split())))",
        "import fileinput\nprint(sum(map(int, fileinput.input('/dev/stdin'))))",
        "open('/dev/stdout', 'w').write('3')",
        "print('3', file=open('/dev/fd/1', mode='w'))",
        "import os\nos.write(os.open('/proc/self/fd/1', os.O_WRONLY), b'3')\nprint('x', file=open('/dev/stderr', 'w'))",
    ],
)
def test_standard_input_and_output_have_their_names(program: str) -> None:
    verdict = verify("unit_tests", program, {"inputs": ["1\n2\n"], "outputs": ["3\n"]})
    assert verdict.correct is True, verdict.reason


def test_other_files_are_opened_as_ever() -> None:
    program = "import os\nopen('/tmp/a', 'w').write('3')\nos.close(os.open('/tmp/b', os.O_CREAT))\n"
    program += "print(open(b'/tmp/a').read() if os.listdir('/tmp') else 0)\ntry:\n    open('/dev/fd/9')\n"
    program += "except FileNotFoundError:\n    print(4)"
    verdict = verify("unit_tests", program, {"inputs": [""], "outputs": ["3\n4"]})
    assert verdict.correct is True, verdict.reason


def test_each_input_is_a_fresh_run() -> None:
    count = "import os\nopen('/tmp/x', 'a').write('x')\nprint(os.path.getsize('/tmp/x'))\n"
    assert verify("unit_tests", count, {"inputs": [""] * 3, "outputs": ["1"] * 3}).correct is True
    half = verify("unit_tests", "print(1)", {"inputs": ["1", "2"], "outputs": ["1", "2"]}, share=True)
    assert (half.correct, half.value) == (False, 0.5)


ENDINGS = {
    "loops": "while True:\n    pass\n",
    "prints for ever": "while True:\n    print('2')\n",
    "prints for ever without a line end": "while True:\n    print('2', end='')\n",
    "writes to standard error for ever": "import sys\nwhile True:\n    sys.stderr.write('2' * 10 ** 5)\n",
    "sleeps after the answer": "import time\nprint(2, flush=True)\ntime.sleep(600)\n",
    "closes its output and goes on": "import os, time\nprint(2, flush=True)\nos.close(1)\ntime.sleep(600)\n",
    "never ends a thread": "import threading, time\nprint(2, flush=True)\n"
    "threading.Thread(target=time.sleep, args=(600,)).start()\n",
    "exits before it prints": "import os\nos._exit(0)\n",
    "aborts after the answer": "import os\nprint(2, flush=True)\nos.abort()\n",
    "becomes /bin/true": "import os\nos.execv('/bin/true', ['true'])\n",
    "waits for more input": "import os\nprint(2, flush=True)\nos.read(os.pipe()[0], 1)\n",
    "writes to every descriptor": "import os\nfor n in range(3, 64):\n"
    "    try:\n        os.write(n, b'2\\n' * 9)\n    except OSError:\n        pass\n",
    "prints what is no text": "import os\nos.write(1, b'\\xff\\xfe2\\n')\n",
}  # fmt: skip


@pytest.mark.parametrize("program", [pytest.param(text, id=name) for name, text in ENDINGS.items()])
def test_a_program_that_does_not_end_by_itself_with_the_answer_is_wrong(program: str) -> None:
    bad, good = verify_all("unit_tests", [program, ECHO], [{"inputs": ["1"], "outputs": ["2"]}] * 2, timeout=1.5)
    assert bad.correct is False
    assert good.correct is True


# What passes between tests and program

SAME = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-1", "10 ** 5000", "1.5", "float('inf')", "-0.0", "1e-320", "2 + 3j", "'é∑\\ud800\\0'",
        "b'\\0\\xff'", "bytearray(b'a')", "[]", "[1, [2, [3]]]", "(1,)", "()", "{1, 2}", "frozenset({1})",
        "{'a': [1, {2: (3, None)}]}", "{(1, 2): {3}}", "range(5)", "...", "Decimal('1.10')", "Fraction(1, 3)",
        "date(2020, 1, 2)", "datetime(2020, 1, 2, 3, 4, 5, 6)", "timedelta(days=1, seconds=2)", "deque([1, 2], 5)",
        "OrderedDict(a=1)", "Counter('aab')", "defaultdict(list, a=[1])", "int", "[0] * 10 ** 5", "'a' * 10 ** 6",
    ],
)  # fmt: skip
def test_values_pass_as_they_are(value: str) -> None:
    imports = (
        "from collections import *\nfrom datetime import *\n"
        "from decimal import Decimal\nfrom fractions import Fraction\n"
    )
    verdict = run(SAME, f"{imports}x = {value}\nassert f(x) == x and type(f([x])) is list and f([x])[0] == x")
    assert verdict.correct is True, verdict.reason


@pytest.mark.parametrize(
    ("program", "test"),
    {
        "nan": (SAME, "y = f(float('nan'))\nassert y != y"),
        "the sign of zero": (SAME, "assert str(f(-0.0)) == '-0.0'"),
        "arguments by name": ("def f(a, *, b=1):\n    return a - b", "assert f(b=3, a=5) == 2 and f(5) == 4"),
        "a list that is changed": ("def f(x):\n    x.sort()", "x = [2, 1]\nf(x)\nassert x == [1, 2]"),
        "a dictionary that is changed": ("def f(x):\n    x['a'] = 1", "x = {}\nf(x)\nassert x == {'a': 1}"),
        "a set that is changed": ("def f(x):\n    x.clear()", "x = {1}\nf(x)\nassert x == set()"),
        "a nested list that is changed": ("def f(x):\n    x[0].append(1)", "x = [[]]\nf(x)\nassert x == [[1]]"),
        "a generator": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0"),
        "an iterator": (
            "def f(x):\n    return map(str, x)",
            "assert list(f([1])) == ['1'] and ','.join(f([1, 2])) == '1,2'",
        ),
        "a view": ("def f(x):\n    return x.keys()", "assert sorted(f({2: 1, 1: 1})) == [1, 2] and len(f({})) == 0"),
        "tuple and list": ("def f(x):\n    return (x,)", "assert f(1) == (1,) and f(1) != [1]"),
        "a function to call": ("def f(g, x):\n    return g(g(x))", "assert f(lambda x: x * 3, 2) == 18"),
        "a method to call": ("def f(g, x):\n    return list(map(g, x))", "assert f('a{}'.format, [1]) == ['a1']"),
        "a function that calls back": (
            "def f(n, g=None):\n    return n if not n else g(n - 1)",
            "assert f(4, lambda n: f(n, lambda m: m)) == 2",
        ),
        "a function as result": ("def f(x):\n    return lambda y: x + y", "assert f(1)(2) == 3"),
        "a function that fails": (
            "def f(g):\n    try:\n        return g()\n    except Exception:\n        return 'failed'",
            "assert f(lambda: 1 / 0) == 'failed'",
        ),
        "an exception": (
            "def f(x):\n    raise KeyError(x)",
            "try:\n    f(1)\nexcept LookupError as error:\n    assert '1' in str(error)\nelse:\n    assert False",
        ),
        "an exception of its own": (
            "class Mine(ValueError):\n    pass\ndef f(x):\n    raise Mine('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError as error:\n    assert str(error).endswith('no')",
        ),
        "a class": (
            "class P:\n    def __init__(self, x):\n        self.x = x\n"
            "    def more(self):\n        self.x += 1\n        return self",
            "p = P(1)\np.more().more()\nassert p.x == 3 and isinstance(p, P)\np.x = 7\nassert p.more().x == 8",
        ),
        "a class that is compared": (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x):\n    return P(x)",
            "assert f(1) == P(1) and f(1) != P(2) and f(1) != 1 and [f(1)] == [P(1)]",
        ),
        "a named tuple": (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(x):\n    return P(x, 1)",
            "assert f(1) == (1, 1) and f(1) == P(1, 1)",
        ),
        "a node": (
            "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\n"
            "def f(n):\n    return 0 if n is None else 1 + f(n.next)",
            "n = Node(1)\nn.next = Node(2)\nassert f(n) == 2 and n.next.v == 2 and f(None) == 0",
        ),
        "a memory": ("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)", "assert [f(1), f(1)] == [1, 2]"),
        "a recursion": ("def f(n):\n    return n and 1 + f(n - 1)", "assert f(900) == 900"),
        "a recursion with its own limit": (
            "import sys\nsys.setrecursionlimit(10 ** 5)\ndef f(n):\n    return n and 1 + f(n - 1)",
            "assert f(20000) == 20000",
        ),
        "a recursion that is too deep": (
            "def f(n):\n    return f(n + 1)",
            "try:\n    f(0)\nexcept RecursionError:\n    pass\nelse:\n    assert False",
        ),
        "an array": (
            "import numpy as np\ndef f(x):\n    return np.array(x) * 2",
            "assert f([1, 2]).tolist() == [2, 4]",
        ),
        "a number of numpy": (
            "import numpy as np\ndef f(x):\n    return np.sum(x)",
            "assert f([1, 2]) == 3 and abs(f([.5]) - .5) < 1e-9",
        ),
        "a truth of numpy": (
            "import numpy as np\ndef f(x):\n    return np.all(x)",
            "assert f([1]) == True and not f([0]) and f([0]) is not False",
        ),
        "names like modules": (
            "def queue(x):\n    return x\ndef calendar():\n    return 3",
            "assert queue(2) == 2 and calendar() == 3",
        ),
        "values named like modules": (
            "array = [3]\nstring = 'a'",
            "assert array == [3] and string.upper() == 'A' and array[0] == 3",
        ),
        "names like built-in functions": ("def sum(a, b):\n    return a + b", "assert sum(1, 2) == 3"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calls_behave_as_in_one_process(program: str, test: tuple[str, str]) -> None:
    code, tests = test
    verdict = run(code, tests)
    assert verdict.correct is True, (program, verdict.reason)


def test_setup_runs_after_the_program_and_imports_before_the_tests() -> None:
    reference = {
        "test_list": ["assert math.floor(f(root)) == 3"],
        "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)\r\n",
        "test_imports": ["import math"],
    }
    program = (
        "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
        "def f(n):\n    return n.x + n.left.x + .5\n"
    )
    assert verify("unit_tests", program, reference).correct is True


@pytest.mark.parametrize("value", ["memoryview(b'a')", "[1, (memoryview(b'a'),)]", "__import__('threading').Lock()"])
def test_what_tests_cannot_hand_over_is_not_scored(value: str) -> None:
    verdict = run(SAME, f"assert f({value})")
    assert verdict.correct is None
    assert not verdict.infrastructure
    assert verdict.value is None


# Helpers that tests share with the solution

HELPED = "def check(candidate):\n    assert abs(poly([1, 1], candidate([1, 1]))) < 1e-6\n"
LIE = "def poly(xs, x):\n    return 0\n\ndef root(xs):\n    return 5\n"
HELPER = "def poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\n\n\n"


def test_a_helper_of_the_prompt_is_the_prompt_s() -> None:
    reference = {"test": HELPED, "entry_point": "root", "prompt": HELPER + "def root(xs):\n"}
    assert verify("unit_tests", LIE, reference).correct is False
    assert verify("unit_tests", "    return -xs[0] / xs[1]\n", reference).correct is True


@pytest.mark.xfail(strict=True, reason="without the prompt, a helper that the tests call is the solution's own")
def test_a_helper_without_the_prompt_may_lie() -> None:
    assert verify("unit_tests", LIE, {"test": HELPED, "entry_point": "root"}).correct is False


@pytest.mark.xfail(strict=True, reason="setup code needs the solution's classes, so it runs where the solution does")
def test_setup_code_may_be_read() -> None:
    program = (
        "import sys\nsetup = sys._getframe(1).f_locals['job']['setup']\n"
        "def f(x):\n    return eval(setup.split('=')[1])\n"
    )
    reference = {"test_list": ["assert f(1) == expected"], "test_setup_code": "expected = 77"}
    assert verify("unit_tests", program, reference).correct is False


NESTED = "def nested(depth):\n    x = []\n    for _ in range(depth):\n        x = [x]\n    return x\n"


@pytest.mark.parametrize(
    "program",
    [
        "encode = zip\ndef decode(x):\n    return 1\n",
        "encode = memoryview\ndef decode(x):\n    return 1\n",
        "encode = object\ndef decode(x):\n    return 1\n",
        "encode = lambda x: property\ndef decode(x):\n    return 1\n",
        "encode = lambda x: 'a' * (60 << 20)\ndef decode(x):\n    return 1\n",
        f"{NESTED}encode = lambda x: nested(149)\ndef decode(x):\n    return 1\n",
        f"{NESTED}encode = lambda x: nested(10 ** 5)\ndef decode(x):\n    return 1\n",
        "class encode:\n    def __init__(self, x):\n        pass\ndef decode(x):\n    return 1\n",
        "import sys\nencode = lambda x: sys\ndef decode(x):\n    return 1\n",
        "encode = lambda x: iter(int, 1)\ndef decode(x):\n    return 1\n",
    ],
)
@pytest.mark.parametrize(
    "value", ["encode((1, 2))", "[encode((1, 2))] * 2", "[encode((1, 2))[0:9]]", "encode(encode([1]))"]
)
def test_a_solution_cannot_make_its_tests_unscorable(program: str, value: str) -> None:
    verdict = run(program, f"x = {value}\nassert decode(x) == (1, 2)", timeout=2)
    assert verdict.correct is False, verdict.reason


@pytest.mark.parametrize("end", ["while True: pass", "time.sleep(60)", "os._exit(0)"])
def test_the_share_counts_tests_that_passed_before_the_program_was_stopped(end: str) -> None:
    program = f"import os, time\ndef f(x):\n    if x == 3:\n        {end}\n    return x\n"
    tests = [f"assert f({x}) == {x}" for x in (1, 2, 3, 4)]
    assert verify("unit_tests", program, {"test_list": tests}, share=True, timeout=1).value == 0.5
    check = "def check(candidate):\n" + "".join(f"    {test.replace('f(', 'candidate(')}\n" for test in tests)
    verdict = verify("unit_tests", program, {"test": check, "entry_point": "f"}, share=True, timeout=1)
    assert (verdict.correct, verdict.value) == (False, 0.5)


def test_a_program_that_sleeps_is_stopped_at_its_limit_and_one_that_waits_for_slow_tests_is_not() -> None:
    sleeping = verify("unit_tests", "import time\ndef f(x):\n    time.sleep(60)", {"test_list": ["f(1)"]}, timeout=1)
    assert (sleeping.correct, "asleep" in sleeping.reason) == (False, True)
    slow = "import time\nend = time.time() + 1.5\nwhile time.time() < end:\n    pass\nassert f(1) == 1"
    assert verify("unit_tests", "def f(x):\n    return x", {"test_list": [slow]}, timeout=1).correct


def test_waiting_for_a_processor_is_neither_sleep_nor_slowness() -> None:
    """A right program that needs half of its time passes while the machine is so busy that it takes several times as
    long."""
    cores = len(os.sched_getaffinity(0))
    # each in a session of its own, since the kernel shares processors among sessions
    hog = [sys.executable, "-c", BUSY_WAIT]
    busy = [subprocess.Popen(hog, start_new_session=True) for _ in range(10 * cores)]
    try:
        program = "import time\ndef f(x):\n    while time.process_time() < x: pass\n    return x"
        verdicts = verify_all(
            "unit_tests", [program] * cores, [{"test_list": ["assert f(.5) == .5"]}] * cores, timeout=1
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert [verdict.reason for verdict in verdicts] == ["all tests passed"] * cores


def test_tests_may_use_numpy() -> None:
    reference = {"test_list": ["assert np.all(f(3) == np.array([0, 1, 2]))"], "test_imports": ["import numpy as np"]}
    assert verify("unit_tests", "import numpy as np\ndef f(x):\n    return np.arange(x)", reference).correct


LOOP = "for got, wanted in zip(f([3, 1]), [1, 3]):\n    assert got == wanted"
LOOPS = {
    "tests": {"test_list": [LOOP]},
    "check": {"test": f"def check(f):\n{textwrap.indent(LOOP, '    ')}", "entry_point": "f"},
}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("reference", LOOPS.values(), ids=LOOPS)
def test_what_reaches_no_assertion_does_not_pass(reference: dict[str, Any], share: bool) -> None:
    verdict = verify("unit_tests", "def f(x):\n    return []", reference, share=share)
    assert (verdict.correct, verdict.reason) == (False, "no assertion was reached")
    assert verdict.score in (None, 0)
    assert verify("unit_tests", "f = sorted", reference, share=share).correct


def test_an_assertion_that_is_reached_is_enough() -> None:
    tests = [
        LOOP.replace("[3, 1]", "[]"),
        "try:\n    f(1)\n    assert False\nexcept TypeError:\n    pass",
        "assert f([2]) == [2]",
    ]
    assert verify("unit_tests", "f = sorted", {"test_list": tests}).correct
    assert verify("unit_tests", "f = sorted", {"test_list": tests[1:2]}).correct


def test_what_the_setup_imports_is_not_the_program_s() -> None:
    program = "import math\nmath.isclose = lambda *_: True\ndef f(x):\n    return 0"
    setup = {"test_list": ["assert isclose(f(1), 2)"], "test_setup_code": "from math import isclose"}
    assert verify("unit_tests", program, setup).correct is False
    assert verify("unit_tests", "def f(x):\n    return 2.0", setup).correct
    of_the_program = {"test_list": ["assert f(1) == 2"], "test_setup_code": "from solution import f"}
    assert verify("unit_tests", "def f(x):\n    return 2", of_the_program).correct
