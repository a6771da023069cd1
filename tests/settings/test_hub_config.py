"""A model that is on the Hub alone: a dry run and a plan fetch its `config.json`, and a run that needs a GPU ends
before anything of it is loaded. The Hub is a server here; the commands are the real ones."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from transformers import LlamaConfig

from svf_rl.cli import main

LARGE = LlamaConfig(
    architectures=["LlamaForCausalLM"], hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
    num_hidden_layers=32, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192,
)  # fmt: skip
REFUSED = {"/some/gated": (403, "GatedRepo"), "/no/such": (404, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """`some/large` is a model, and anyone may look at its configuration."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        self.asked.append(self.path)
        name, _, file = self.path.partition("/resolve/main/")
        status, code = REFUSED.get(name, (200, "") if file == "config.json" else (404, "EntryNotFound"))
        content = json.dumps(LARGE.to_dict()).encode() if status == 200 else b""
        self.send_response(status)
        headers = {"X-Error-Code": code} if code else {"ETag": '"1"', "X-Repo-Commit": "a" * 40}
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """Its address."""
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


COMMANDS = """
import sys
from svf_rl.cli import main

for line in sys.stdin.read().splitlines():
    try:
        status = main(line.split())
    except SystemExit as error:
        status = error.code
    print(f"status {status} of {line}", flush=True)
    print(f"end of {line}", file=sys.stderr, flush=True)
"""


def run(commands: list[str], folder: Path, **environment: str) -> list[tuple[int, str, str]]:
    """Status, output and errors of each command, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], input="\n".join(commands), capture_output=True, text=True, cwd=folder,
        env=os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"} | environment,
    )  # fmt: skip
    results, out, err = [], done.stdout, done.stderr
    for command in commands:
        printed, _, out = out.partition(f" of {command}\n")
        said, _, err = err.partition(f"end of {command}\n")
        results.append((int(printed.rsplit(" ", 1)[1]), printed, said))
    return results


def test_the_configuration_is_fetched_and_nothing_else(hub: str, tmp_path: Path) -> None:
    large = "train llama3_math --model_name_or_path some/large"
    checked, started, planned, gated, missing = run(
        [f"{large} --dry-run", large, "plan llama3_math --model_name_or_path some/large --gpus 1 --gpu-memory 80GB",
         "train llama3_math --model_name_or_path some/gated --dry-run",
         "train llama3_math --model_name_or_path no/such --dry-run"],
        tmp_path, HF_ENDPOINT=hub,
    )  # fmt: skip
    assert checked[0] == 0
    assert "393,216 in 96 matrices" in checked[1]
    assert "here it would end at once: some/large has 8.0 billion parameters and this machine has no GPU" in checked[1]
    assert started[0] == 1
    assert started[2].count("error: some/large has 8.0 billion parameters") == 1
    assert "--device cpu" in started[2]
    assert planned[0] == 0
    assert "8,030,261,248 parameters" in planned[1]
    assert gated[0] == missing[0] == 1
    assert f"some/gated is gated: accept its licence at {hub}/some/gated and log in with 'hf auth login'" in gated[2]
    assert "the Hub has no model no/such" in missing[2]
    assert not any("Traceback" in said for _, _, said in (checked, started, planned, gated, missing))
    files = {path.rpartition("/")[2] for path in Hub.asked}
    assert files - {"agent-harnesses"} == {"config.json"}  # the library asks for that list of its own once a day
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}  # no run has begun


def test_where_the_hub_cannot_be_had_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["train", "llama3_math", "--model_name_or_path", "some/model", "--dry-run"]) == 0
    assert "note: model some/model is not on this machine, and the Hub cannot be reached (" in capsys.readouterr().out
    machine = ["--gpus", "1", "--gpu-memory", "80GB"]
    assert main(["plan", "llama3_math", "--model_name_or_path", "some/model", *machine]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model some/model is not on this machine, and the Hub cannot be reached (")
    assert "run this where the Hub can be reached" in line
    assert "Retrying" not in caplog.text
