"""A server that computes with factors: each version of `z` is a row, and an update disturbs no request."""

import copy
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch
from fakes import SIZES, adapted_model, move
from peft import LoraConfig, PeftModel, get_peft_model
from server_process import Server, wrong_tokens
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, Sampling
from svf_rl.generation.server.connection import ServerConnection
from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.generation.server.secret import HEADER, read_secret
from svf_rl.generation.server.versions import KEPT
from svf_rl.generation.server.z_update import ROWS, describe_layout, pack
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers

pytestmark = pytest.mark.vllm
GREEDY = Sampling(max_tokens=32, temperature=0.0)
Adapted = Callable[..., PeftModel]


@pytest.fixture
def rows(rows_server: Server) -> VLLMServersGenerator:
    return VLLMServersGenerator([rows_server.url], dtype="float32")


def version_of(model: PeftModel) -> str:
    return describe_layout(model).version(pack(model))


def ask(url: str, prompt: list[int], version: str | None, timeout: float | None = None) -> httpx.Response:
    """What any other client gets."""
    body = {"prompt": prompt, "max_tokens": 32, "temperature": 0, "return_token_ids": True, "logprobs": 0}
    return httpx.post(f"{url}/v1/completions", json=body | ({"model": version} if version else {}), timeout=timeout)


def tokens(generator: VLLMServersGenerator, prompts: list[list[int]]) -> list[list[int]]:
    return [completion.token_ids for completion in generator.generate(prompts, GREEDY, range(len(prompts)))]


def digest(url: str) -> str:
    """Of all weights of the server."""
    call = {"method": "svf_digest"}
    return httpx.post(f"{url}/collective_rpc", json=call, headers={HEADER: str(read_secret())}).json()["results"][0]


@torch.no_grad()
def check_logprobs(model: torch.nn.Module, prompts: list[list[int]], completions: list[Completion]) -> None:
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        expected = logits.log_softmax(1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "mlp+attention"},
        {"target_modules": "mlp", "parameterization": "sigmoid", "renormalize": True},
    ],
    ids=["direct", "a part, sigmoid"],
)
def test_tokens_and_logprobs_are_those_of_the_merged_model_after_each_update(
    rows: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]], config: dict
) -> None:
    model, seen, ties = adapted(0, SVFConfig(task_type="CAUSAL_LM", **config)), set(), 0
    for seed in range(3):
        move(model, seed, by=0.1 if config["target_modules"] != "mlp" else 0.5)
        size = 4 * len(pack(model)) // 3
        assert size <= rows.sync(model).bytes < size + 300
        completions = rows.generate(prompts, GREEDY, range(len(prompts)))
        merged = copy.deepcopy(model).merge_and_unload()
        wrong, close = wrong_tokens(merged, prompts, completions)
        assert wrong == 0, f"after update {seed + 1}"
        check_logprobs(merged, prompts, completions)
        scores = rows.loglikelihood(prompts[:3], [c.token_ids for c in completions[:3]])
        for score, completion in zip(scores, completions[:3], strict=True):
            torch.testing.assert_close(torch.tensor(score), torch.tensor(completion.logprobs), rtol=0, atol=1e-4)
        ties += close
        seen.add(str([c.token_ids for c in completions]))
    assert len(seen) == 3, "the updates change no answer: they prove nothing"
    assert ties < 0.05 * 3 * 12 * 12


