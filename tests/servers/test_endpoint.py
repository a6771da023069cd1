"""`svf-rl serve MODEL --expert NAME=DIR`: each request is answered as the expert or mixture that it names, or as the
one that the server chooses."""

import base64
import json
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from fakes import adapted_model, free_port, refused_command, save_adapter
from peft import PeftModel
from server_process import Server, wrong_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.endpoint.arguments import EndpointArguments
from svf_rl.endpoint.command import endpoint_command
from svf_rl.endpoint.settings import KEY
from svf_rl.generation import Completion
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
SVF = SVFConfig(target_modules="mlp", task_type="CAUSAL_LM")
EXPERTS = {"math": 1, "code": 2, "reasoning": 3}
MIXTURE = "code:0.3+math:0.6"
ASKED = [{"role": "user", "content": "x"}]
QUESTIONS = (
    "What is 12 + 7?", "3 * 9 = ?", "Write a function that adds two numbers.", "Which is a fruit: A) oak B) pear?",
    "Tell me a story about cats.", "Print the numbers from 1 to 5.",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for name, seed in {**EXPERTS, "late": 4, "elsewhere": 5}.items():
        save_adapter((folder / "loaded" if name == "late" else folder) / name, SVF, seed=seed, by=0.05)
    return folder


@pytest.fixture(scope="module")
def start(start_server: Callable[..., Server], folder: Path) -> Callable[..., Server]:
    experts = [text for name in EXPERTS for text in ("--expert", f"{name}={folder / name}")]

    def started(**environment: str) -> Server:
        options = ["--adapters", str(folder / "loaded"), "--dtype", "float32", "--max-length", "256"]
        return start_server(command=["svf_rl.cli", "serve", str(model_path()), *experts, *options], **environment)

    return started


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Iterator[Server]:
    started = start().wait()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def merged(folder: Path) -> dict[str, torch.nn.Module]:
    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()

    made = {"base": base(), **{n: adapted_model(SVF, seed=s, by=0.05).merge_and_unload() for n, s in EXPERTS.items()}}
    model = PeftModel.from_pretrained(base(), str(folder / "math"), "math")
    model.load_adapter(str(folder / "code"), "code")
    model.add_weighted_adapter(["math", "code"], [0.6, 0.3], "mix", form="deviation")
    model.set_adapter("mix")
    return {**made, MIXTURE: model.merge_and_unload(adapter_names=["mix"])}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: openai.OpenAI, model: str, question: str) -> tuple[Completion, Any]:
    """The answer, and the response that it came in."""
    response = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=24, temperature=0,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    return Completion(response.parse().choices[0].token_ids, None, True), response


def prompt_of(question: str) -> list[int]:
    return AutoTokenizer.from_pretrained(model_path()).apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )


def post(server: Server, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=300)


def test_experts_mixtures_and_the_base_model_answer_side_by_side(
    client: openai.OpenAI, merged: dict[str, torch.nn.Module]
) -> None:
    draw = random.Random(0)
    asked = [(draw.choice([*merged]), draw.choice(QUESTIONS)) for _ in range(48)]
    with ThreadPoolExecutor(48) as threads:
        answers = list(threads.map(lambda one: ask(client, *one)[0], asked))
    for name in merged:
        mine = [i for i, (model, _) in enumerate(asked) if model == name]
        prompts = [prompt_of(asked[i][1]) for i in mine]
        assert wrong_tokens(merged[name], prompts, [answers[i] for i in mine])[0] == 0, name
    assert {model.id for model in client.models.list()} >= {"base", *EXPERTS, MIXTURE}


def test_auto_is_answered_by_whom_the_response_names(
    client: openai.OpenAI, merged: dict[str, torch.nn.Module], server: Server
) -> None:
    for question in QUESTIONS:
        answer, response = ask(client, "auto", question)
        chosen = response.headers["x-svf-rl-model"]
        label, probability = response.headers["x-svf-rl-class"].split()
        assert response.parse().model == chosen
        assert chosen == (label if label in EXPERTS else "base")
        assert 0.25 <= float(probability) <= 1
        assert wrong_tokens(merged[chosen], [prompt_of(question)], [answer])[0] == 0
        assert label == _likeliest(merged["base"], question)
    stream = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=8, stream=True
    )
    assert {chunk.model for chunk in stream} <= {"base", *EXPERTS}
    text = client.completions.create(model="auto", prompt=QUESTIONS[1], max_tokens=4)
    assert text.model in {"base", *EXPERTS}
    assert "svf_rl_requests_total" in httpx.get(f"{server.url}/metrics").text


