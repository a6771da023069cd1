"""Runs the commands of the documentation, each in a fork of one process that has imported everything.

The documentation's shell blocks are run by bash. The programs that they name (`svf-rl`, `accelerate`, ...) are stubs on
the PATH, which hand their arguments, folder, environment and streams to this process. It forks and runs the command
line's own entry point: an import of torch, TRL and vLLM takes longer than most of what is shown.

Two things differ from what a reader runs. Training takes two steps on a few rows (`SMALLER`), and the same training in
another folder is copied. And a block that needs a GPU, a cluster, a server, the Hub, root or much time is only checked:
its training commands are dry runs, and the arguments of other commands are parsed.
"""

import array
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Added to a command of the documentation, unless it says otherwise itself.
SMALLER = {
    "train": {
        "--max_steps": "2", "--train_items": "64", "--validation_items": "8", "--test_items": "16", "--eval_steps": "2",
        "--save_steps": "2", "--per_device_train_batch_size": "8", "--gradient_accumulation_steps": "1",
        "--num_generations": "4", "--max_completion_length": "24", "--use_vllm": "false",
    },
    "eval": {"--limit": "8"},
    "few-shot": {"--limit": "8", "--population": "3", "--generations": "1", "--samples": "1", "--shots": "3"},
    "dispatch": {"--limit": "8"},
}  # fmt: skip
STUBS = ("svf-rl", "accelerate", "python", "make")
# These are never run, only checked.
CHECKED = ("pip", "hf", "sbatch", "scancel", "apptainer", "sudo", "tensorboard", "nvidia-smi", "vllm", "curl")

_STUB = """#!{python} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = {{
    "name": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:], "folder": os.getcwd(),
    "environment": dict(os.environ),
}}
text = json.dumps(request).encode()
server.sendmsg([len(text).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(text)
sys.exit(server.recv(1)[0])
"""


