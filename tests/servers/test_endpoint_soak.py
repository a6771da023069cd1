"""Thousands of requests of all kinds, as the world sends them: good ones are answered right, and nothing grows."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import psutil
import pytest
import torch
from fakes import adapted_model, save_adapter
from server_process import Server, wrong_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.generation import Completion
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(3600)]
REQUESTS, AT_ONCE = 10_000, 48
SVF = SVFConfig(target_modules="mlp", task_type="CAUSAL_LM")
EXPERTS = {"math": 1, "code": 2, "reasoning": 3}
PROMPTS = ("12 + 7 = ", "3 * 9 = ", "print the numbers", "what is", "def add(a, b):", "7 - 19 = ")


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("experts")
    given: list[str] = []
    for name, seed in EXPERTS.items():
        given += ["--expert", f"{name}={save_adapter(folder / name, SVF, seed=seed, by=0.05)}"]
    command = ["svf_rl.cli", "serve", str(model_path()), *given, "--dtype", "float32", "--max-length", "256"]
    command += ["--", "--num-gpu-blocks-override", "512"]  # a cache that is soon touched as a whole
    split = command.index("--")
    # oneDNN keeps 1,024 products compiled, one for each size of a batch: what else grew would hide behind them
    own = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
    started = start_server(*command[split:], command=command[:split], **own).wait()
    yield started
    started.kill()


class World:
    """Clients of one server. `counts`: what came of their requests, by kind."""

    def __init__(self, session: aiohttp.ClientSession, port: int):
        self._session, self._port = session, port
        self.counts: Counter[str] = Counter()
        self.answers: list[tuple[str, str, list[int]]] = []
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path())

    async def good(self, draw: random.Random) -> None:
        name, prompt = draw.choice(["base", *EXPERTS]), draw.choice(PROMPTS)
        body = {"model": name, "prompt": prompt, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
        async with self._session.post("/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            self.answers.append((name, prompt, (await response.json())["choices"][0]["token_ids"]))

    async def auto(self, draw: random.Random) -> None:
        body = {"model": "auto", "messages": [{"role": "user", "content": draw.choice(PROMPTS)}], "max_tokens": 2}
        async with self._session.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()

    async def mixture(self, draw: random.Random) -> None:
        """Each one another, so that names and rows come and go."""
        name = f"math:{draw.random():.4f}+code:{draw.random():.4f}"
        body = {"model": name, "prompt": draw.choice(PROMPTS), "max_tokens": 4}
        async with self._session.post("/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()

    async def cancelled(self, draw: random.Random) -> None:
        body = {"model": draw.choice([*EXPERTS]), "prompt": draw.choice(PROMPTS), "max_tokens": 100, "stream": True}
        async with self._session.post("/v1/completions", json={**body, "ignore_eos": True}) as response:
            assert response.status == 200
            await response.content.readany()

    async def gone(self, draw: random.Random) -> None:
        """Hangs up before its body is whole, or while the answer is made."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(head + body[: draw.choice([0, 20, len(body)])])
        await writer.drain()
        await asyncio.sleep(draw.random() / 20)
        writer.transport.abort()

    async def slow(self, draw: random.Random) -> None:
        """Reads its stream a byte now and then."""
        body = {"model": "math", "prompt": draw.choice(PROMPTS), "max_tokens": 16, "stream": True, "ignore_eos": True}
        async with self._session.post("/v1/completions", json=body) as response:
            while await response.content.read(64):
                await asyncio.sleep(0.02)

    async def malformed(self, draw: random.Random) -> None:
        bodies: list[Any] = [
            b"{", b"[]", b"null", b"\xff", b'{"model": 1}', b'{"model": "auto", "messages": "x"}',
            b'{"model": "math:"}',
            b'{"model": "math", "prompt": "x", "max_tokens": -1}', b'{"model": "math:0.5+math:0.5", "prompt": "x"}',
            b'{"model": "nobody", "prompt": "x"}', b'{"model": "../../etc", "prompt": "x"}',
            b'{"model": "math", "prompt": "' + b"x" * 50_000 + b'"}', b'{"model": "auto", "prompt": {"a": 1}}',
        ]  # fmt: skip
        path = draw.choice(["/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/nothing"])
        head = {"content-type": "application/json"}
        async with self._session.post(path, data=draw.choice(bodies), headers=head) as response:
            assert 400 <= response.status < 500, (path, await response.text())
            await response.read()

    async def large(self, draw: random.Random) -> None:
        try:
            async with self._session.post("/v1/completions", data=b" " * (34 << 20)) as response:
                assert response.status == 413
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            pass  # refused while it was still sent

    async def run(self, draw: random.Random, count: int) -> None:
        kinds = {
            "good": 60,
            "auto": 8,
            "mixture": 8,
            "cancelled": 6,
            "gone": 6,
            "slow": 1,
            "malformed": 10.8,
            "large": 0.2,
        }
        todo = draw.choices([*kinds], [*kinds.values()], k=count)

        async def client() -> None:
            while todo:
                kind = todo.pop()
                await getattr(self, kind)(draw)
                self.counts[kind] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(client())


def _megabytes(server: Server) -> tuple[float, float]:
    """Of the processes that answer HTTP and schedule, and of the worker that computes, without what files share."""
    root = psutil.Process(server.process.pid)
    held = [one.memory_full_info().uss / 1e6 for one in [root, *root.children(recursive=True)]]
    return sum(held[:-1]), held[-1]


def test_ten_thousand_requests(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    memory: list[tuple[float, float]] = []
    port = int(server.url.rpartition(":")[2])

    async def everything() -> World:
        timeout, connector = aiohttp.ClientTimeout(600), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(server.url, timeout=timeout, connector=connector) as session:
            world, draw = World(session, port), random.Random(0)
            for _ in range(10):
                await world.run(draw, REQUESTS // 10)
                memory.append(_megabytes(server))
            return world

    world = asyncio.run(everything())
    with capsys.disabled():
        print(dict(world.counts), [[round(of) for of in one] for one in memory], flush=True)
    assert sum(world.counts.values()) == REQUESTS
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for name in ["base", *EXPERTS]:
        if name == "base":
            model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
        else:
            model = adapted_model(SVF, seed=EXPERTS[name], by=0.05).merge_and_unload()
        said = {(prompt, tuple(ids)) for one, prompt, ids in world.answers if one == name}
        assert len({prompt for prompt, _ in said}) == len(PROMPTS)
        prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in said]
        wrong, _ = wrong_tokens(model, prompts, [Completion(list(ids), None, True) for _, ids in said])
        assert wrong == 0, name
    # the first fifth fills caches: names, prefixes, the allocator's arenas
    (others, worker), (others_late, worker_late) = memory[1], memory[-1]
    assert others_late <= others + 15, memory
    assert worker_late <= worker + 15, memory
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