@torch.no_grad()
def _likeliest(model: torch.nn.Module, question: str) -> str:
    """By the whole label's log-likelihood under transformers, as `svf-rl dispatch --method loglikelihood` has it."""
    from svf_rl.adaptation.classifier import classification_ids, find_classifier_prompt
    from svf_rl.adaptation.strategies.loglikelihood import label_ids

    tokenizer: Any = AutoTokenizer.from_pretrained(model_path())
    turn = [[{"role": "user", "content": question}]]
    asked = find_classifier_prompt(str(model_path()))
    (prompt,) = classification_ids(tokenizer, turn, asked)
    scores = {}
    for label, ids in label_ids(tokenizer, asked.labels).items():
        logps = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(1)
        scores[label] = sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(ids))
    return max(scores, key=scores.__getitem__)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/chat/completions", {"model": "math:0.5+law:0.5"}, 400, "no expert 'law'"),
        ("/v1/chat/completions", {"model": "math:inf"}, 400, "no weight from -4 to 4"),
        ("/v1/chat/completions", {"model": "law", "messages": ASKED}, 404, "does not exist"),
        ("/v1/chat/completions", {"model": "auto"}, 400, "a message of the user"),
        ("/v1/chat/completions", {"model": "auto", "messages": [1, {"role": "user"}]}, 400, "of the user"),
        ("/v1/completions", {"model": "auto", "prompt": [1, 2]}, 400, "one prompt in text"),
        ("/v1/completions", {"model": "auto", "prompt": "x" * 4000}, 400, "tokens for the classifier"),
        ("/v1/completions", {"model": ["math"], "prompt": "x"}, 400, ""),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "elsewhere"}, 403, "from the folder alone"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "svf-mix:{}"}, 403, "from the folder alone"),
        ("/v1/load_lora_adapter", {"lora_name": "x"}, 403, "from the folder alone"),
        ("/adapters", {"name": "x", "src": "elsewhere"}, 403, "by /v1/load_lora_adapter alone"),
        ("/v1/completions", {"model": "../elsewhere", "prompt": "x"}, 404, "does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_an_error_as_openai_has_them(
    server: Server, folder: Path, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    if body.get("lora_path") == "elsewhere":
        body = {**body, "lora_path": str(folder / "loaded" / ".." / "elsewhere")}
    response = post(server, path, **body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]
    assert httpx.get(f"{server.url}/health").status_code == 200


def _text(client: openai.OpenAI, model: str, question: str) -> str:
    asked: Any = [{"role": "user", "content": question}]
    said = client.chat.completions.create(model=model, messages=asked, max_tokens=24, temperature=0)
    return said.choices[0].message.content or ""


def _search(server: Server, call: dict[str, Any], until: str = "done") -> dict[str, Any]:
    """Ask for a search, and wait for its end."""
    begun = post(server, "/v1/adapt", **call)
    assert begun.status_code == 202, begun.text
    job = begun.json()
    assert job["status"] == "running"
    while job["status"] == "running":
        time.sleep(0.05)
        job = httpx.get(f"{server.url}/v1/adapt/{job['id']}").json()
    assert job["status"] == until, job
    return job


EXAMPLES: list[dict[str, Any]] = [
    {"prompt": "What is 12 + 7?", "answer": "19"},
    {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "answer": "7"},
    {"prompt": "What is 2 + 2?", "answer": "4"},
]
SMALL = {"examples": EXAMPLES, "verifier": "numeric", "generations": 2, "population": 4, "samples": 1, "max_tokens": 16}


def test_a_few_examples_make_a_model_of_its_own(server: Server, client: openai.OpenAI, folder: Path) -> None:
    numbers = [re.findall(r"\d+", _text(client, "base", question))[-1] for question in QUESTIONS[:2]]
    rows = [{"prompt": question, "answer": one} for question, one in zip(QUESTIONS, numbers, strict=False)]
    call = {**SMALL, "examples": rows, "max_tokens": 24}
    first, again, other = _search(server, call), _search(server, call), _search(server, {**call, "seed": 1})
    assert (first["weights"], first["fitness"]) == (again["weights"], again["fitness"])  # the seed decides
    assert first["fitness"] != other["fitness"]
    assert first["weights"].keys() == EXPERTS.keys()
    assert (first["generation"], first["generations"]) == (1, 2)
    assert len({first["model"], again["model"], other["model"]}) == 3
    base: Any = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, str(folder / "math"), "math")
    for name in ("code", "reasoning"):
        model.load_adapter(str(folder / name), name)
    model.add_weighted_adapter([*EXPERTS], [*first["weights"].values()], "mix", form="deviation")
    model.set_adapter("mix")
    mixed = model.merge_and_unload(adapter_names=["mix"])
    for question in QUESTIONS:
        answer, _ = ask(client, first["model"], question)
        assert wrong_tokens(mixed, [prompt_of(question)], [answer])[0] == 0


