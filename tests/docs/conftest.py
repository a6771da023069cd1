"""A folder for each page of the documentation, and the process that runs its commands."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docs_commands import CHECKED, REPOSITORY, STUBS, write_stubs

sys.path.insert(0, str(REPOSITORY / "docs"))  # where `generate` is

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a shell script in a folder, with the documentation's commands on the PATH; `check=True` only checks it."""
    base = tmp_path_factory.mktemp("docs")
    sockets = tempfile.mkdtemp(prefix="svf_docs_")  # short: a socket's path must not exceed 107 characters
    address = f"{sockets}/commands"
    write_stubs(base / "programs", STUBS, address)
    write_stubs(base / "checked", CHECKED, address)
    (base / "trained").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "SVF_DOCS_TRAINED": str(base / "trained"),
        "HF_HOME": str(base / "hub"),
        "USER": os.environ.get("USER", "me"),
    }
    log = (base / "server.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("docs_commands.py")), address],
        stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n", (base / "server.log").read_text()[-3000:]
    # in a check nothing else can be called, so that no command of a block is run by mistake
    tools = base / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "echo", "env", "seq", "dirname", "ls", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")

    def run(script: str, folder: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
        rest = f"{base / 'checked'}:{tools}" if check else os.environ["PATH"]
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, timeout=300,
            env={**environment, "PATH": f"{base / 'programs'}:{rest}", "SVF_DOCS_CHECK": "1" if check else "0"},
        )  # fmt: skip

    yield run
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(address)
    server.wait(30)
    shutil.rmtree(sockets)


@pytest.fixture(scope="session")
def recipe_keys(run_in: Run) -> list[str]:
    """The keys that a recipe may hold."""
    code = "from docs.generate.recipe_keys import recipe_keys; print(*recipe_keys())"
    done = run_in(f'python -c "{code}"', REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A new folder that looks like a checkout."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        for item in ("recipes", "accelerate_configs", "slurm", "svf_rl", "pyproject.toml", "Makefile", "benchmarks"):
            (folder / item).symlink_to(REPOSITORY / item)
        return folder

    return make