def test_a_request_that_names_no_version_is_answered_by_the_base_model(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    model = adapted(1)
    move(model, 2, by=0.1)
    rows.sync(model)
    ours = tokens(rows, prompts)
    base = model.unload()
    rows.sync(base)
    assert wrong_tokens(base, prompts, rows.generate(prompts, GREEDY, range(12)))[0] == 0
    theirs = [ask(rows_server.url, prompt, None).json()["choices"][0]["token_ids"] for prompt in prompts]
    assert theirs == tokens(rows, prompts) != ours


def test_a_cached_prefix_is_read_by_its_own_version_alone(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    long = [token for prompt in prompts for token in prompt][:200]  # more than a block of vLLM's cache
    models, expected = [adapted(1), adapted(2)], []
    for seed, model in enumerate(models):
        move(model, seed, by=0.1)
        rows.sync(model)
        expected.append(rows.generate([long], GREEDY, [0])[0])  # with an empty cache
    assert expected[0].logprobs[0] != pytest.approx(expected[1].logprobs[0], abs=1e-3)
    for kind in (0, 1, 0, 1):
        choice = ask(rows_server.url, long, version_of(models[kind])).json()["choices"][0]
        assert choice["token_ids"] == expected[kind].token_ids
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected[kind].logprobs, abs=1e-4)


@pytest.mark.parametrize("updates", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_an_update_disturbs_no_request_and_no_weight(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]], updates: int
) -> None:
    """Other clients ask all the time, and one hangs up: every answer is that of the version it was asked for, also
    where many updates came meanwhile. Each update has a version of its own, whose `z` differs so little from one of
    four that no answer does."""
    models = [adapted(seed) for seed in range(4)]
    expected = []
    for seed, model in enumerate(models):
        move(model, seed, by=0.1)
        rows.sync(model)
        expected.append(tokens(rows, prompts))
    assert len({str(answers) for answers in expected}) == 4
    before, latest = digest(rows_server.url), (3, version_of(models[3]))
    answers: list[tuple[int, int, httpx.Response, int]] = []
    done, stop = 0, threading.Event()

    def client(place: int) -> None:
        while not stop.is_set():
            (kind, version), began = latest, done
            answers.append((kind, place, ask(rows_server.url, prompts[place], version), done - began))
            place = (place + 1) % len(prompts)

    def impatient() -> None:
        while not stop.is_set():
            with suppress(httpx.ReadTimeout):
                ask(rows_server.url, prompts[0], latest[1], timeout=0.1)

    clients = [threading.Thread(target=client, args=(place,)) for place in range(0, 12, 2)]
    clients.append(threading.Thread(target=impatient))
    for thread in clients:
        thread.start()
    try:
        versions = set()
        while done < updates or len(answers) < 40:
            kind = done % 4
            next(iter(svf_layers(models[kind]).values())).svf_z["default"].weight.data[-1] += 1e-6
            rows.sync(models[kind])
            latest = kind, version_of(models[kind])
            versions.add(latest[1])
            done += 1
            if done % 10 == 0:
                assert tokens(rows, prompts[:3]) == expected[kind][:3]
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert len(versions) == done
    for kind, place, response, meanwhile in answers:
        if response.status_code == 404:  # so many updates came before the request did that its version had no name left
            assert meanwhile >= KEPT
            continue
        choice = response.json()["choices"][0]
        assert choice["token_ids"] == expected[kind][place]
    assert sum(meanwhile > 0 for *_, meanwhile in answers) > len(answers) / 2, "no update came while requests ran"
    rows.sync(models[0])
    assert ServerConnection(rows_server.url).status()["rows"] <= KEPT + 1
    assert digest(rows_server.url) == before


