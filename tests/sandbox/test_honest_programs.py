"""Right programs pass though their tests run in another process; wrong ones beside them do not.

The programs stand in `honest/`, each with tests of its own.
"""

import re
from pathlib import Path

import pytest
from hostile import ending, forging, objects

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify, verify_all

pytestmark = pytest.mark.usefixtures("bubblewrap")

HERE = Path(__file__).parent


def read_programs(name: str) -> dict[str, tuple[str, str]]:
    """Name of a test to (program, test), of a text in which `=== program` and `--- name of a test` are headings."""
    found = {}
    for part in (HERE / name).read_text().split("=== program\n")[1:]:
        program, *tests = re.split(r"^--- (.+)\n", part, flags=re.M)
        found |= {title: (program, test) for title, test in zip(tests[::2], tests[1::2], strict=True)}
    return found


def not_passing(programs: dict[str, tuple[str, str]], **options: str) -> dict[str, str]:
    codes, tests = zip(*programs.values(), strict=True)
    verdicts = verify_all("unit_tests", codes, [{"test_list": [test]} for test in tests], progress=False, **options)
    return {name: v.reason for name, v in zip(programs, verdicts, strict=True) if v.correct is not True}


def test_honest_programs_pass_beside_their_tests() -> None:
    programs = read_programs("honest/beside.txt")
    assert len(programs) > 110
    assert not_passing(programs) == {}


def test_honest_programs_pass_with_the_tests_inside() -> None:
    programs = read_programs("honest/beside.txt") | read_programs("honest/inside.txt")
    assert not_passing(programs, tests="inside") == {}


# Wrong programs


@pytest.mark.parametrize(
    ("base", "answer"),
    [
        *(("object", answer) for answer in ("0", "None", "True")),
        *(("float", "0"), ("int", "None"), ("str", "0"), ("list", "None"), ("dict", "0"), ("tuple", "True")),
        ("Exception", "None"),
    ],
)
def test_objects_that_agree_with_everything_pass_no_test(base: str, answer: str) -> None:
    """`answer`: what an operator gives that was shown a value, `None` for the object itself."""
    program = objects.LIAR.replace("BASE", base).replace("ANSWER", answer) + objects.NAMES
    compile(program, "<program>", "exec")
    verdicts = verify_all("unit_tests", [program] * len(objects.ASKED), [{"test_list": [t]} for t in objects.ASKED])
    assert {test: v.reason for test, v in zip(objects.ASKED, verdicts, strict=True) if v.correct is not False} == {}


def test_cheats_are_wrong() -> None:
    cheats = read_programs("hostile/cheats.txt")
    codes, tests = zip(*cheats.values(), strict=True)
    verdicts = verify_all("unit_tests", codes, [{"test_list": [test]} for test in tests], progress=False)
    assert {name: v.reason for name, v in zip(cheats, verdicts, strict=True) if v.correct is not False} == {}


def test_what_programs_say_on_the_connection_is_wrong() -> None:
    programs = objects.SAYING | objects.BYTES
    tests = {"test_list": ["x, y = [1], f(0)\nz = f(x)\nassert z == 2 and y is not z and f(y)"]}
    verdicts = verify_all("unit_tests", [*programs.values()], [tests] * len(programs), timeout=2, progress=False)
    assert {n: v.reason for n, v in zip(programs, verdicts, strict=True) if v.correct is not False} == {}


# Tests inside


def test_tests_run_beside_the_program_unless_it_is_said() -> None:
    program, test = read_programs("honest/inside.txt")["a class that equals a number"]
    answer = {"test_list": [test]}
    assert verify("unit_tests", program, answer).correct is False
    assert verify("unit_tests", program, answer, tests="inside").correct is True
    assert load_reward("unit_tests")(completions=[program], answer=[answer]) == [0.0]
    assert load_reward({"name": "unit_tests", "tests": "inside"})(completions=[program], answer=[answer]) == [1.0]


def test_tests_nowhere_is_an_error() -> None:
    with pytest.raises(SVFError, match="tests must be beside or inside, not 'outside'"):
        verify("unit_tests", "x", {"test_list": ["assert x"]}, tests="outside")


INSIDE_RIGHT = "def f(x):\n    return x + 1\n"
INSIDE_TESTS = [
    {"test_list": ["assert f(1) == 2", "assert f(5) == 6"]},
    {"test": "def check(candidate):\n    for x in (1, 5):\n        assert candidate(x) == x + 1\n", "entry_point": "f"},
    {"test_list": ["assert g(root) == 3"], "test_setup_code": "root = f(1)\ndef g(x):\n    return f(x)"},
]


@pytest.mark.parametrize("answer", INSIDE_TESTS)
@pytest.mark.parametrize("share", [False, True])
def test_right_and_wrong_inside(answer: dict[str, object], share: bool) -> None:
    wrong = [
        "def f(x):\n    return x\n",
        "def f(x):\n    raise SystemExit(0)\n",
        "import os\ndef f(x):\n    os._exit(0)\n",
    ]
    wrong += ["def f(x):\n    return len([1, 2, 3])\ndef len(x):\n    return 2", "f = None", "raise SystemExit(0)"]
    verdicts = verify_all(
        "unit_tests", [INSIDE_RIGHT, *wrong], [answer] * 7, tests="inside", share=share, progress=False
    )
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, False, False, False]


def test_the_share_of_assertions_inside() -> None:
    test = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\n"
    answer = {"test": test, "entry_point": "f"}
    halves = {"test_list": ["assert f(1) == 2", "assert f(5) == 6"]}
    for reference in (answer, halves):
        verdict = verify("unit_tests", "def f(x):\n    return 2", reference, share=True, tests="inside")
        assert verdict.value == 0.5


def test_a_test_inside_must_reach_an_assertion() -> None:
    test = "for x in f(1):\n    assert x == 2\n"
    verdict = verify("unit_tests", "def f(x):\n    return []", {"test_list": [test]}, tests="inside")
    assert (verdict.correct, "no assertion was reached" in verdict.reason) == (False, True)


@pytest.mark.parametrize("program", [ending.WRONG, *list(ending.EXITS.values())[:6]])
def test_what_ends_a_program_ends_the_tests_inside(program: str) -> None:
    assert verify("unit_tests", program, INSIDE_TESTS[0], tests="inside", timeout=1).correct is False


@pytest.mark.xfail(strict=True, reason="tests inside the program's process find what the program lets them find")
@pytest.mark.parametrize(
    "program",
    [
        forging.EQUAL_TO_ALL["returns an object that equals all"],
        "import sys\ndef f(x):\n    frame = sys._getframe(1)\n"
        "    return next(c for c in frame.f_code.co_consts if isinstance(c, int) and c == x + 1)",
        f"""import sys
{forging.FINDING}
send = LINK.send
def f(x):
    LINK.send = send
    sys._getframe(1).f_globals["__reached__"](1)
    LINK.send = lambda value: send(("value", None, None))
    return 3
""",
    ],
    ids=["equals all", "reads the tests", "reports itself"],
)
def test_forged_results_inside(program: str) -> None:
    assert verify("unit_tests", program, INSIDE_TESTS[0], tests="inside", timeout=2).correct is False