def write_stubs(folder: Path, names: Sequence[str], address: str) -> None:
    """Programs of these names that hand over to the process listening at `address`."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(_STUB.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)


def serve(address: str) -> None:
    """Import everything, say so, and run what is asked for, one command after the other."""
    import vllm  # noqa: F401

    import svf_rl.cli
    import svf_rl.reproduce.run
    import svf_rl.settings.recipe
    import svf_rl.training.trainer  # noqa: F401

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while True:
        asked, _ = listening.accept()
        with asked:
            size, streams = _receive(asked)
            if not size:
                return
            if os.fork() == 0:  # commands may start others, so each has a process that waits for it
                listening.close()
                _answer(asked, size, streams)
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(asked: socket.socket, size: int, streams: Sequence[int]) -> None:
    """In a fork: read what is asked for, run it in another fork, and answer with its exit status."""
    text = b""
    while len(text) < size and (part := asked.recv(size - len(text))):
        text += part
    child = os.fork()
    if child == 0:
        asked.close()
        _run(json.loads(text), streams)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asked.sendall(bytes([status if 0 <= status < 256 else 255]))
    os._exit(0)


def _receive(asked: socket.socket) -> tuple[int, list[int]]:
    head, ancillary, _, _ = asked.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    return int.from_bytes(head, "big"), list(streams)


def _run(request: dict[str, Any], streams: Sequence[int]) -> None:
    """In the fork: one command with the caller's streams, folder and environment."""
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        sys.path.insert(0, request["folder"])
        status = run_command(request["name"], request["arguments"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:  # noqa: BLE001  (printed, and the status says so)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_command(name: str, arguments: list[str]) -> int:
    """A command of the documentation; its exit status."""
    check = os.environ.get("SVF_DOCS_CHECK") == "1"
    if name == "python":
        return _python(arguments, check)
    if name == "svf-rl":
        return (_checked if check else _svf_rl)(arguments)
    if name == "accelerate":
        return _accelerate(arguments, check)
    return _CHECKS[name](arguments)


def _svf_rl(arguments: list[str]) -> int:
    from svf_rl.cli import main

    command = arguments[0]
    smaller = [] if "--dry-run" in arguments else SMALLER.get(command, {})
    words = {word.partition("=")[0].replace("_", "-") for word in arguments}
    added = [part for key in smaller for part in (key, smaller[key]) if key.replace("_", "-") not in words]
    if command == "train" and added:
        return _train_once([*arguments, *added])
    return main([*arguments, *added])


def _train_once(arguments: list[str]) -> int:
    """Train, or copy what the same command trained before into its own output folder."""
    from svf_rl.cli import main

    where = arguments.index("--output_dir") if "--output_dir" in arguments else None
    output = Path(arguments[where + 1] if where else f"runs/{Path(arguments[1]).stem}")
    rest = arguments[:where] + arguments[where + 2 :] if where else arguments
    files = b"".join(path.read_bytes() for path in sorted(Path.cwd().glob("*.*")) if path.suffix in (".py", ".yaml"))
    kept = Path(os.environ["SVF_DOCS_TRAINED"]) / hashlib.sha256(repr(rest).encode() + files).hexdigest()
    if output.exists() or "--resume" in rest:
        return main(arguments)
    if kept.exists():
        shutil.copytree(kept, output)
        return 0
    status = main(arguments)
    if status == 0 and output.exists():
        shutil.copytree(output, kept)
    return status


def _accelerate(arguments: list[str], check: bool) -> int:
    """`accelerate launch … svf_rl/train.py …`: its own arguments are parsed, the script's are run in one process."""
    from accelerate.commands.launch import launch_command_parser

    if arguments[0] != "launch":
        raise ValueError(f"accelerate {arguments[0]} is not known to the documentation's tests")
    known = launch_command_parser().parse_args(arguments[1:])
    if known.config_file is not None and not Path(known.config_file).is_file():
        raise FileNotFoundError(known.config_file)
    script = "svf_rl.train" if known.module else "svf_rl/train.py"
    if known.training_script != script or not (known.module or Path(script).is_file()):
        raise FileNotFoundError(known.training_script)
    arguments = ["train", *known.training_script_args]
    if not check:
        return _svf_rl(arguments)
    config = yaml.safe_load(Path(known.config_file).read_text()) if known.config_file else {}
    return _checked(arguments, gpus=known.num_processes or config.get("num_processes", 1))


def _checked(arguments: list[str], gpus: int = 1) -> int:
    """The dry run of a command, here and for so many GPUs; where there is none, its arguments parsed and nothing
    done."""
    import svf_rl.cli
    from svf_rl.cli import main
    from svf_rl.settings.recipe import load_recipe

    command = arguments[0]
    if command == "train":  # the dry run leaves out what makes sense on GPUs alone
        flags = ("--dry-run", "--resume", "--debug")
        load_recipe(arguments[1], [word for word in arguments[2:] if word not in flags], gpus=gpus)
    earlier = any(word.endswith("raw.json") for word in arguments)  # of a command that was only checked
    if command == "train" or (command == "reproduce" and not earlier):
        return main([*arguments, *([] if "--dry-run" in arguments else ["--dry-run"])])
    if command == "plan":  # of the bundled model: the recipe's own may not be on this machine
        return main([*arguments, "--model_name_or_path", "quickstart", "--vllm_tensor_parallel_size", "1"])
    if command == "serve":
        os.execvpe = lambda *command: print(*command[1]) or sys.exit(0)  # type: ignore[assignment]
        return main(arguments)
    svf_rl.cli.COMMANDS = tuple(
        dataclasses.replace(each, run=lambda _: print("arguments parsed")) for each in svf_rl.cli.COMMANDS
    )
    return main(arguments)


def _python(arguments: list[str], check: bool) -> int:
    if arguments[0] in ("-", "-c"):
        code = compile(sys.stdin.read() if arguments[0] == "-" else arguments[1], "block", "exec")
        if not check:
            exec(code, {"__name__": "__main__"})
    elif arguments[:2] == ["-m", "venv"]:
        (Path(arguments[2]) / "bin").mkdir(parents=True)
        (Path(arguments[2]) / "bin/activate").touch()
    elif check:
        if arguments[0] == "-m":
            importlib.util.find_spec(arguments[1])
        elif not Path(arguments[0]).is_file():
            raise FileNotFoundError(arguments[0])
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


def _sbatch(arguments: list[str]) -> int:
    """The script, the recipe and the config are there, and the recipe with its overrides is one that a job takes."""
    script = next(number for number, word in enumerate(arguments) if not word.startswith("-"))
    own = arguments[script + 1 :]
    cut = own.index("--") if "--" in own else len(own)
    overrides = own[cut + 1 :]
    words = iter(own[:cut])
    servers, files = "0", [arguments[script]]
    for word in words:
        if word == "--rollout-nodes":
            servers = next(words)
        else:
            files.append(word)
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(file)
    if not files[0].endswith("train.slurm"):
        return 0
    from svf_rl.cli import main

    return main(["plan", files[1], "--slurm", "--rollout-nodes", servers, *overrides])


def _make(arguments: list[str]) -> int:
    make = shutil.which("make", path="/usr/local/bin:/usr/bin:/bin")
    assert make is not None
    done = subprocess.run([make, "-n", "EXTRA=cpu", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


def _pip(arguments: list[str]) -> int:
    """An extra that is asked for is one of the package's."""
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for word in arguments:
        named = re.match(rf"(?:\.|{project['name']})\[([\w,]+)\]", word)
        unknown = set(named[1].split(",")) - set(project["optional-dependencies"]) if named else set()
        if unknown:
            raise ValueError(f"no extra {unknown}")
    return 0 if arguments[0] in ("install", "uninstall", "wheel") else 1


def _hf(arguments: list[str]) -> int:
    """The Hub's own command knows these options."""
    words = [word for word in arguments if word.startswith("-")]
    command = [word for word in arguments if not word.startswith("-")][: 2 if arguments[0] in ("auth", "cache") else 1]
    program = Path(sys.executable).parent / "hf"
    shown = subprocess.run([program, *command, "--help"], capture_output=True, text=True)
    missing = [word for word in words if word not in shown.stdout]
    if missing:
        raise ValueError(f"hf {' '.join(command)} has no {missing}")
    return shown.returncode


def _known(_: list[str]) -> int:
    return 0


_CHECKS: dict[str, Callable[[list[str]], int]] = {
    **dict.fromkeys(CHECKED, _known), "make": _make, "pip": _pip, "hf": _hf, "sbatch": _sbatch
}  # fmt: skip


if __name__ == "__main__":
    serve(sys.argv[1])