def test_a_search_can_be_cancelled_and_has_its_time(server: Server, client: openai.OpenAI) -> None:
    long = {**SMALL, "generations": 20, "population": 32, "samples": 4, "max_tokens": 100}
    begun = post(server, "/v1/adapt", **long).json()
    assert post(server, "/v1/adapt", **SMALL).status_code == 429  # one at a time
    gone = httpx.delete(f"{server.url}/v1/adapt/{begun['id']}").json()
    assert (gone["status"], gone["model"]) == ("cancelled", None)
    late = _search(server, {**long, "time_limit": 1}, until="failed")
    assert "the time limit of 1 s is over" in late["error"]
    assert ask(client, "math", QUESTIONS[0])[0].token_ids
    assert _search(server, SMALL)["model"] in {model.id for model in client.models.list()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"examples": []}, "a list of 1 to 64"),
        ({"examples": "x"}, "a list of 1 to 64"),
        ({"examples": [{"prompt": "x"}]}, "an answer in text"),
        ({"examples": [{"prompt": 1, "answer": "1"}]}, "a text, or messages"),
        ({"examples": [{"messages": [{"role": "user"}], "answer": "1"}]}, "a text, or messages"),
        ({"examples": [{"prompt": "x", "answer": "no number"}]}, "no number"),
        ({"examples": [{"prompt": "x" * 4000, "answer": "1"}]}, "the model reads"),
        ({"verifier": "unit_tests"}, "verifier must be"),
        ({"verifier": "/etc/passwd:x"}, "verifier must be"),
        ({"generations": 10_000}, "generations must be a whole number from 1 to 20"),
        ({"seed": True}, "seed must be a whole number"),
        ({"adapter": "x"}, "unknown field 'adapter'"),
    ],
)
def test_a_search_that_cannot_be_made_is_said(server: Server, change: dict[str, Any], said: str) -> None:
    response = post(server, "/v1/adapt", **{**SMALL, **change})
    if response.status_code == 202:  # found by the search itself
        job = response.json()
        while job["status"] == "running":
            time.sleep(0.05)
            job = httpx.get(f"{server.url}/v1/adapt/{job['id']}").json()
        assert job["status"] == "failed"
        assert said in job["error"]
        return
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/adapt/none").status_code == 404


