"""`svf-rl serve` and the keys of a recipe that go with it."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import adapted_model, free_port

from svf_rl.errors import SVFError
from svf_rl.generation.weights import stored_name
from svf_rl.launch.serving import server_command
from svf_rl.settings.recipe import Recipe, load_recipe
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.cache import FactorCache


def recipe(repository: Path, *overrides: str) -> Recipe:
    return load_recipe(repository / "recipes/quickstart.yaml", overrides)


def options(command: list[str]) -> dict[str, str]:
    pairs = zip(command, [*command[1:], "--"], strict=True)
    return {name: "" if value.startswith("--") else value for name, value in pairs if name.startswith("--")}


def test_the_server_has_the_model_type_and_length_of_the_recipe(repository: Path) -> None:
    loaded = recipe(
        repository, "--vllm_max_model_length", "512", "--seed", "3", "--vllm_tensor_parallel_size", "2",
        "--vllm_mode", "server", "--vllm_server_base_url", "http://localhost:8000",
    )  # fmt: skip
    command, environment = server_command(loaded, "127.0.0.1", free_port(), ["--dtype", "bfloat16"])
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    given = options(command)
    assert given["--model"] == loaded.model.location
    assert given["--max-model-len"] == "512"
    assert given["--seed"] == "3"
    assert given["--tensor-parallel-size"] == "2"
    assert given["--logprobs-mode"] == "processed_logprobs"
    assert given["--worker-extension-cls"].endswith("SVFWorkerExtension")
    assert "--enforce-eager" in given
    assert command[-2:] == ["--dtype", "bfloat16"]  # last, so that they win
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_server_computes_with_the_factors_of_what_the_recipe_adapts(repository: Path) -> None:
    loaded = recipe(repository, "--target_modules", "mlp+attention", "--exclude_modules", ".*layers.0.*")
    given = options(server_command(loaded, "127.0.0.1", free_port())[0])
    assert given["--load-format"] == "svf"
    assert "--enable-lora" in given
    assert given["--middleware"].endswith("versions.ServeVersions")
    stored = json.loads(given["--model-loader-extra-config"])
    cache = FactorCache(stored["cache"])
    model = adapted_model(SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM"))
    expected = {
        stored_name(model, f"{name}.weight").removesuffix(".weight"): layer.weight_id
        for name, layer in svf_layers(model).items()
        if ".layers.0." not in name
    }
    assert stored["factors"] == expected
    assert all(cache.map_file(fingerprint, torch.float32) is not None for fingerprint in expected.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--adapter", "lora"], "an adapter other than SVF"),
        (["--core", "band:1"], "a core that mixes singular directions, or biases"),
        (["--biases"], "a core that mixes singular directions, or biases"),
        (["--modules_to_save", "[norm]"], "modules_to_save"),
        (["--vllm_tensor_parallel_size", "2"], "vllm_tensor_parallel_size above 1"),
        (["--vllm_weights", "merged"], None),
    ],
)
def test_what_has_no_rows_gets_whole_weights_and_a_line_says_why(
    repository: Path, capsys: pytest.CaptureFixture[str], change: list[str], reason: str | None
) -> None:
    given = options(server_command(recipe(repository, *change), "127.0.0.1", free_port())[0])
    assert not {"--load-format", "--enable-lora", "--max-loras"} & given.keys()
    assert given["--middleware"].endswith("secret.RequireSecret")
    line = f"note: the server holds whole weights (vllm_weights: merged): {reason}\n"
    assert capsys.readouterr().err == (line if reason else "")


def test_batches_and_addresses_are_no_matter_of_a_server(repository: Path) -> None:
    """One process reads the recipe of sixteen, which is for servers whose addresses are given later."""
    own = ("--per_device_train_batch_size", "2", "--num_generations", "8", "--gradient_accumulation_steps", "1")
    own += ("--use_vllm", "--vllm_mode", "server")
    path = repository / "recipes/quickstart.yaml"
    command, _ = server_command(load_recipe(path, own, serving=True), "127.0.0.1", free_port())
    assert "--worker-extension-cls" in command
    with pytest.raises(SVFError):
        load_recipe(path, own)


def test_dtype_auto_is_that_of_the_checkpoint(repository: Path) -> None:
    command, _ = server_command(recipe(repository, "--dtype", "auto"), "127.0.0.1", free_port())
    assert options(command)["--dtype"] == "bfloat16"


def test_a_port_in_use_is_said_before_anything_is_loaded(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SVFError, match=f"cannot listen at 127.0.0.1:{port} .*--port"):
            server_command(recipe(repository), "127.0.0.1", port)
        done = subprocess.run(
            [sys.executable, "-m", "svf_rl.cli", "serve", "recipes/quickstart.yaml", "--port", str(port)],
            cwd=repository, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: cannot listen at 127.0.0.1:{port}")
    for host, port in (("127.0.0.1", 70000), ("no-such-host.invalid", 8000)):
        with pytest.raises(SVFError, match="cannot listen"):
            server_command(recipe(repository), host, port)


SERVER = {"vllm_mode": "server", "vllm_server_base_url": "http://localhost:8000"}


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ("http://a:1", ["http://a:1"]),
        ("http://a:1, http://b:2/", ["http://a:1", "http://b:2"]),
        ("[http://a:1, 'https://b/vllm']", ["http://a:1", "https://b/vllm"]),
    ],
)
def test_several_addresses(repository: Path, given: str, urls: list[str]) -> None:
    loaded = recipe(repository, "--vllm_mode", "server", "--vllm_server_base_url", given)
    assert loaded.training.server_urls == urls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vllm_server_base_url": ""}, "needs vllm_server_base_url.*svf-rl serve"),
        ({"vllm_server_base_url": "localhost:8000"}, "'localhost:8000' is not a valid address"),
        ({"vllm_server_base_url": "http://a:1,http://a:1/"}, "names http://a:1 twice"),
        ({"vllm_server_failure": "ignore"}, "vllm_server_failure must be one of stop, leave_out"),
        ({"vllm_mode": "colocated"}, "vllm_mode must be one of colocate, server"),
        ({"vllm_mode": "colocate"}, "vllm_server_base_url is for vllm_mode: server"),
        ({"use_vllm": "false"}, "needs use_vllm: true"),
        ({"vllm_server_timeout": "0"}, "vllm_server_timeout must be positive"),
    ],
)
def test_bad_settings_are_one_line(repository: Path, change: dict[str, Any], message: str) -> None:
    given = {**SERVER, **change}
    with pytest.raises(SVFError, match=message) as error:
        recipe(repository, *(text for key, value in given.items() for text in (f"--{key}", value)))
    assert "\n" not in str(error.value)
