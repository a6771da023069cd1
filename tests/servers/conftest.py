"""vLLM servers, each in a process of its own."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fakes import adapted_model, free_port
from peft import PeftConfig, PeftModel
from server_process import Server

from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.svf import SVFConfig

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start_server(*options)`: a server of the quickstart's recipe, not up yet; `command` for another command. It
    computes with factors unless the options say otherwise."""
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
def first_server(start_server: Start) -> Server:
    return start_server("--vllm_weights", "merged")


@pytest.fixture(scope="session")
def first_rows_server(start_server: Start) -> Server:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    extension = ["--worker-extension-cls", "weight_digest.DigestExtension"]
    return start_server("--target_modules", "mlp+attention", "--", *extension, PYTHONPATH=path)


@pytest.fixture(scope="session", autouse=True)
def _start_early(request: pytest.FixtureRequest) -> None:
    """A server that a later test wants comes up while others run."""
    wanted = {name for item in request.session.items if isinstance(item, pytest.Function) for name in item.fixturenames}
    for name in sorted(wanted & {"first_server", "first_rows_server"}):
        request.getfixturevalue(name)


@pytest.fixture
def server(first_server: Server) -> Server:
    """One server for all tests; a test that killed it leaves the next one to wait for another."""
    return first_server.wait()


@pytest.fixture
def rows_server(first_rows_server: Server) -> Server:
    """Another one, that computes with factors."""
    return first_rows_server.wait()


@pytest.fixture(scope="session")
def other_server(start_server: Start) -> Server:
    return start_server("--vllm_weights", "merged")


@pytest.fixture
def second_server(other_server: Server) -> Server:
    """Another one, for slow tests."""
    return other_server.wait()


@pytest.fixture
def generator(server: Server) -> VLLMServersGenerator:
    return VLLMServersGenerator([server.url], dtype="float32")


@pytest.fixture
def adapted() -> Callable[..., PeftModel]:
    """`adapted(seed, config)`: the bundled model with an adapter whose values are away from the start, so near that
    answers come to an end."""

    def build(seed: int = 0, config: PeftConfig | None = None) -> PeftModel:
        return adapted_model(config or SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM"), seed, by=0.05)

    return build