def test_bodies_that_are_no_requests_leave_the_server_as_it_was(server: Server, client: openai.OpenAI) -> None:
    url = f"{server.url}/v1/chat/completions"
    head = {"content-type": "application/json"}
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": "auto", "messages": ' + b"[" * 5000):
        assert 400 <= httpx.post(url, content=content, headers=head).status_code < 500
    half = rb'"messages": [{"role": "user", "content": "x \ud83d"}]'  # of a character, as JSON may have it
    for path, content in (
        ("chat/completions", b'{"model": "auto", ' + half + b"}"),
        ("adapt", b'{"examples": [{' + half + b', "answer": "1"}]}'),
    ):
        said = httpx.post(f"{server.url}/v1/{path}", content=content, headers=head)
        assert said.status_code == 400
        assert "half of a character" in said.json()["error"]["message"]
    assert httpx.post(url, content=b" " * (33 << 20), headers=head, timeout=60).status_code == 413
    with httpx.stream(
        "POST", url, json={"model": "math", "messages": [{"role": "user", "content": "x"}], "stream": True}
    ):
        pass  # it goes before the answer is whole
    assert ask(client, "math", QUESTIONS[0])[0].token_ids


def test_an_adapter_of_the_named_folder_is_loaded_while_the_server_runs(
    server: Server, client: openai.OpenAI, folder: Path
) -> None:
    late = adapted_model(SVF, seed=4, by=0.05).merge_and_unload()
    assert post(server, "/v1/load_lora_adapter", lora_name="new", lora_path=str(folder / "loaded/late")).is_success
    for name in ("new", "late"):  # by its path, and by its name alone
        answer, _ = ask(client, name, QUESTIONS[0])
        assert wrong_tokens(late, [prompt_of(QUESTIONS[0])], [answer])[0] == 0
    assert post(server, "/v1/unload_lora_adapter", lora_name="new").is_success
    with pytest.raises(openai.NotFoundError):
        ask(client, "new", QUESTIONS[0])


def test_an_adapter_that_is_loaded_as_classifier_does_not_classify(
    server: Server, client: openai.OpenAI, folder: Path
) -> None:
    before = ask(client, "auto", QUESTIONS[0])[1].headers["x-svf-rl-class"]
    assert post(
        server, "/v1/load_lora_adapter", lora_name="classifier", lora_path=str(folder / "loaded/late")
    ).is_success
    try:
        assert ask(client, "auto", QUESTIONS[0])[1].headers["x-svf-rl-class"] == before
    finally:
        post(server, "/v1/unload_lora_adapter", lora_name="classifier")


def test_the_page_is_whole_in_itself(server: Server) -> None:
    page = httpx.get(f"{server.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")  # it works without a network
    assert httpx.get(f"{server.url}/v1/svf").json()["experts"] == [*EXPERTS]


WIDTHS = {"a desk": (1200, 900), "a phone": (390, 844)}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_mixes_asks_and_compares_in_a_browser(server: Server, width: str) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    if (driver := shutil.which("chromedriver")) is None:
        pytest.skip("no browser: Debian's chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        metrics = {**size, "deviceScaleFactor": 1, "mobile": width == "a phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(server.url)
        wait = WebDriverWait(browser, 60)
        boxes = wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#models input"))
        assert [box.get_attribute("value") for box in boxes] == ["base", *EXPERTS, "auto", "mix"]
        for name in ("code", "reasoning"):
            browser.find_element(By.CSS_SELECTOR, f"#models [value={name}]").send_keys(Keys.SPACE)  # by the keyboard
        sliders = browser.find_elements(By.CSS_SELECTOR, "#sliders input")
        sliders[0].send_keys(Keys.ARROW_RIGHT * 2)  # which chooses the mix too
        sliders[2].send_keys(Keys.HOME)
        tokens = browser.find_element(By.ID, "tokens")
        tokens.clear()
        tokens.send_keys("24")
        browser.find_element(By.ID, "question").send_keys(QUESTIONS[0] + Keys.CONTROL + Keys.ENTER)
        wait.until(lambda page: page.find_element(By.ID, "status").text == "All have answered.")
        cards = [card.text.split("\n") for card in browser.find_elements(By.TAG_NAME, "article")]
        assert [card[0] for card in cards] == ["base", "math", "auto", "mix"]
        assert [card[-1].partition(",")[0] for card in cards[:2]] == ["base", "math"]
        assert "was chosen" in cards[2][-1]
        assert cards[3][-1].startswith("math:0.45+code:0.35")
        assert all(len(card) > 2 and card[1] for card in cards)  # each said something
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size["width"]
        unnamed = "[...document.querySelectorAll('input, textarea')].filter(each => !each.labels.length).length"
        assert browser.execute_script(f"return {unnamed}") == 0  # a screen reader has a name for each
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def locked(start: Callable[..., Server]) -> Server:
    return start(**{KEY: "a key"}).wait()


def test_without_the_key_nothing_but_health_answers(locked: Server) -> None:
    body = {"model": "math", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    paths = [
        *json.loads(httpx.get(f"{locked.url}/openapi.json", headers={"authorization": "Bearer a key"}).text)["paths"]
    ]
    paths += ["/", "/metrics", "/v1/svf", "/docs", "/nothing", "/health/", "//health", "/health/../metrics"]
    for path in {*paths} - {"/health"}:
        for given in ({}, {"authorization": "Bearer a"}, {"authorization": "Basic !"}, {"authorization": "a key"}):
            for method in ("GET", "POST"):
                said = httpx.request(method, f"{locked.url}{path}", headers=given)
                assert said.status_code == 401, path
                assert "key" in said.json()["error"]["message"]
    assert httpx.get(f"{locked.url}/health").status_code == 200
    asked = {
        "origin": "http://elsewhere",
        "access-control-request-method": "POST",
    }  # a browser, before it sends the key
    assert httpx.options(f"{locked.url}/v1/chat/completions", headers=asked).status_code == 200
    basic = "Basic " + base64.b64encode(b"anyone:a key").decode()
    for key in ("Bearer a key", basic):
        head = {"authorization": key}
        assert httpx.get(f"{locked.url}/", headers=head).status_code == 200
        assert httpx.post(f"{locked.url}/v1/chat/completions", json=body, headers=head, timeout=300).is_success


def test_told_to_stop_it_ends_what_runs(locked: Server) -> None:
    body = {"model": "code", "prompt": "x", "max_tokens": 200, "min_tokens": 200, "stream": True}
    body["stream_options"] = {"include_usage": True}
    begun = threading.Barrier(9)

    def complete(_: int) -> int:
        """Tokens of the answer, whose first one has come when the server is told to stop."""
        head, tokens = {"authorization": "Bearer a key"}, 0
        with httpx.stream("POST", f"{locked.url}/v1/completions", json=body, headers=head, timeout=300) as response:
            for place, line in enumerate(line for line in response.iter_lines() if line.startswith("data: {")):
                if place == 0:
                    begun.wait(60)
                tokens = (json.loads(line.removeprefix("data: ")).get("usage") or {}).get("completion_tokens", 0)
        return tokens

    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(complete, range(8))
        begun.wait(60)
        locked.process.send_signal(signal.SIGTERM)
        assert list(answers) == [200] * 8
    assert locked.process.wait(60) == 0


def test_experts_that_do_not_go_together_are_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = shutil.copytree(folder / "math", tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"")
    save_adapter(tmp_path / "other", SVFConfig(target_modules="attention", task_type="CAUSAL_LM"))
    sound = ["--port", str(free_port()), "--expert", f"math={folder / 'math'}"]
    for given, said in (
        (["--expert", f"math={damaged}"], "is damaged"),
        ([*sound, "--expert", f"code={tmp_path / 'other'}"], "different targets"),
        (["--expert", f"auto={folder / 'math'}"], "stands for something else"),
        (["--expert", "math="], "give a folder, or a name for it"),
        ([*sound, "--expert", f"math={folder / 'code'}"], "two experts are called math"),
        ([*sound, "--learning_rate", "1"], "unknown option --learning_rate"),
        ([*sound, "--adapters", str(tmp_path / "none")], "no folder"),
    ):
        assert said in refused_command(capsys, "serve", str(model_path()), *given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is the server's own")
def test_on_a_cpu_it_leaves_memory_to_others(folder: Path) -> None:
    command, _ = endpoint_command(
        ModelArguments("quickstart"), {"math": str(folder / "math")}, EndpointArguments(), "127.0.0.1", free_port()
    )
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.4"


def test_a_folder_of_a_sweep_is_an_expert(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "math", tmp_path / "learning_rate=0.01,beta=0.1")
    command, _ = endpoint_command(
        ModelArguments("quickstart"),
        {"math": str(tmp_path / "learning_rate=0.01,beta=0.1")},
        EndpointArguments(),
        "127.0.0.1",
        free_port(),
    )
    given = json.loads(command[command.index("--lora-modules") + 1])
    assert (given["name"], Path(given["path"]).name) == ("math", "learning_rate=0.01,beta=0.1")
