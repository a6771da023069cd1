"""An update is whole or not seen, whatever happens meanwhile."""

import threading
import time
from collections.abc import Callable

import httpx
import pytest
from peft import PeftModel
from server_process import Server

from svf_rl.generation import Sampling
from svf_rl.generation.server.connection import ServerConnection
from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.generation.weights import adapted_weights

pytestmark = pytest.mark.vllm
GREEDY = Sampling(max_tokens=32, temperature=0.0)
Adapted = Callable[..., PeftModel]


def ask(url: str, prompt: list[int], timeout: float | None = None) -> list[int]:
    """The greedy tokens that any other client gets."""
    body = {"prompt": prompt, "max_tokens": 32, "temperature": 0, "return_token_ids": True}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=timeout).json()["choices"][0]["token_ids"]


def tokens(generator: VLLMServersGenerator, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers. Their log-probabilities differ in the last bits with the batches that requests arrive in."""
    return [completion.token_ids for completion in generator.generate(prompts, GREEDY, range(len(prompts)))]


@pytest.mark.parametrize("updates", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_no_request_is_answered_by_two_versions(
    generator: VLLMServersGenerator, server: Server, adapted: Adapted, prompts: list[list[int]], updates: int
) -> None:
    """Other clients ask all the time while two adapters take turns: every answer is one's or the other's."""
    models = [adapted(1), adapted(2)]
    allowed = []
    for model in models:
        generator.sync(model)
        allowed.append([c.token_ids for c in generator.generate(prompts, GREEDY, range(12))])
    answers: list[tuple[int, list[int]]] = []
    stop = threading.Event()

    def client(first: int) -> None:
        place = first
        while not stop.is_set():
            answers.append((place, ask(server.url, prompts[place])))
            place = (place + 1) % len(prompts)

    def kinds() -> list[list[bool]]:
        return [[tokens == allowed[k][place] for k in range(2)] for place, tokens in list(answers)]

    def both_seen() -> bool:
        found = kinds()
        return [True, False] in found and [False, True] in found

    clients = [threading.Thread(target=client, args=(i,)) for i in range(0, 12, 2)]
    for thread in clients:
        thread.start()
    try:
        end, turn = time.monotonic() + 300, 0
        while turn < updates or (not both_seen() and time.monotonic() < end):
            generator.sync(models[turn % 2])
            own = [c.token_ids for c in generator.generate(prompts[:3], GREEDY, range(3))]
            assert own == allowed[turn % 2][:3]
            turn += 1
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert all(any(kind) for kind in kinds()), "an answer is neither the one's nor the other's"
    assert both_seen()


def test_a_server_with_half_of_the_weights_answers_nobody(
    generator: VLLMServersGenerator, server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    """A run that is killed in the middle of an update leaves such a server; the next one mends it."""
    generator.sync(adapted(3))
    expected = tokens(generator, prompts[:4])
    dead = ServerConnection(server.url)
    dead.pause()
    dead.begin_push("model", "run")
    dead.push(*next(iter(adapted_weights(adapted(4)))))
    assert dead.status()["version"] is None
    with pytest.raises(httpx.ReadTimeout):
        ask(server.url, prompts[0], timeout=3)
    assert tokens(generator, prompts[:4]) == expected


def test_a_pause_that_nobody_ended_is_ended(
    generator: VLLMServersGenerator, server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    generator.sync(adapted(3))
    expected = tokens(generator, prompts[:4])
    ServerConnection(server.url).pause()
    assert tokens(generator, prompts[:4]) == expected


def test_another_run_on_the_same_server_is_noticed(
    generator: VLLMServersGenerator, server: Server, adapted: Adapted, prompts: list[list[int]]
) -> None:
    """Each finds its own weights again before it asks."""
    other = VLLMServersGenerator([server.url], dtype="float32")
    generator.sync(adapted(1))
    ours = tokens(generator, prompts)
    other.sync(adapted(2))
    theirs = tokens(other, prompts)
    assert ours != theirs
    assert tokens(generator, prompts) == ours
    assert tokens(other, prompts) == theirs
