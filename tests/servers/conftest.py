"""vLLM servers, each in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.generation.vllm_server import VLLMServers
from svf_rl.quickstart import make_rows, model_path
from svf_rl.svf import SVFConfig


class Server:
    """A server's process. `command` follows `python -m`."""

    def __init__(self, command: Sequence[str], port: int, log: Path, **environment: str):
        self.url = f"http://127.0.0.1:{port}"
        self._command, self._environment, self._log = command, environment, log
        self.start()

    def start(self) -> None:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )

    def wait(self, seconds: float = 300) -> "Server":
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.5)
        raise TimeoutError(self._log.read_text()[-3000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Start = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start_server(*options)`: a server of the quickstart's recipe, not up yet; `command` for another command."""
    servers: list[Server] = []

    def start(*options: str, command: Sequence[str] | None = None, **environment: str) -> Server:
        port = free_port()
        serve = ["svf_rl.cli", "serve", str(repository / "recipes/quickstart.yaml"), "--vllm_max_model_length", "256"]
        if command is not None:
            serve = [*command]
        log = tmp_path_factory.mktemp("server") / "log.txt"
        servers.append(Server([*serve, "--port", str(port), *options], port, log, **environment))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def server(start_server: Start) -> Server:
    """One server for all tests that leave it running."""
    return start_server().wait()


@pytest.fixture
def rollouts(server: Server) -> VLLMServers:
    return VLLMServers([server.url], dtype="float32")


@pytest.fixture
def adapted() -> Callable[..., PeftModel]:
    """`adapted(seed, config)`: the bundled model with an adapter whose values are away from the start, so near that
    answers come to an end."""

    def build(seed: int = 0, config: PeftConfig | None = None) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
        model = get_peft_model(base, config or SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM"))
        move(model, seed)
        return model.eval()

    return build


def move(model: torch.nn.Module, seed: int, by: float = 0.05) -> None:
    """Move every trained value at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Token ids of 12 chat prompts of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    rows = make_rows("math", "test", 6) + make_rows("choice", "test", 6)
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in chats]
