"""Servers that die, come back, or never were what they should be."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fakes import FakeServer, free_port, move, served
from peft import PeftModel, get_peft_model
from server_process import Server, wrong_tokens
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from svf_rl.errors import SVFError
from svf_rl.generation import Sampling
from svf_rl.generation.server import connection as server_connection
from svf_rl.generation.server import requests as module
from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

GREEDY = Sampling(max_tokens=32, temperature=0.0)
Adapted = Callable[..., PeftModel]


@pytest.mark.vllm
@pytest.mark.slow
def test_a_dead_server_stops_the_run_and_a_restarted_one_is_brought_up_to_date(
    server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    hasty, patient = (VLLMServersGenerator([server.url], dtype="float32", timeout=seconds) for seconds in (1.0, 400.0))
    for generator in (hasty, patient):
        generator.sync(adapted(1))
    expected = [c.token_ids for c in patient.generate(prompts, GREEDY, range(12))]
    server.kill()
    for act in (lambda: hasty.generate(prompts, GREEDY, range(12)), lambda: hasty.sync(adapted(2))):
        with pytest.raises(SVFError, match=f"{server.url} does not answer any more: restart it") as error:
            act()
        assert "\n" not in str(error.value)
    server.start()
    # waits; and nobody tells it that what comes up serves the checkpoint
    assert [c.token_ids for c in patient.generate(prompts, GREEDY, range(12))] == expected


@pytest.mark.vllm
@pytest.mark.slow
def test_one_of_two_servers_dies_is_left_out_and_taken_back(
    server: Server, second_server: Server, adapted: Adapted, prompts: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    both = VLLMServersGenerator([second_server.url, server.url], dtype="float32", on_failure="leave_out")
    alone = VLLMServersGenerator([server.url], dtype="float32")
    model = adapted(1)
    assert both.sync(model).bytes == 2 * alone.sync(model).bytes
    expected = [c.token_ids for c in alone.generate(prompts, GREEDY, range(12))]
    assert [c.token_ids for c in both.generate(prompts, GREEDY, range(12))] == expected

    killer = threading.Timer(0.5, second_server.kill)  # in the middle of the requests
    killer.start()
    many = [c.token_ids for c in both.generate(prompts * 20, GREEDY, range(240))]
    killer.join()
    assert many == expected * 20
    assert f"warning: vLLM server {second_server.url} is left out" in capfd.readouterr().err

    # a run that begins, or goes on, while it is away
    later = VLLMServersGenerator([second_server.url, server.url], dtype="float32", on_failure="leave_out", timeout=2.0)
    assert f"warning: vLLM server {second_server.url} is left out" in capfd.readouterr().err
    assert later.sync(model).bytes == alone.sync(model).bytes
    assert [c.token_ids for c in later.generate(prompts, GREEDY, range(12))] == expected
    with pytest.raises(SVFError, match="no vLLM server answers at"):
        VLLMServersGenerator([second_server.url], dtype="float32", on_failure="leave_out", timeout=0.1)

    second_server.wait()
    for generator in (both, later):
        assert generator.sync(model).bytes == 2 * alone.sync(model).bytes
        assert f"{second_server.url} is back" in capfd.readouterr().err
        assert [c.token_ids for c in generator.generate(prompts, GREEDY, range(12))] == expected


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_that_hangs_is_as_good_as_dead(
    server: Server, second_server: Server, adapted: Adapted, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 1.0)
    monkeypatch.setattr(module, "_PATIENCE", 6.0)
    monkeypatch.setattr(server_connection, "_SHORT", 6.0)
    patient = VLLMServersGenerator([second_server.url, server.url], dtype="float32", on_failure="leave_out")
    patient.sync(adapted(1))
    expected = [c.token_ids for c in patient.generate(prompts, GREEDY, range(12))]
    stopper = threading.Timer(0.3, lambda: os.killpg(second_server.process.pid, signal.SIGSTOP))
    stopper.start()
    many = [c.token_ids for c in patient.generate(prompts * 20, GREEDY, range(240))]
    stopper.join()
    os.killpg(second_server.process.pid, signal.SIGCONT)
    assert many == expected * 20


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_without_the_extension_is_told_how_to_start(start_server: Callable[..., Server]) -> None:
    plain = ["vllm.entrypoints.openai.api_server", "--model", str(model_path()), "--dtype", "float32"]
    options = ("--enforce-eager", "--max-model-len", "256", "--gpu-memory-utilization", "0.2")
    without = start_server(*options, command=plain, VLLM_SERVER_DEV_MODE="1", TORCHDYNAMO_DISABLE="1").wait()
    with pytest.raises(SVFError, match=r"runs without the extension.*svf-rl serve RECIPE") as error:
        VLLMServersGenerator([without.url], dtype="float32")
    assert "\n" not in str(error.value)
    with pytest.raises(SVFError, match=r"cannot get new weights.*--weight-transfer-config"):
        VLLMServersGenerator([without.url], dtype="float32", device="cuda")  # where TRL's push would do


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_over_two_workers_rebuilds_its_shards(
    start_server: Callable[..., Server], prompts: list[list[int]], tmp_path: Path
) -> None:
    """The bundled model has three heads, which two workers cannot share."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=448, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    base = LlamaForCausalLM(config).eval()
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path)
    cores = sorted(os.sched_getaffinity(0))
    bind = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}  # by itself vLLM takes a NUMA node a worker
    sharded = start_server("--model_name_or_path", str(tmp_path), "--", "--tensor-parallel-size", "2", **bind).wait()
    assert "note: the server holds whole weights (vllm_weights: merged): " in sharded.log.read_text()
    generator = VLLMServersGenerator([sharded.url], dtype="float32")
    model = get_peft_model(base, SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM"))
    for seed in (1, 2):
        move(model, seed, by=0.2)
        assert generator.sync(model).tensors == 10
        completions = generator.generate(prompts, GREEDY, range(12))
        wrong, ties = wrong_tokens(model, prompts, completions)
        assert wrong == 0
        assert ties < 100  # of 384
    with model.disable_adapter():
        assert wrong_tokens(model, prompts, completions)[0] > 0  # the control


@pytest.fixture
def no_vllm() -> Iterator[str]:
    """The address of a web server that is no vLLM."""
    with served(_Page) as url:
        yield url


class _Busy(FakeServer):
    """Well, and slow to answer the first time."""

    asked = 0

    def do_GET(self) -> None:
        if self.path != "/health":
            type(self).asked += 1
            time.sleep(2.0 if self.asked == 1 else 0.0)
        with suppress(BrokenPipeError):
            self.answer(b"" if self.path == "/health" else b'{"is_paused": false}')


def test_a_server_that_is_busy_and_well_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_connection, "_SHORT", 0.5)
    with served(_Busy) as url:
        assert server_connection.ServerConnection(url).is_paused() is False
        assert _Busy.asked == 2


class _Page(FakeServer):
    def do_GET(self) -> None:
        self.answer(b"<html>welcome</html>" if self.path != "/health" else b"", kind="text/html")


def test_an_address_that_is_no_server_is_said_in_one_line(no_vllm: str, tmp_path: Path) -> None:
    for url, message in (
        (f"http://127.0.0.1:{free_port()}", "no vLLM server answers at .* within 0.5 s"),
        ("http://no-such-host.invalid:8000", "no vLLM server answers"),
        (no_vllm, "not as a vLLM server does"),
    ):
        with pytest.raises(SVFError, match=message) as error:
            VLLMServersGenerator([url], dtype="float32", timeout=0.5)
        assert "\n" not in str(error.value)
