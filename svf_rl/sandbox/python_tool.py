"""The tool `python`: programs of a model run in the sandbox, and it reads what they print."""

from svf_rl.sandbox.bubblewrap import run_program

SECONDS = 5.0
"""Of CPU time, and three times as many by the clock."""
MEMORY_MB = 512
CHARACTERS = 2000
"""Of what was printed, at most; of more the middle is left out."""

# An error is printed as Python prints it, without the frames of this program.
_PROGRAM = """
import sys, traceback
sys.stderr = sys.stdout
try:
    exec(compile({code!r}, "<program>", "exec"), {{"__name__": "__main__"}})
except Exception as error:
    traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))
"""


def python(code: str) -> str:
    """
    Run a Python program and read what it prints.

    Args:
        code: The program. It has no network and no files of yours.
    """
    request = {
        "candidates": [_PROGRAM.format(code=code)], "wanted": [], "imports": "", "setup": "", "prompt": "",
        "entry_point": "", "share": False, "main": True, "inside": False, "tests": [], "inputs": [""], "outputs": [""],
        "printed": 4 * CHARACTERS,
    }  # fmt: skip
    outcome = run_program(request, SECONDS, MEMORY_MB)
    text = outcome["printed"].rstrip()
    if len(text) > CHARACTERS:
        half = CHARACTERS // 2
        text = f"{text[:half]}\n… ({len(text) - 2 * half} characters or more) …\n{text[-half:]}"
    ended = outcome["reason"]
    if ended and ended != "the output differs":
        return f"{text}\n({ended})".lstrip()
    return text or "(nothing was printed)"
