"""vLLM's own server, as somebody starts it who has installed the package: SVF adapters go where LoRA goes."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from fakes import adapted_model, save_adapter
from peft import LoraConfig
from server_process import Server, wrong_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.generation import Completion
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ALL = SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM")
MLP = SVFConfig(target_modules="mlp", parameterization="sigmoid", task_type="CAUSAL_LM")
ADAPTERS = {f"expert{seed}": (ALL if seed % 2 else MLP, seed) for seed in range(1, 6)}
TASKS = (
    "12 + 7 = ",
    "3 * 9 = ",
    "print the numbers",
    "A) yes B) no",
    "what is",
    "def add(a, b):",
    "7 - 19 = ",
    "sum of",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, (config, seed) in ADAPTERS.items():
        save_adapter(folder / "named" / name, config, seed=seed, by=0.05)
    save_adapter(folder / "found" / "sixth", ALL, seed=6, by=0.05)
    save_adapter(folder / "elsewhere", ALL, seed=7, by=0.05)
    save_adapter(folder / "lora", LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"))
    return folder


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server], folder: Path) -> Iterator[Server]:
    modules = [f"{name}={folder / 'named' / name}" for name in ADAPTERS]
    command = [
        "vllm.entrypoints.openai.api_server", "--model", str(model_path()), "--load-format", "svf", "--enable-lora",
        "--model-loader-extra-config", '{"targets": "mlp+attention"}', "--max-loras", "8", "--lora-modules", *modules,
        "--dtype", "float32", "--max-model-len", "256", "--block-size", "32", "--enforce-eager",
    ]  # fmt: skip
    started = start_server(
        command=command,
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
        VLLM_LORA_RESOLVER_CACHE_DIR=str(folder / "found"),
        TORCHDYNAMO_DISABLE="1",
        VLLM_SERVER_DEV_MODE="0",
    ).wait()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def merged() -> dict[str, torch.nn.Module]:
    """Each adapter's model with whole weights, and the base model's, by the names that requests give them."""
    made = {"": AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()}
    for name, (config, seed) in {**ADAPTERS, "sixth": (ALL, 6)}.items():
        made[name] = adapted_model(config, seed=seed, by=0.05).merge_and_unload()
    return made


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def answer(client: openai.OpenAI, name: str, prompt: list[int], stream: bool) -> Completion:
    """What the model `name` says, the base model for an empty name."""
    model = name or str(model_path())
    options = {"max_tokens": 32, "temperature": 0, "extra_body": {"return_token_ids": True}}
    if not stream:
        choice = client.completions.create(model=model, prompt=prompt, **options).choices[0]
        return Completion(choice.token_ids, None, choice.finish_reason == "stop")
    ids: list[int] = []
    for chunk in client.completions.create(model=model, prompt=prompt, stream=True, **options):
        ids += chunk.choices[0].token_ids or []
    return Completion(ids, None, True)


def test_64_requests_at_once_of_base_and_five_adapters_are_each_its_merged_model(
    client: openai.OpenAI, merged: dict[str, torch.nn.Module]
) -> None:
    tokenizer, draw = AutoTokenizer.from_pretrained(model_path()), random.Random(0)
    names = [draw.choice(["", *ADAPTERS]) for _ in range(64)]
    prompts = [tokenizer(draw.choice(TASKS))["input_ids"] for _ in range(64)]
    with ThreadPoolExecutor(64) as threads:
        answers = list(
            threads.map(lambda i: answer(client, names[i], prompts[i], stream=i % 2 == 0), range(len(names)))
        )
    compared = 0
    for name in {*names}:
        mine = [i for i, one in enumerate(names) if one == name]
        wrong, ties = wrong_tokens(merged[name], [prompts[i] for i in mine], [answers[i] for i in mine])
        compared += sum(len(answers[i].token_ids) for i in mine)
        assert wrong == 0, name
        assert ties < 0.2 * compared
    assert compared > 500
    # what they say is not all the same
    asked = [tokenizer(text)["input_ids"] for text in TASKS]
    said = {str([answer(client, name, prompt, False).token_ids for prompt in asked]) for name in ["", *ADAPTERS]}
    assert len(said) == 1 + len(ADAPTERS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_curl_gets_what_the_client_gets(server: Server, client: openai.OpenAI, stream: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for name in ADAPTERS:
        body = {"model": name, "prompt": TASKS[0], "max_tokens": 32, "temperature": 0, "stream": stream}
        command = ["curl", "-sSfN", f"{server.url}/v1/completions", "-H", "Content-Type: application/json", "-d", "@-"]
        done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True, timeout=60)
        lines = done.stdout.splitlines()
        if stream:
            assert lines[-2] == "data: [DONE]"
            lines = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
        text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
        ids = answer(client, name, tokenizer(TASKS[0])["input_ids"], stream=False).token_ids
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_adapter_comes_and_goes_under_load(
    server: Server, client: openai.OpenAI, folder: Path, merged: dict[str, torch.nn.Module]
) -> None:
    assert {model.id for model in client.models.list()} == {str(model_path()), *ADAPTERS}
    prompts = [AutoTokenizer.from_pretrained(model_path())(text)["input_ids"] for text in TASKS]
    expected = {name: [answer(client, name, prompt, False).token_ids for prompt in prompts] for name in ADAPTERS}
    elsewhere = {"lora_name": "seventh", "lora_path": str(folder / "elsewhere")}

    def load_and_drop(rounds: int) -> set[int]:
        calls = [("load", elsewhere), ("unload", {"lora_name": "seventh"})] * rounds
        return {httpx.post(f"{server.url}/v1/{what}_lora_adapter", json=body).status_code for what, body in calls}

    with ThreadPoolExecutor(17) as threads:
        coming = threads.submit(load_and_drop, 40)
        asked = [(name, i) for name in ADAPTERS for i in range(len(prompts))] * 3
        found = threads.map(lambda one: answer(client, one[0], prompts[one[1]], one[1] % 2 == 0).token_ids, asked)
        wrong = [one for one, ids in zip(asked, found, strict=True) if ids != expected[one[0]][one[1]]]
        assert coming.result() == {200}
    # a near-tie falls as the company of a request in its batch decides
    for name, i in wrong:
        got = answer(client, name, prompts[i], False)
        assert wrong_tokens(merged[name], [prompts[i]], [got])[0] == 0
    assert len(wrong) < 0.05 * len(asked)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="seventh", prompt="x")


def test_an_adapter_is_found_in_the_folder_that_vllms_variable_names(
    client: openai.OpenAI, merged: dict[str, torch.nn.Module]
) -> None:
    prompt = AutoTokenizer.from_pretrained(model_path())(TASKS[0])["input_ids"]
    assert wrong_tokens(merged["sixth"], [prompt], [answer(client, "sixth", prompt, False)])[0] == 0
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="../elsewhere", prompt="x")


def test_what_cannot_be_served_is_refused_and_the_server_goes_on(
    server: Server, client: openai.OpenAI, folder: Path, tmp_path: Path
) -> None:
    def load(name: str, path: Path, **options: bool) -> str:
        body = {"lora_name": name, "lora_path": str(path), **options}
        refused = httpx.post(f"{server.url}/v1/load_lora_adapter", json=body)
        assert refused.status_code >= 400
        return refused.json()["error"]["message"]

    damaged = shutil.copytree(folder / "elsewhere", tmp_path / "damaged")
    with (damaged / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert "holds a LORA adapter" in load("lora", folder / "lora")
    assert "is damaged" in load("damaged", damaged)
    assert "under another name" in load("expert1", folder / "elsewhere", load_inplace=True)
    assert "neither a local folder" in load("none", tmp_path / "nothing")
    answer(client, "expert1", [1, 2, 3], False)
    assert os.kill(server.process.pid, 0) is None