def test_a_version_that_was_dropped_is_said_and_brought_again_where_a_run_needs_it(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    model, other = adapted(1), VLLMServersGenerator([rows_server.url], dtype="float32")
    rows.sync(model)
    ours = tokens(rows, prompts)
    another = adapted(2)
    for seed in range(KEPT):
        move(another, seed, by=0.01)
        other.sync(another)
    for version in (version_of(model), "nonsense"):
        answer = ask(rows_server.url, prompts[0], version)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == f"The model `{version}` does not exist."
    assert tokens(rows, prompts) == ours
    assert ask(rows_server.url, prompts[0], version_of(model)).json()["choices"][0]["token_ids"] == ours[0]


def test_two_runs_at_once_have_rows_of_their_own(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    """With other targets and another mask; neither waits for the other, nor is asked twice."""
    other = VLLMServersGenerator([rows_server.url], dtype="float32")
    sigmoid = SVFConfig(target_modules="attention", parameterization="sigmoid", task_type="CAUSAL_LM")
    runs = [(rows, adapted(1)), (other, adapted(2, sigmoid))]
    found: list[list[list[list[int]]]] = [[], []]

    def train(run: int) -> None:
        generator, model = runs[run]
        for seed in range(4):
            move(model, seed, by=0.1, start=1.0 - run)
            generator.sync(model)
            found[run].append(tokens(generator, prompts))

    for run in (0, 1):
        train(run)
    alone = copy.deepcopy(found)
    found[0].clear()
    found[1].clear()
    threads = [threading.Thread(target=train, args=(run,)) for run in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert alone[0] != alone[1]


def test_answers_that_are_asked_for_keep_their_version_when_the_run_syncs_meanwhile(
    rows: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    models = [adapted(1), adapted(2)]
    expected = []
    for model in models[::-1]:
        rows.sync(model)
        expected.insert(0, tokens(rows, prompts))
    many: list[list[list[int]]] = []
    asking = threading.Thread(target=lambda: many.append(tokens(rows, prompts * 10)))
    asking.start()
    rows.sync(models[1])
    assert asking.is_alive(), "the answers were there before the sync"
    assert tokens(rows, prompts) == expected[1]
    asking.join()
    assert many[0] == expected[0] * 10


def test_what_does_not_suit_is_refused_in_one_line_and_changes_nothing(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    model = adapted(3)
    rows.sync(model)
    before, state = tokens(rows, prompts[:4]), ServerConnection(rows_server.url).status()
    layout, z = describe_layout(model), pack(model)
    nan = b"\x00\x00\xc0\x7f" + z[4:]
    server = ServerConnection(rows_server.url)
    for version, values, message in (
        (layout.version(nan), nan, "NaN"),
        (layout.version(z), z[4:] + z[:4], "did not arrive"),
        ("another", z, "did not arrive"),
        (layout.version(z), z[4:], "bytes instead of"),
    ):
        with pytest.raises(SVFError, match=message) as error:
            server.put(layout.digest, version, values)
        assert "\n" not in str(error.value)
        if version != layout.version(z):
            assert not server.has_row(version)
    changed = adapted(3)
    next(iter(svf_layers(changed).values())).svf_z["default"].weight.data[0] = torch.nan
    for wrong, message in (
        (changed, "NaN"),
        (adapted(0, SVFConfig(target_modules=["o_proj"], task_type="CAUSAL_LM")), "does not serve .*o_proj in factors"),
        (adapted(0, LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM")), "takes z alone.*merged"),
        (adapted(0, SVFConfig(modules_to_save=["norm"], task_type="CAUSAL_LM")), "takes z alone.*merged"),
        (_other_weights(), r"layers\.1\.mlp\.up_proj\.weight differs from that of the trained model"),
    ):
        with pytest.raises(SVFError, match=message) as error:
            rows.sync(wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(SVFError, match="takes z alone"):
        server.begin_push("model", "run")
    after = server.status()
    assert (after["version"], after["updates"]) == (state["version"], state["updates"])
    assert tokens(rows, prompts[:4]) == before


def test_a_stranger_cannot_put_a_row_there(rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted) -> None:
    model = adapted(4)
    rows.sync(model)
    state = ServerConnection(rows_server.url).status()
    key = {HEADER: str(read_secret())}
    put = {"method": "svf_put", "args": ["layout", "version", ""], "kwargs": {"secret": "guess"}}
    for headers in ({}, {HEADER: "guess"}):
        assert httpx.post(f"{rows_server.url}{ROWS}", json=put, headers=headers).status_code == 401
    for body in (b"", b"[]", b'{"args": [1, 2], "kwargs": {"secret": ""}}', b'{"args": [1, 2, 3]}', b"\xff"):
        answer = httpx.post(f"{rows_server.url}{ROWS}", content=body, headers=key).json()["results"][0]
        assert "takes a layout, a version and its z" in answer["error"]
    answer = httpx.post(f"{rows_server.url}{ROWS}", json=put, headers=key).json()["results"][0]
    assert "the secret of this server was not given" in answer["error"]
    adapter = {"lora_name": "theirs", "lora_path": "/tmp"}
    assert httpx.post(f"{rows_server.url}/v1/load_lora_adapter", json=adapter, headers=key).status_code == 404
    assert ServerConnection(rows_server.url).status() == state


@pytest.mark.slow
def test_a_restarted_server_is_given_its_row_again(
    rows: VLLMServersGenerator, rows_server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    rows.sync(adapted(5))
    expected, loaded = tokens(rows, prompts), digest(rows_server.url)
    rows_server.kill()
    rows_server.wait()
    assert ServerConnection(rows_server.url).status()["rows"] == 0
    assert tokens(rows, prompts) == expected
    assert digest(rows_server.url) == loaded


@pytest.mark.slow
def test_a_model_that_cannot_be_served_in_factors_gets_whole_weights_and_a_line_says_why(
    start_server: Callable[..., Server], prompts: list[list[int]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 448, "hidden_size": 64, "head_dim": 32, "max_position_embeddings": 256, "num_experts": 4}
    experts = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "initializer_range": 0.2}
    config = AutoConfig.for_model("qwen3_moe", **{**SIZES, **size, **experts})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path)
    server = start_server("--model_name_or_path", str(tmp_path), "--target_modules", "attention").wait()
    line = "note: the server holds whole weights (vllm_weights: merged): a mixture of experts is not served in factors"
    assert line in server.log.read_text()
    model = adapted_model(SVFConfig(target_modules="attention", task_type="CAUSAL_LM"), 1, by=0.3, base=tmp_path)
    generator = VLLMServersGenerator([server.url], dtype="float32")
    generator.sync(model)
    completions = generator.generate(prompts, GREEDY, range(12))
    assert wrong_tokens(model, prompts, completions)[0] == 0
    with model.disable_adapter():
        assert wrong_tokens(model, prompts, completions)[0] > 0  # the control


def _other_weights() -> PeftModel:
    base = adapted_model().unload()
    base.model.layers[1].mlp.up_proj.weight.data += 0.01
    return get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
