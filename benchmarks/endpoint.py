"""The endpoint that adapts itself (`svf-rl serve MODEL --expert ...`): how often `auto` is right, and what it costs.

    python benchmarks/endpoint.py [--repeats ROUNDS] [--out results.json]

The quickstart's three experts and its dispatch expert are trained and served, and the 512 test rows of the exam asked
over HTTP: as the base model, as each expert, as `auto`, and each as the expert of its own skill (the oracle). Then 32
requests at once generate 32 tokens each, named or `auto`, in turns: the median seconds of a request.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import aiohttp
from adaptation import CLASSES, train
from common import arguments, hardware, report, serving

AT_ONCE, TOKENS = 32, 32


@dataclass(frozen=True)
class Answer:
    """What a request gets, who answered it, and in how many seconds."""

    text: str
    token_ids: list[int]
    who: str
    seconds: float


async def complete(session: aiohttp.ClientSession, body: dict[str, Any]) -> Answer:
    start = time.perf_counter()
    async with session.post("/v1/chat/completions", json={**body, "return_token_ids": True}) as response:
        said = await response.json()
        if response.status != 200:
            raise SystemExit(said)
        choice, who = said["choices"][0], response.headers["x-svf-rl-model"]
        return Answer(choice["message"]["content"], choice["token_ids"], who, time.perf_counter() - start)


async def complete_all(url: str, bodies: Sequence[dict[str, Any]], at_once: int) -> list[Answer]:
    places = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(None)) as session:

        async def one(body: dict[str, Any]) -> Answer:
            async with places:
                return await complete(session, body)

        return await asyncio.gather(*map(one, bodies))


def accuracy(url: str) -> tuple[dict[str, float], float]:
    """On the exam, by who answers; and how often `auto` chose the expert of the row's skill."""
    from svf_rl.evaluation.arguments import EvaluationArguments
    from svf_rl.evaluation.base_model import find_base_model
    from svf_rl.evaluation.items import load_items

    asked = EvaluationArguments("quickstart", tasks=["exam"])
    items = load_items("exam", asked, find_base_model(asked).tokenizer)
    skills = {skill: label for label, skill in CLASSES.items()}
    right = [skills[row["task"].partition(":")[2]] for row in items.rows]
    found, chosen = {}, []
    for name in ("base", *CLASSES, "auto", "oracle"):
        bodies = [
            {"model": best if name == "oracle" else name, "messages": row["prompt"], "temperature": 0}
            | {"max_tokens": items.sampling.max_tokens}
            for row, best in zip(items.rows, right, strict=True)
        ]
        answers = asyncio.run(complete_all(url, bodies, 64))
        verdicts = items.grader.grade(
            items.rows, [answer.text for answer in answers], [answer.token_ids for answer in answers]
        )
        found[name] = statistics.mean(verdict.correct is True for verdict in verdicts)
        if name == "auto":
            chosen = [answer.who for answer in answers]
    return found, statistics.mean(who == best for who, best in zip(chosen, right, strict=True))


def latency(url: str, name: str) -> list[float]:
    """Seconds of each of the requests."""
    exact = {"max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 0}
    asked = [[{"role": "user", "content": f"What is {i} + {i + 7}?"}] for i in range(AT_ONCE)]
    answers = asyncio.run(complete_all(url, [{"model": name, "messages": one, **exact} for one in asked], AT_ONCE))
    return [answer.seconds for answer in answers]


def main() -> None:
    args = arguments(__doc__, __file__)
    with tempfile.TemporaryDirectory() as folder:
        runs = train(Path(folder))
        experts = [text for label, skill in CLASSES.items() for text in ("--expert", f"{label}={runs[skill]}")]
        command = ["svf_rl.cli", "serve", "quickstart", *experts, "--classifier", runs["dispatch"]]
        with serving([*command, "--max-length", "512"], 8733) as url:
            correct, chosen = accuracy(url)
            times: dict[str, list[float]] = {"math": [], "auto": []}
            for turn in range((args.repeats or 7) + 1):
                for name in sorted(times, reverse=bool(turn % 2)):
                    median = statistics.median(latency(url, name))
                    if turn:  # the first one warms up
                        times[name].append(median)
    result = {
        "hardware": hardware("cpu"),
        "accuracy": correct,
        "chosen": chosen,
        "seconds": {name: statistics.median(of) for name, of in times.items()},
        "ratio": statistics.median(a / b for a, b in zip(times["auto"], times["math"], strict=True)),
    }
    rows = [{"who answers": name, "accuracy": f"{value:.3f}"} for name, value in correct.items()]
    print(f"auto chose the row's own expert in {chosen:.1%}; latency auto / named: {result['ratio']:.3f}")
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
