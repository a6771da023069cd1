"""A server's weights change for those who have its secret, and for nobody else."""

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fakes import adapted_model
from server_process import Server

from svf_rl.errors import SVFError
from svf_rl.generation.server.connection import ServerConnection
from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.generation.server.secret import HEADER, RequireSecret, check_secret, make_secret, read_secret
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig


@pytest.fixture
def secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SVF_RL_SERVER_SECRET", raising=False)
    monkeypatch.setenv("SVF_RL_SERVER_SECRET_FILE", str(tmp_path / "job" / "secret"))
    return tmp_path / "job" / "secret"


def test_it_is_made_once_for_this_user_alone(secret_file: Path) -> None:
    assert read_secret() is None
    make_secret()
    secret = read_secret()
    assert secret is not None
    assert len(secret) == 64
    assert secret_file.stat().st_mode & 0o777 == 0o600
    make_secret()
    assert read_secret() == secret
    check_secret(secret)


@pytest.mark.parametrize("given", [None, "", "0" * 64, 5, ["x"], {"secret": 1}, "\ud800", "é"])
def test_anything_else_is_refused(secret_file: Path, given: object) -> None:
    with pytest.raises(SVFError, match="has no secret"):
        check_secret(given)
    make_secret()
    with pytest.raises(SVFError, match="the secret of this server was not given") as error:
        check_secret(given)
    assert str(read_secret()) not in str(error.value)


def test_a_file_that_others_can_read_is_no_secret(secret_file: Path) -> None:
    make_secret()
    secret_file.chmod(0o644)
    with pytest.raises(SVFError, match="mode 600"):
        read_secret()


def test_the_environment_wins(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_secret()
    monkeypatch.setenv("SVF_RL_SERVER_SECRET", "of the job")
    assert read_secret() == "of the job"


def _answer(path: str, *headers: tuple[bytes, bytes]) -> int:
    """The status with which the guarded server answers."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(RequireSecret(app)(scope, None, send))
    return int(sent[0]["status"])


def test_routes_that_act_on_the_server_ask_for_it(secret_file: Path) -> None:
    make_secret()
    key = (HEADER.encode(), str(read_secret()).encode())
    for path in ("/collective_rpc", "//collective_rpc", "/pause", "/sleep", "/reset_prefix_cache", "/server_info", "/"):
        assert _answer(path) == 401
        assert _answer(path, (HEADER.encode(), b"guess")) == 401
        assert _answer(path, key) == 200
    for path in ("/health", "/v1/completions", "/v1/models"):
        assert _answer(path) == 200


@pytest.fixture
def worker(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A worker's extension over a module that keeps what it is given."""
    name = "svf_rl.generation.worker_extension"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module_of_workers = importlib.import_module(name)
    module_of_workers._PLAIN.__exit__(None, None, None)  # what it changes of vLLM is for a worker's whole life

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))
            self.loaded: dict[str, torch.Tensor] = {}

        def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
            self.loaded.update(weights)

    make_secret()
    extension = module_of_workers.SVFWorkerExtension()
    module = Module()
    extension.model_runner = SimpleNamespace(get_model=lambda: module)
    config = SimpleNamespace(model=str(model_path()), revision=None, dtype=torch.float32)
    extension.vllm_config = SimpleNamespace(model_config=config)
    yield SimpleNamespace(extension=extension, module=module, secret=read_secret())
    del sys.modules[name]


def test_the_worker_asks_too(worker: Any) -> None:
    """vLLM's own route to the workers takes no key, and a server may be started without ours."""
    calls = {
        "svf_status": (), "svf_setup": ({},), "svf_update": ("", ""), "svf_begin_push": ("model", "run"),
        "svf_push": ("model.norm.weight", "float32", [1], "AAAA"), "svf_commit": ("version", 1),
        "svf_put": ("layout", "version", "", 1, []),
    }  # fmt: skip
    for method, arguments in calls.items():
        for key in ({}, {"secret": ""}, {"secret": "guess"}, {"secret": None}):
            assert "secret of this server" in getattr(worker.extension, method)(*arguments, **key)["error"]
    assert worker.extension.svf_weights is None


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("svf_setup", [{}], "a layout that is none"),
        ("svf_setup", [[]], "a layout that is none"),
        ("svf_setup", [{"matrices": [{"name": "x"}]}], "a layout that is none"),
        ("svf_update", ["v", "AAAA"], "call svf_setup first"),
        ("svf_update", ["v", "not base64"], "Error"),
        ("svf_push", ["model.norm.weight", "float32", [96], "AAAA"], "Error"),
        ("svf_push", ["model.norm.weight", "float32", [1], "AAAAAA=="], "no push was begun"),
        ("svf_push", ["model.norm.weight", "load", [1], "AAAAAA=="], "Error"),
        ("svf_push", ["model.norm.weight", "float32", [-5], "AAAAAA=="], "Error"),
        ("svf_begin_push", [5, {}], "both text"),
        ("svf_commit", ["version", 0], "0 of 0 weights arrived"),
    ],
)
def test_arguments_of_any_kind_are_one_line_and_change_nothing(
    worker: Any, method: str, arguments: list[Any], message: str
) -> None:
    extension = worker.extension
    answer = getattr(extension, method)(*json.loads(json.dumps(arguments)), secret=worker.secret)
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert extension.svf_weights.status()["version"] == ""
    assert worker.module.loaded == {}


@pytest.mark.vllm
def test_a_stranger_cannot_change_a_server(server: Server) -> None:
    generator = VLLMServersGenerator([server.url], dtype="float32")
    model = adapted_model(SVFConfig(task_type="CAUSAL_LM"), 1, by=0.05)
    generator.sync(model)
    before = ServerConnection(server.url).state()
    push = {"method": "svf_begin_push", "args": ["model", "stranger"]}
    for body in (push, {**push, "kwargs": {"secret": "guess"}}, {"method": "load_model", "args": []}):
        for headers in ({}, {HEADER: "guess"}):
            assert httpx.post(f"{server.url}/collective_rpc", json=body, headers=headers).status_code == 401
    with_key = httpx.post(f"{server.url}/collective_rpc", json=push, headers={HEADER: str(read_secret())}).json()
    assert "the secret of this server was not given" in with_key["results"][0]["error"]
    assert httpx.post(f"{server.url}/pause").status_code == 401
    assert ServerConnection(server.url).state() == before
    connection = ServerConnection(server.url)
    with pytest.raises(SVFError, match="no push was begun"):
        connection.push("model.norm.weight", torch.ones(96))
    connection.pause()
    connection.begin_push("model", "stranger")
    with pytest.raises(SVFError, match="nosuch"):
        connection.push("nosuch", torch.ones(96))
    generator.sync(model)  # mends what was begun
    assert ServerConnection(server.url).state()[1] == before[1]
