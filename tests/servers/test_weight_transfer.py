"""A server that somebody started with plain vLLM as the rollout engine of a training: `z` by vLLM's weight transfer."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fakes import move, save_adapter
from peft import LoraConfig, PeftModel
from server_process import Server, wrong_tokens
from test_server_training import SMALL, metrics_lines, trained

from svf_rl.errors import SVFError
from svf_rl.generation import Sampling
from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig
from svf_rl.train import main

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
Adapted = Callable[..., PeftModel]
GREEDY = Sampling(max_tokens=24, temperature=0.0)
ALL = SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM")
COMMAND = [
    "vllm.entrypoints.openai.api_server", "--model", str(model_path()), "--load-format", "svf", "--enable-lora",
    "--model-loader-extra-config", '{"targets": "mlp+attention"}', "--dtype", "float32", "--max-model-len", "256",
    "--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill", "--block-size", "32", "--enforce-eager",
    "--weight-transfer-config", '{"backend": "svf"}',
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer")
    save_adapter(folder / "named", ALL, seed=9, by=0.05)
    (folder / "shared").mkdir()
    return folder


@pytest.fixture(scope="module")
def plain(start_server: Callable[..., Server], folder: Path) -> Iterator[Server]:
    started = start_server(
        command=[*COMMAND, "--lora-modules", f"named={folder / 'named'}"],
        VLLM_SERVER_DEV_MODE="1",
        SVF_RL_TRANSFER_FOLDER=str(folder / "shared"),
        TORCHDYNAMO_DISABLE="1",
    ).wait()
    yield started
    started.kill()


@pytest.fixture(params=["http", "folder"])
def transfer(request: pytest.FixtureRequest, plain: Server, folder: Path) -> VLLMServersGenerator:
    through = str(folder / "shared") if request.param == "folder" else None
    return VLLMServersGenerator([plain.url], dtype="float32", folder=through)


def test_each_update_serves_the_merged_model(
    transfer: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]], folder: Path
) -> None:
    model, seen = adapted(0), set()
    for seed in range(3):
        move(model, seed, by=0.1, start=1.0)
        report = transfer.sync(model)
        completions = transfer.generate(prompts, GREEDY, range(len(prompts)))
        assert wrong_tokens(copy.deepcopy(model).merge_and_unload(), prompts, completions)[0] == 0
        seen.add(str([c.token_ids for c in completions]))
        values = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert 4 * values <= report.bytes < 4 * values * 4 / 3 + 4
    assert len(seen) == 3
    assert len(list((folder / "shared").iterdir())) <= 1, "old files are removed"


def test_named_adapters_stay_what_they_are(
    plain: Server, adapted: Adapted, prompts: list[list[int]], folder: Path
) -> None:
    def named() -> list[str]:
        body = {"model": "named", "prompt": prompts, "max_tokens": 24, "temperature": 0}
        return [
            one["text"] for one in httpx.post(f"{plain.url}/v1/completions", json=body, timeout=60).json()["choices"]
        ]

    generator, before = VLLMServersGenerator([plain.url], dtype="float32"), named()
    generator.sync(adapted(3))
    assert named() == before


@pytest.mark.slow
def test_a_restarted_server_is_updated_again(plain: Server, adapted: Adapted, prompts: list[list[int]]) -> None:
    generator, model = VLLMServersGenerator([plain.url], dtype="float32"), adapted(4)
    generator.sync(model)
    before = generator.generate(prompts, GREEDY, range(len(prompts)))
    plain.kill()
    plain.wait()
    after = generator.generate(prompts, GREEDY, range(len(prompts)))
    assert [c.token_ids for c in after] == [c.token_ids for c in before]


def test_what_a_killed_run_left_open_is_closed(plain: Server, adapted: Adapted, prompts: list[list[int]]) -> None:
    for path in ("/pause", "/start_weight_update"):
        httpx.post(f"{plain.url}{path}", json={}).raise_for_status()
    generator, model = VLLMServersGenerator([plain.url], dtype="float32"), adapted(5)
    generator.sync(model)
    completions = generator.generate(prompts, GREEDY, range(len(prompts)))
    assert wrong_tokens(model.merge_and_unload(), prompts, completions)[0] == 0


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({"layout": "x", "version": "0" * 64, "z": "AAAA"}, "layout of the adapter"),
        ({"layout": "x", "version": "0" * 64, "z": "?"}, "base64"),
        ({"layout": "x", "version": "../named/adapter_config"}, "is no version"),
        ({"layout": "x", "version": "0" * 64}, "cannot read an update"),
        ({"z": ""}, "Invalid update_info"),
    ],
    ids=["unknown layout", "no base64", "path", "missing file", "missing fields"],
)
def test_an_update_that_is_none_changes_nothing(plain: Server, info: dict, why: str) -> None:
    def answer() -> str:
        body = {"prompt": "12 + 7 = ", "max_tokens": 8, "temperature": 0}
        return httpx.post(f"{plain.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]

    before = answer()
    httpx.post(f"{plain.url}/start_weight_update", json={})
    assert httpx.post(f"{plain.url}/update_weights", json={"update_info": info}, timeout=60).status_code >= 400
    assert why in plain.log.read_text()
    assert answer() == before


def test_an_adapter_that_z_does_not_describe_is_refused(plain: Server, adapted: Adapted) -> None:
    generator = VLLMServersGenerator([plain.url], dtype="float32")
    with pytest.raises(SVFError, match="takes z alone"):
        generator.sync(adapted(0, LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM")))


@pytest.mark.parametrize("through", ["http", "folder"])
def test_a_run_trains_with_it(repository: Path, plain: Server, folder: Path, tmp_path: Path, through: str) -> None:
    own = ["--vllm_mode", "server", "--vllm_server_base_url", plain.url, "--output_dir", str(tmp_path / "run")]
    if through == "folder":
        own += ["--vllm_server_folder", str(folder / "shared")]
    assert main([str(repository / "recipes/quickstart.yaml"), *SMALL, *own]) == 0
    sent = [line["sync/bytes"] for line in metrics_lines(tmp_path / "run") if "sync/bytes" in line]
    assert sent
    assert max(sent) < 4 * 864 * 4 / 3 + 4
    assert (trained(tmp_path / "run") - 1).abs().max() > 0.01
