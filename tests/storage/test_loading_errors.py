"""What cannot be loaded by its name, in any command: one line with the cause and the remedy, as a Hub answers it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from svf_rl.cli import main
from svf_rl.errors import SVFError, one_line
from svf_rl.quickstart import model_path
from svf_rl.storage.loading_errors import loading_error

# the name of a repository says how the Hub answers: status and `X-Error-Code`
ANSWERS = {
    "gated": (401, "GatedRepo"), "notgranted": (403, "GatedRepo"), "missing": (404, "RepoNotFound"),
    "private": (401, "RepoNotFound"), "norevision": (404, "RevisionNotFound"),
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for repositories that it does not give."""

    def do_GET(self) -> None:
        repository = next((name for name in ANSWERS if f"some/{name}" in self.path), "missing")
        status, code = ANSWERS[repository]
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": "said the Hub", "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


# what each command loads by a name
COMMANDS = {
    "model": (
        "train quickstart --model_name_or_path NAME --dry-run",
        "eval NAME --tasks quickstart",
        "serve quickstart --model_name_or_path NAME --dtype auto",
        "decompose NAME",
    ),
    "adapter": ("eval quickstart --tasks quickstart --adapter NAME", "experts NAME", "push NAME ./out"),
    "dataset": ("eval quickstart --tasks columns --reward exact_match --dataset-name NAME",),
}
SCRIPT = """
import json, sys
from contextlib import redirect_stderr
from io import StringIO
from svf_rl.cli import main

for line in sys.stdin.read().splitlines():
    with redirect_stderr(StringIO()) as said:
        status = main(line.split())
    errors = [text for text in said.getvalue().splitlines() if text.startswith("error: ")]
    print("RESULT", json.dumps([line, status, errors, "Traceback" in said.getvalue()]), flush=True)
"""


def run(commands: list[str], folder: Path, **environment: str) -> dict[str, str]:
    """The one error line of each command, which all run in one process."""
    given = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(commands), capture_output=True, text=True, cwd=folder, env=given
    )
    results = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if "RESULT" in line[:6]]
    assert [line for line, *_ in results] == commands, done.stderr[-3000:]
    for line, status, errors, traceback in results:
        assert (status, len(errors), traceback) == (1, 1, False), (line, errors)
    return {line: errors[0] for line, _, errors, _ in results}


def named(name: str) -> dict[str, str]:
    """All commands with that name, and the kind of what each loads."""
    return {command.replace("NAME", name): kind for kind, commands in COMMANDS.items() for command in commands}


def test_what_the_hub_does_not_give_is_said_by_every_command(hub: str, tmp_path: Path) -> None:
    commands = {name: named(f"some/{name}") for name in ANSWERS if name != "notgranted"}
    said = run([command for group in commands.values() for command in group], tmp_path, HF_ENDPOINT=hub)
    for name, group in commands.items():
        for command, kind in group.items():
            page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}some/{name}"
            wanted = {
                "gated": [f"is gated: accept its licence at {page} and log in with 'hf auth login'"],
                "missing": ["neither a local folder nor a", "or it is private: check the name"],
                "private": ["neither a local folder nor a", "or it is private: check the name", "hf auth login"],
                "norevision": ["has no revision main on the Hub", f"{page}/tree/main"],
            }[name]
            assert all(part in said[command] for part in wanted), (command, said[command])


def test_with_a_token_that_has_no_access_the_account_is_the_cause(hub: str, tmp_path: Path) -> None:
    commands = [command for command, kind in named("some/notgranted").items() if kind != "dataset"]
    for line in run(commands, tmp_path, HF_ENDPOINT=hub, HF_TOKEN="hf_of_somebody").values():
        assert "the account of this token may not read it" in line
        assert f"{hub}/some/notgranted" in line
        assert "hf_of_somebody" not in line


def test_offline_what_is_not_in_the_cache_is_to_be_downloaded_elsewhere(tmp_path: Path) -> None:
    commands = {line: kind for line, kind in named("some/model").items() if "--dry-run" not in line}
    for command, line in run(list(commands), tmp_path, HF_HUB_OFFLINE="1").items():
        download = "hf download some/model" + (" --repo-type dataset" if commands[command] == "dataset" else "")
        assert "HF_HUB_OFFLINE is set" in line
        assert f"run '{download}' where there is a network" in line
        assert str(tmp_path / "home" / "hub") in line


@pytest.mark.parametrize(
    ("cause", "answer"),
    [
        (httpx.ConnectError("refused"), "is not reached"),
        (
            HfHubHTTPError("busy", response=httpx.Response(429, request=httpx.Request("GET", "http://hub"))),
            "answers with status 429",
        ),
    ],
)
def test_a_hub_that_is_not_reached(monkeypatch: pytest.MonkeyPatch, cause: Exception, answer: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    error = OSError("We couldn't connect")
    error.__cause__ = LocalEntryNotFoundError("not in the cache")
    error.__cause__.__cause__ = cause
    line = str(loading_error("model", "some/model", error, "main"))
    assert answer in line
    assert "run 'hf download some/model --revision main' where there is one" in line


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text('{"peft_type": "SVF"}')
    (tmp_path / "run" / "adapter_model.safetensors").touch()
    return "run"


@pytest.mark.parametrize("command", COMMANDS["model"])
def test_an_adapter_is_no_model(adapter: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.replace("NAME", adapter).split()) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: run is the folder of an adapter and not a model: name its base model as the model")
    assert "run as adapter_path" in line


@pytest.mark.parametrize("command", COMMANDS["adapter"])
def test_a_model_is_no_adapter(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.replace("NAME", str(model_path())).split()) == 1
    assert "is a model and not an adapter: give it as the model (model_name_or_path)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/no/such", "a/b/c", "x" * 400, "two\nlines", "nul\0", "~nobody/x", "a b"])
@pytest.mark.parametrize("kind", ["model", "tokenizer", "adapter", "dataset"])
def test_names_that_can_be_none(kind: str, name: str) -> None:
    from svf_rl.models.arguments import ModelArguments
    from svf_rl.models.loading import load_base, load_tokenizer
    from svf_rl.svf.expert import expert_folder
    from svf_rl.tasks.files import read_hub

    load = {"model": load_base, "tokenizer": load_tokenizer, "adapter": expert_folder, "dataset": read_hub}[kind]
    with pytest.raises(SVFError) as error:
        load(ModelArguments(name) if kind in ("model", "tokenizer") else name)  # type: ignore[operator]
    assert str(error.value).isprintable()


def test_a_name_longer_than_a_file_s_may_be() -> None:
    from svf_rl.models.arguments import ModelArguments
    from svf_rl.settings.dry_run_model import find_positions
    from svf_rl.svf.checkpoint import decompose_checkpoint

    for look in (decompose_checkpoint, lambda name: find_positions(ModelArguments(name))):
        with pytest.raises(SVFError, match="x" * 400):
            look("x" * 400)


def test_a_long_message_keeps_its_beginning_and_its_end_and_whole_words() -> None:
    words = [f"word{number}" for number in range(1000)]
    line = one_line("cause: " + " ".join(words) + "\n\tremedy\x1b[31m", at_most=300)
    assert len(line) <= 303
    assert line.startswith("cause: word0 ")
    assert line.endswith(" word999 remedy [31m")
    assert set(line.split()) <= {"cause:", *words, "remedy", "[31m", "…"}
    assert one_line("a\n b") == "a b"
    assert one_line("x" * 1000) == "x" * 1000
    assert one_line(ValueError()) == "ValueError"
