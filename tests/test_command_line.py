"""The command as a shell sees it: what answers at once, what a closed pipe does, what Tab completes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svf_rl.cli import COMMANDS

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "pandas", "pyarrow", "vllm", "huggingface_hub")
SCRIPT = f"""
import sys
from svf_rl.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print("LOADED", status, *[name for name in {HEAVY!r} if name in sys.modules])
"""


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, env=os.environ | environment
    )


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["train", "--help"], *([command.name, "--help"] for command in COMMANDS)]
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    done = run("-c", SCRIPT, *command)
    assert done.stdout.splitlines()[-1] == "LOADED 0", done.stderr


@pytest.mark.parametrize("recipe", ["nosuch", "x/nosuch.yaml", "broken.yaml"])
@pytest.mark.parametrize("command", [["train"], ["plan", "--gpus=1", "--gpu-memory=80GB"], ["serve"], ["reproduce"]])
def test_a_recipe_that_cannot_be_read_is_said_before_anything_heavy_is_imported(
    command: list[str], recipe: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    done = run("-c", SCRIPT, command[0], recipe, *command[1:], cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "LOADED 1", done.stderr
    assert done.stderr.startswith(f"error: recipe {recipe} ")
    assert done.stderr.count("\n") == 1


def test_a_recipe_may_come_through_a_pipe(repository: Path) -> None:
    script = f"{sys.executable} -m svf_rl.cli train <(cat recipes/quickstart.yaml) --output_dir runs/none --dry-run"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "trained values:" in done.stdout


@pytest.mark.parametrize("command", ["--help", "recipes", "train --help"])
def test_a_reader_that_goes_away_is_no_error(command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m svf_rl.cli {command} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in (0, 128 + 13)  # it may have been quicker than the reader's end


def test_a_pipe_that_is_closed_before_the_first_line_ends_the_command_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-m", "svf_rl.cli", "recipes"], stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_that_is_full_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "svf_rl.cli", "recipes"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("svf-rl ", {"train", "eval", "merge", "push", "few-shot"}),
        ("svf-rl tr", {"train "}),
        ("svf-rl eval --ad", {"--adapter "}),
        ("svf-rl train --", {"--dry-run", "--resume"}),
    ],
)
def test_tab_completes_commands_and_flags(typed: str, offered: set[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    out = tmp_path / "offered"
    asked = {
        "_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash",
    }  # fmt: skip
    assert run("-m", "svf_rl.cli", **asked).returncode == 0
    assert offered <= set(out.read_text().split("\n"))


def test_a_terminal_of_ascii_gets_what_it_can_show(repository: Path) -> None:
    arguments = ("train", str(repository / "recipes" / "quickstart.yaml"), "--use_vllm", "false", "--dry-run")
    done = run("-m", "svf_rl.cli", *arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "rewards:        numeric ? 1" in done.stdout
